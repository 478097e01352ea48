"""What drafting for several answers costs: one call for all beside a call for each, in one bundle or several.

    python -m benchmarks.drafts BUNDLE --slots 1 --slots 2 --slots 4 --slots 8

All ways and all bundles take turns, so that noise hits all alike. A bundle of an earlier build, whose draft
graph takes one sequence, has the same time in both columns; one answer beside it shows what an open batch
costs.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from poss_export.errors import InputError
from poss_export.evaluation.latency import milliseconds
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sessions.base import DraftCall, DraftSession

Key = tuple[str, int, str]  # bundle, answers, way
TOGETHER, IN_TURNS = "together", "in turns"


def draft_calls(
    bundle: Bundle, past: int, rows: int, slots: Sequence[int]
) -> Iterator[tuple[Key, Callable[[], None]]]:
    """Yield calls that draft behind `past` rows of each slot and read `rows` new ones; they leave nothing."""
    drafter = bundle.drafter
    if drafter is None:
        raise InputError(f"{str(bundle.folder)!r} has no drafter to time")
    contract = bundle.manifest.drafter
    assert contract is not None
    random = np.random.default_rng(0)
    features = random.normal(size=(max(past, rows), contract.config.feature_size)).astype(np.float32)
    tokens = random.integers(0, bundle.manifest.target.config.vocab_size, max(past, rows))
    for slot in range(drafter.slots):
        drafter.propose(tokens[:past], features[:past], slot)
    for count in slots:
        calls = [DraftCall(tokens[:rows], features[:rows], slot) for slot in range(count)]
        for way, draft in ((TOGETHER, _together), (IN_TURNS, _in_turns)):
            yield (str(bundle.folder), count, way), partial(_timed, drafter, draft, calls, past)


def _together(drafter: DraftSession, calls: Sequence[DraftCall]) -> None:
    drafter.propose_all(calls)


def _in_turns(drafter: DraftSession, calls: Sequence[DraftCall]) -> None:
    for call in calls:
        drafter.propose(*call)


def _timed(
    drafter: DraftSession,
    draft: Callable[[DraftSession, Sequence[DraftCall]], None],
    calls: Sequence[DraftCall],
    past: int,
) -> None:
    draft(drafter, calls)
    for call in calls:
        drafter.trim(past, call.slot)


def measure(
    bundles: Sequence[Bundle], past: int, rows: int, slots: Sequence[int], repeats: int
) -> dict[Key, float]:
    """Return medians in milliseconds, after a turn that warms up."""
    calls = dict(call for bundle in bundles for call in draft_calls(bundle, past, rows, slots))
    turns = [{key: milliseconds(call) for key, call in calls.items()} for _ in range(repeats + 1)][1:]
    return {key: statistics.median(turn[key] for turn in turns) for key in calls}


@click.command(help=__doc__.partition("\n")[0])
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--slots", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 8), show_default=True)
@click.option("--rows", default=3, show_default=True, help="New rows that each draft call reads.")
@click.option("--past", default=128, show_default=True, help="Rows in the caches before.")
@click.option("--repeats", default=20, show_default=True)
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    folders: tuple[Path, ...],
    slots: tuple[int, ...],
    rows: int,
    past: int,
    repeats: int,
    threads: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    with ExitStack() as stack:
        opened = [stack.enter_context(open_bundle(f, threads=threads, slots=max(slots))) for f in folders]
        found = measure(opened, past, rows, slots, repeats)
    table = Table("bundle", "answers", "together, ms", "in turns, ms", "ratio", box=None)
    for (name, count, way), together in found.items():
        if way == TOGETHER:
            turns = found[name, count, IN_TURNS]
            table.add_row(name, str(count), f"{together:.2f}", f"{turns:.2f}", f"{turns / together:.2f}")
    Console().print(table)
    click.echo(f"{threads} threads, {machine['processor']}; load average before {machine['load_average']}")
    if report is not None:
        rows_of = [
            {"bundle": n, "answers": c, "way": w, "milliseconds": ms} for (n, c, w), ms in found.items()
        ]
        environment.write(report, machine, {"calls": rows_of})


if __name__ == "__main__":
    environment.run(main)
