"""What planning is worth: the planner, the fixed tree, and the planner with one of its means taken away.

    python -m benchmarks.planning BUNDLE --prompts FILE.jsonl

All answer the same prompts in turns, in a rotating order, so that a slow moment of the machine hits all
alike. Speeds are of decoding, without prefill, and ratios to those of the target alone.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import environment, questions
from poss_export.evaluation.metrics import decode_speed, pooled_tau, rounds_by_kind
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Generation, Stream
from poss_export.runtime.planning.planner import ADAPTIVE, WHOLE_TREES, Plan, Planner, Planning
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.sequence import Sequence as Decoding
from poss_export.runtime.sessions.base import DraftCall, DraftSession, Ints
from poss_export.runtime.summary import TimedRound
from poss_export.runtime.tree import DraftTree

BASELINE, FIXED, PLANNED = "target-only", "fixed tree", "planner"
PLANNINGS: dict[str, Planning | None] = {
    BASELINE: None,
    FIXED: None,
    PLANNED: ADAPTIVE,
    **{f"without {option.name}": replace(ADAPTIVE, **{option.name: False}) for option in fields(Planning)},
}


class TimedDrafter:
    """What a planner asks of a drafter, and the seconds that it took."""

    def __init__(self, drafter: DraftSession) -> None:
        """Time `drafter`."""
        self._drafter, self.seconds = drafter, 0.0
        self.draft_ids, self.depth = drafter.draft_ids, drafter.depth

    def propose(self, next_tokens: Ints, features: Any, slot: int = 0, noise: Any = None) -> DraftTree:
        """Return the drafter's tree."""
        return self.propose_all([DraftCall(next_tokens, features, slot, noise)])[0]

    def propose_all(self, calls: Sequence[DraftCall]) -> list[DraftTree]:
        """Return the drafter's trees."""
        start = time.perf_counter()
        trees = self._drafter.propose_all(calls)
        self.seconds += time.perf_counter() - start
        return trees


class TimedPlanner:
    """A planner, and the seconds that it took itself, without the drafter's."""

    def __init__(self, planner: Planner) -> None:
        """Time `planner`."""
        self._planner, self.seconds = planner, 0.0
        self.racing = planner.racing

    @property
    def plan(self) -> Plan | None:
        """What was chosen last."""
        return self._planner.plan

    def read(self, prompt: Ints) -> None:
        """Read the prompt, which belongs to prefill and is not timed."""
        self._planner.read(prompt)

    def propose(self, sequence: Decoding, drafter: DraftSession | None, room: int) -> DraftTree:
        """Return the planner's tree."""
        timed = None if drafter is None else TimedDrafter(drafter)
        start = time.perf_counter()
        tree = self._planner.propose(sequence, cast("DraftSession | None", timed), room)
        self.seconds += time.perf_counter() - start - (timed.seconds if timed else 0.0)
        return tree

    def learn(self, done: Round) -> None:
        """Let the planner learn."""
        start = time.perf_counter()
        self._planner.learn(done)
        self.seconds += time.perf_counter() - start


@dataclass
class Row:
    """The answers of one way to plan, their rounds, and the planner's own time."""

    answers: list[Generation] = field(default_factory=list)
    rounds: list[TimedRound] = field(default_factory=list)
    planning_seconds: float = 0.0

    def errors(self) -> list[float]:
        """Return by which share of its time each planned round was mistaken."""
        return [
            abs(one.plan.milliseconds / 1000 - one.seconds) / one.seconds for one in self.rounds if one.plan
        ]


def measure(
    bundle: Bundle, ways: Sequence[str], asked: Sequence[Sequence[int]], tokens: int, sampling: Sampling
) -> dict[str, Row]:
    """Let all ways answer all prompts in turns; the first prompt warms up."""
    rows = {way: Row() for way in ways}
    with Progress(transient=True) as progress:
        for number, ids in enumerate(progress.track([asked[0], *asked], description="measuring")):
            for way in (*ways[number % len(ways) :], *ways[: number % len(ways)]):
                row = rows[way] if number else Row()
                _answer(bundle, way, row, ids, tokens, sampling)
    return rows


def _answer(bundle: Bundle, way: str, row: Row, ids: Sequence[int], tokens: int, sampling: Sampling) -> None:
    alone = way == BASELINE
    planner = TimedPlanner(WHOLE_TREES if alone else bundle.planners.planner(PLANNINGS[way]))
    drafter = None if alone else bundle.drafter
    request: dict[str, Any] = {"planner": lambda: planner, "max_new_tokens": tokens, "sampling": sampling}
    stream = Stream(bundle.target, drafter, bundle.text, "", ids, **request)
    row.answers.append(stream.run())
    row.rounds += stream.timed
    row.planning_seconds += planner.seconds


def summary(rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each way; `equal` counts answers with the tokens of the target alone."""
    base = rows[BASELINE]
    for way, row in rows.items():
        errors = row.errors()
        pairs = zip(row.answers, base.answers, strict=True)
        yield {
            "way": way,
            "tokens_per_second": decode_speed(row.answers),
            "ratio": decode_speed(row.answers) / decode_speed(base.answers),
            "tau": pooled_tau(row.answers),
            "rounds": rounds_by_kind(row.answers),
            "width": statistics.mean(len(one.done.tree) for one in row.rounds),
            "cost_error": statistics.median(errors) if errors else None,
            "planning_microseconds": 1e6 * row.planning_seconds / len(row.rounds),
            "equal": sum(ours.token_ids == plain.token_ids for ours, plain in pairs),
            "answers": len(row.answers),
        }


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """Return the figures as a table."""
    made = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("", "tokens/s", "ratio", "tau", "rounds", "width", "cost error", "us", "equal"):
        made.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for row in figures:
        error = row["cost_error"]
        made.add_row(
            row["way"],
            f"{row['tokens_per_second']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['tau']:.2f}",
            " ".join(f"{count} {kind}" for kind, count in row["rounds"].items()),
            f"{row['width']:.1f}",
            "-" if error is None else f"{error:.1%}",
            f"{row['planning_microseconds']:.0f}",
            f"{row['equal']}/{row['answers']}",
        )
    return made


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@questions.options
@click.option("--only", multiple=True, type=click.Choice(list(PLANNINGS)), help="Beside target-only.")
@click.option("--max-new-tokens", type=click.IntRange(2), default=96, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    bundle: Path,
    prompts: tuple[Path, ...],
    limit: int | None,
    only: tuple[str, ...],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    threads: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    sampling = Sampling(temperature, seed=seed if temperature else None)
    ways = list(dict.fromkeys((BASELINE, *(only or PLANNINGS))))
    with open_bundle(bundle, threads=threads) as engines:
        asked = [question.ids for question in questions.load(engines.text, prompts, limit)]
        costs = asdict(engines.planners.costs)
        rows = measure(engines, ways, asked, max_new_tokens, sampling)
    figures = list(summary(rows))
    Console(width=environment.WIDE).print(table(figures))
    click.echo(
        f"{len(asked)} prompts, at most {max_new_tokens} new tokens, temperature {temperature:g}, {threads} "
        f"threads, {machine['processor']}; load average before {machine['load_average']}"
    )
    if report is not None:
        environment.write(report, machine, {"figures": figures, "costs": costs})


if __name__ == "__main__":
    environment.run(main)
