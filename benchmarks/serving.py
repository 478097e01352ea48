"""Throughput and latency of many clients: in turns and in slots, without speculation and with it.

    python -m benchmarks.serving BUNDLE --prompts FILE.jsonl --clients 1 --clients 8 --rate 0.5 --slots 1

Closed loops: so many clients each ask again when they are answered. Poisson arrivals: so many requests a
second on average, whatever is still being answered. One slot answers in turns. Every answer is compared with
that of the target alone, and one that differs is judged as by `poss-export verify`.

Exits with 1 on a mismatch.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import divergences, environment, questions
from benchmarks.questions import Question
from poss_export.evaluation.answers import answer
from poss_export.evaluation.equality import find_divergence
from poss_export.evaluation.metrics import pooled_tau
from poss_export.runtime.async_bundle import Answers
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.sampling import GREEDY
from poss_export.runtime.scheduler import Done, Scheduler


@dataclass(frozen=True)
class Load:
    """How requests come: from so many clients, each after its last answer, or at a rate a second."""

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.clients} clients" if self.clients is not None else f"{self.rate:g} a second"


@dataclass(frozen=True)
class Way:
    """How they are answered."""

    slots: int
    target_only: bool

    def __str__(self) -> str:
        """Return it in words."""
        made = "in turns" if self.slots == 1 else f"{self.slots} slots"
        return f"{made}, {'target-only' if self.target_only else 'speculative'}"


@dataclass(frozen=True)
class Answered:
    """An answer as its client saw it; seconds are since the load began."""

    question: Question
    made: Generation
    asked: float
    pieces: tuple[tuple[float, int], ...]  # when each came, and its tokens

    @property
    def first(self) -> float:
        """Seconds until the first text."""
        return self.pieces[0][0] - self.asked

    @property
    def between(self) -> list[float]:
        """Seconds between tokens, those of a piece sharing its time alike."""
        gaps = zip(self.pieces, self.pieces[1:], strict=False)
        return [(late - early) / tokens for (early, _), (late, tokens) in gaps for _ in range(tokens)]


class Clients:
    """All clients of one load."""

    def __init__(self, scheduler: Scheduler, way: Way, tokens: int) -> None:
        """Begin with nobody."""
        self._scheduler, self._way, self._tokens = scheduler, way, tokens
        self._start = time.perf_counter()
        self.answered: list[Answered] = []

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._start

    async def run(self, load: Load, asked: Sequence[Question], seed: int) -> float:
        """Let the questions be asked; return the seconds until all are answered."""
        if load.rate is None:
            left = iter(asked)
            await asyncio.gather(*(self._loop(left) for _ in range(load.clients or 0)))
        else:
            gaps = np.random.default_rng(seed).exponential(1 / load.rate, len(asked))
            async with asyncio.TaskGroup() as group:
                for question, gap in zip(asked, gaps.tolist(), strict=True):
                    await asyncio.sleep(gap)
                    group.create_task(self._ask(question))
        return self.now

    async def _loop(self, left: Iterator[Question]) -> None:
        for question in left:
            await self._ask(question)

    async def _ask(self, question: Question) -> None:
        asked, pieces = self.now, list[tuple[float, int]]()
        answers = Answers(self._scheduler)
        answers.submit(question.ids, max_new_tokens=self._tokens, target_only=self._way.target_only)
        async for _, event in answers:
            if isinstance(event, Done):
                self.answered.append(Answered(question, event.generation, asked, tuple(pieces)))
            elif event.token_ids:
                pieces.append((self.now, len(event.token_ids)))


@dataclass(frozen=True)
class Cell:
    """What a way made of a load."""

    load: Load
    way: Way
    seconds: float
    answered: list[Answered]
    parted: dict[str, dict[str, Any]]  # answers that are not the target's alone, judged

    @property
    def tokens_per_second(self) -> float:
        """Of all clients together."""
        return sum(one.made.tokens for one in self.answered) / self.seconds

    def figures(self) -> dict[str, Any]:
        """Return what is kept, as JSON values; times in milliseconds."""
        between = [gap for one in self.answered for gap in one.between]
        return {
            "load": str(self.load),
            "way": str(self.way),
            "requests": len(self.answered),
            "tokens_per_second": self.tokens_per_second,
            "tau": pooled_tau([one.made for one in self.answered]),
            "first_ms": _percentiles([one.first for one in self.answered]),
            "between_ms": _percentiles(between),
            "parted": self.parted,
        }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    median, high = np.percentile(seconds or [0.0], [50, 95]).tolist()
    return {"p50": 1000 * median, "p95": 1000 * high}


def judge(bundle: Bundle, alone: dict[str, Generation], answered: Sequence[Answered]) -> dict[str, Any]:
    """Return the answers that part from the target's alone, by number and place."""
    parted = {}
    exactness = bundle.manifest.exactness
    for number, one in enumerate(answered, start=1):
        plain, chains = alone[one.question.place], one.made.chains
        tie = exactness.tie(chains)
        ids = (one.made.token_ids, plain.token_ids)
        if (found := find_divergence(bundle.target, one.question.ids, *ids, GREEDY, tie)) is not None:
            parted[f"{number}, {one.question.place}"] = divergences.judged(found, exactness, chains)
    return parted


def table(cells: Sequence[Cell]) -> Table:
    """Return a row a cell; ratios are to the target alone in turns under the same load."""
    columns = ("load", "way", "tokens/s", "ratio", "tau", "first p50", "p95", "between p50", "p95", "equal")
    rows = Table(*columns, box=None, pad_edge=False)
    base = {cell.load: cell.tokens_per_second for cell in cells if cell.way == Way(1, target_only=True)}
    for cell in cells:
        figures = cell.figures()
        ratio = cell.tokens_per_second / base[cell.load] if cell.load in base else float("nan")
        first, between = figures["first_ms"], figures["between_ms"]
        rows.add_row(
            str(cell.load),
            str(cell.way),
            f"{cell.tokens_per_second:.1f}",
            f"{ratio:.2f}",
            f"{figures['tau']:.2f}",
            *(f"{value:.0f} ms" for value in (first["p50"], first["p95"])),
            *(f"{value:.1f} ms" for value in (between["p50"], between["p95"])),
            f"{len(cell.answered) - len(cell.parted)} of {len(cell.answered)}",
        )
    return rows


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@questions.options
@click.option("--clients", type=click.IntRange(1), multiple=True, help="Closed loop of so many; repeatable.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), multiple=True, help="Requests a second.")
@click.option("--slots", type=click.IntRange(1), multiple=True, default=(1,), help="Answers at once.")
@click.option("--requests", type=click.IntRange(1), default=32, show_default=True, help="Of each load.")
@click.option("--max-new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the arrivals.")
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    bundle: Path,
    prompts: tuple[Path, ...],
    limit: int | None,
    clients: tuple[int, ...],
    rate: tuple[float, ...],
    slots: tuple[int, ...],
    requests: int,
    max_new_tokens: int,
    seed: int,
    threads: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    loads = [*(Load(clients=count) for count in clients), *(Load(rate=each) for each in rate)]
    loads = loads or [Load(clients=count) for count in (1, 2, 4, 8, 16)]
    ways = [Way(count, target_only) for count in dict.fromkeys(slots) for target_only in (True, False)]
    trials = [(load, way) for load in loads for way in ways]
    cells = list[Cell]()
    with open_bundle(bundle, threads=threads, slots=max(slots)) as engines:
        known = questions.load(engines.text, prompts, limit)
        asked = [*islice(cycle(known), requests)]
        alone = {one.place: answer(engines, one.ids, max_new_tokens, target_only=True) for one in known}
        answer(engines, known[0].ids, max_new_tokens, target_only=False)  # warms up, measures costs
        for load, way in track(trials, "measuring", console=Console(stderr=True), transient=True):
            with Scheduler(engines, slots=way.slots, queue=requests) as scheduler:
                seconds, answered = asyncio.run(_measure(scheduler, way, max_new_tokens, load, asked, seed))
            cells.append(Cell(load, way, seconds, answered, judge(engines, alone, answered)))
    Console(width=environment.WIDE).print(table(cells))
    for cell in cells:
        for place, found in cell.parted.items():
            click.echo(divergences.line(f"{cell.load}, {cell.way}: {place}", found))
    parted = [cell.parted for cell in cells]
    click.echo(divergences.totals(sum(len(cell.answered) for cell in cells), parted))
    if report is not None:
        environment.write(report, machine, {"cells": [cell.figures() for cell in cells]})
    sys.exit(bool(divergences.count(parted, "mismatch")))


async def _measure(
    scheduler: Scheduler, way: Way, tokens: int, load: Load, asked: Sequence[Question], seed: int
) -> tuple[float, list[Answered]]:
    clients = Clients(scheduler, way, tokens)
    seconds = await clients.run(load, asked, seed)
    return seconds, clients.answered


if __name__ == "__main__":
    environment.run(main)
