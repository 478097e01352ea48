"""How far drafters get on dialogues held out of their training, and what is chance about the differences.

    python -m benchmarks.acceptance smollm2-135m eagle poss-2 fspad --dialogues FOLDER

Greedy chains of six from every row of the answers, from the unroll that training uses: no engine runs.
Dialogues are drawn again with replacement; 95 % of what then comes lies within the intervals. Each drafter
is compared with the first on the same draws, so that what is hard for all does not count.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from poss_export.drafters.checkpoint import load_drafter
from poss_export.targets.checkpoint import open_target
from poss_export.training.chain_acceptance import ChainCounts, count_chains
from poss_export.training.corpus import Corpus
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import TargetView, view_dialogues
from poss_export.training.hardware import keep_memory, matmul_dtype, training_device

STEPS = 6
DRAWS = 4000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure, and where 95 % of its draws lie."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Floats) -> "Interval":
        """Return a figure with the interval of its draws."""
        return cls(value, *map(float, np.percentile(draws, (2.5, 97.5))))

    def __str__(self) -> str:
        """Show as a percentage of change."""
        return f"{100 * self.value:+.1f} % [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def _rate(first: int, last: int) -> Callable[[ChainCounts, Floats], Floats]:
    """Return what gives acceptance at some depths, by weights of dialogues `[draws, dialogues]`."""

    def rate(counts: ChainCounts, weights: Floats) -> Floats:
        accepted, reached = (x[:, first - 1 : last].sum(1) for x in (counts.accepted, counts.reached))
        found: Floats = (weights @ accepted) / np.maximum(weights @ reached, 1)
        return found

    return rate


def _tau(counts: ChainCounts, weights: Floats) -> Floats:
    return (weights @ counts.emitted) / np.maximum(weights @ counts.rounds, 1)


FIGURES = {"chain tau": _tau, "depths 1 to 3": _rate(1, 3), "depths 4 to 6": _rate(4, STEPS)}


def draws(dialogues: int) -> Floats:
    """Return how often each dialogue is drawn `[DRAWS, dialogues]`; the same for the same number of them."""
    shares = np.full(dialogues, 1 / dialogues)
    return np.random.default_rng(0).multinomial(dialogues, shares, size=DRAWS).astype(np.float64)


def against(counts: ChainCounts, first: ChainCounts) -> dict[str, Interval]:
    """Return each figure's relative change from those of another drafter on the same dialogues."""
    count = len(counts.rounds)
    weights = np.concatenate((np.ones((1, count)), draws(count)))
    with np.errstate(divide="ignore", invalid="ignore"):  # of nothing there is no share
        changes = {
            name: figure(counts, weights) / figure(first, weights) - 1 for name, figure in FIGURES.items()
        }
    return {name: Interval.of(float(change[0]), change[1:]) for name, change in changes.items()}


def measure(
    target_name: str, drafters: Sequence[str], dialogues: Dialogues
) -> Iterator[tuple[str, ChainCounts]]:
    """Yield what each drafter does on the held-out ones of some dialogues."""
    target, device = open_target(target_name), training_device()
    decoder = target.load_decoder().to(device, matmul_dtype(device))
    held_out = dialogues.kept(dialogues.validation)
    views = dict[tuple[int, ...], TargetView]()
    for name in drafters:
        drafter = load_drafter(name).drafter.float().to(device).eval()
        taps = drafter.config.taps
        if taps not in views:
            views[taps] = view_dialogues(decoder, held_out, taps)
        corpus = Corpus.of(decoder, held_out, views[taps], drafter.draft_ids.cpu(), spread=1.0)
        yield name, count_chains(drafter, corpus, STEPS)


@click.command(help=__doc__.partition("\n")[0])
@click.argument("target")
@click.argument("drafters", nargs=-1, required=True)
@click.option(
    "--dialogues",
    "files",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Those they were trained on, or others; what is not held out is left out. Repeatable.",
)
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(target: str, drafters: tuple[str, ...], files: tuple[Path, ...], report: Path | None) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    keep_memory()
    dialogues = reduce(add, map(Dialogues.load, files))
    dialogues.check_split()
    depths = [f"d{depth}" for depth in range(1, STEPS + 1)]
    table = Table("drafter", *depths, "tau", *FIGURES, box=None)
    rows, first = [], None
    for name, counts in measure(target, drafters, dialogues):
        first = first or counts
        found, changes = counts.acceptance(), against(counts, first)
        table.add_row(
            Path(name).name,
            *(f"{rate:.3f}"[1:] for rate in found.alpha),
            f"{found.chain_tau:.3f}",
            *map(str, changes.values()),
        )
        rows.append(
            {
                "drafter": Path(name).name,
                **asdict(found),
                "to_first": {figure: asdict(change) for figure, change in changes.items()},
            }
        )
    Console(width=environment.WIDE).print(table)
    click.echo(
        f"{int(dialogues.validation.sum())} held-out dialogues of {target}; changes are relative to the first"
    )
    if report is not None:
        environment.write(report, machine, {"rows": rows})


if __name__ == "__main__":
    environment.run(main)
