"""Throughput and latency of many clients: in turns and in slots, without speculation and with it.

    python -m benchmarks.serving BUNDLE --prompts FILE.jsonl --clients 8 --slots 1 --slots 8 --peers

Closed loops: so many clients each ask again when they are answered. Poisson arrivals: so many requests a
second on average, whatever is still being answered. One slot answers in turns. Every answer is compared with
that of the target alone, and one that differs is judged as by `poss-export verify`; those of peers are
counted. What `serve` is held to is told last.

Exits with 1 on a mismatch.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from benchmarks import divergences, environment, questions
from benchmarks.compare import open_peers
from benchmarks.contestants import QUALITY
from benchmarks.loads import Answered, Load, Run
from benchmarks.peer_servers import SERVERS, set_up
from benchmarks.questions import Question
from benchmarks.serving_report import Cell, Way, goals, results, table
from benchmarks.workers import Setup, Worker
from poss_export.evaluation.answers import answer
from poss_export.evaluation.equality import find_divergence, first_difference
from poss_export.evaluation.latency import milliseconds, target_calls
from poss_export.runtime.async_bundle import Answers
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.sampling import GREEDY
from poss_export.runtime.scheduler import Done, Scheduler

_STEPS, _BEHIND = 60, 128  # plain steps that are timed, and the tokens before them


class Clients:
    """All clients of one load; ours."""

    def __init__(self, scheduler: Scheduler, way: Way, tokens: int) -> None:
        """Begin with nobody."""
        self._scheduler, self._way, self._tokens = scheduler, way, tokens
        self._start = time.perf_counter()
        self.answered: list[Answered] = []

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._start

    async def run(self, load: Load, asked: Sequence[list[int]], seed: int) -> float:
        """Let the questions be asked; return the seconds until all are answered."""
        left = enumerate(asked)
        if load.clients is not None:
            await asyncio.gather(*(self._loop(left) for _ in range(load.clients)))
        else:
            async with asyncio.TaskGroup() as group:
                for (number, ids), due in zip(left, load.arrivals(len(asked), seed), strict=True):
                    await asyncio.sleep(due - self.now)
                    group.create_task(self._ask(number, ids))
        return self.now

    async def _loop(self, left: Iterator[tuple[int, list[int]]]) -> None:
        for number, ids in left:
            await self._ask(number, ids)

    async def _ask(self, number: int, ids: list[int]) -> None:
        asked, pieces = self.now, list[tuple[float, int]]()
        answers = Answers(self._scheduler)
        answers.submit(ids, max_new_tokens=self._tokens, target_only=self._way.target_only)
        async for _, event in answers:
            if isinstance(event, Done):
                made = event.generation
                self.answered.append(Answered(number, made.token_ids, asked, tuple(pieces), made))
            elif event.token_ids:
                pieces.append((self.now, len(event.token_ids)))


class Judge:
    """Compares answers with those of the target alone."""

    def __init__(self, bundle: Bundle, asked: Sequence[Question], alone: dict[str, Generation]) -> None:
        """Keep the arguments; `alone` by place."""
        self._bundle, self._asked, self._alone = bundle, asked, alone

    def ours(self, answered: Sequence[Answered], way: Way) -> dict[str, dict[str, Any]]:
        """Return the answers that part, by number and place, judged."""
        manifest, parted = self._bundle.manifest, {}
        beside = way.slots > 1 and manifest.beside is not None
        for one in answered:
            assert one.made is not None, "ours has one"
            question, chains = self._asked[one.number], one.made.chains
            tie = manifest.exactness.tie(chains, beside=beside)
            ids = one.token_ids, self._alone[question.place].token_ids
            found = find_divergence(self._bundle.target, question.ids, *ids, GREEDY, tie)
            if found is not None:
                parted[f"{one.number + 1}, {question.place}"] = divergences.judged(
                    found, manifest.exactness, chains, beside=beside
                )
        return parted

    def theirs(self, answered: Sequence[Answered]) -> dict[str, dict[str, Any]]:
        """Return where the answers of a peer part, whose kernels are others."""
        parted = {}
        for one in answered:
            place = self._asked[one.number].place
            position = first_difference(one.token_ids, self._alone[place].token_ids)
            if position is not None:
                parted[f"{one.number + 1}, {place}"] = {"position": position}
        return parted


def batch_of_one(several: Bundle, single: Bundle) -> float:
    """Return how many times as fast a plain step is in a session of several slots as in that of one."""
    vocab = several.manifest.target.config.vocab_size
    context = min(_BEHIND, several.manifest.capacity - 1)
    calls = [target_calls(bundle.target, vocab, context, [1])[1] for bundle in (several, single)]
    times = [[milliseconds(call) for call in calls] for _ in range(_STEPS)]
    ours, plain = (float(median(taken)) for taken in zip(*times, strict=True))
    return plain / ours


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@questions.options
@click.option("--clients", type=click.IntRange(1), multiple=True, help="Closed loop of so many; repeatable.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), multiple=True, help="Requests a second.")
@click.option("--slots", type=click.IntRange(1), multiple=True, default=(1,), help="Answers at once.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--peers", is_flag=True, help="Measure peers of the bundle's precision, too.")
@click.option("--target", help="Checkpoint of the bundle's target, for the peers.  [default: as recorded]")
@click.option("--cache", default="out/peers", type=click.Path(path_type=Path), help="Where peers' models go.")
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
    repeats: int,
    peers: bool,
    target: str | None,
    cache: Path,
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
    missing, one_slot = dict[str, str](), None
    with ExitStack() as stack:
        engines = stack.enter_context(open_bundle(bundle, threads=threads, slots=max(slots)))
        manifest, servers = engines.manifest, dict[str, Any]()
        if peers:
            setups, missing = set_up(
                QUALITY[manifest.label("target")],
                partial(open_peers, manifest, target, cache),
                lambda model: Setup(model, manifest.text.stop_ids, manifest.capacity, threads),
            )
            servers = {
                name: stack.enter_context(Worker(SERVERS[name].open, setup)) for name, setup in setups.items()
            }
        known = questions.load(engines.text, prompts, limit)
        asked = [*islice(cycle(known), requests)]
        ids = [question.ids for question in asked]
        alone = {one.place: answer(engines, one.ids, max_new_tokens, target_only=True) for one in known}
        answer(engines, known[0].ids, max_new_tokens, target_only=False)  # warms up, measures costs
        for server in servers.values():
            server(Load(clients=1), ids[:1], max_new_tokens, seed)
        judge = Judge(engines, asked, alone)
        answering: list[Way | str] = [*ways, *servers]
        cells = {(load, str(way)): Cell(load, str(way), []) for load in loads for way in answering}
        trials = [(load, way) for _ in range(repeats) for load in loads for way in answering]
        for load, way in track(trials, "measuring", console=Console(stderr=True), transient=True):
            if isinstance(way, Way):
                seconds, answered = _measure(engines, way, max_new_tokens, load, ids, seed)
                run = Run(seconds, answered, judge.ours(answered, way))
            else:
                seconds, answered = servers[way](load, ids, max_new_tokens, seed)
                run = Run(seconds, answered, judge.theirs(answered))
            cells[load, str(way)].runs.append(run)
        if max(slots) > 1:
            with open_bundle(bundle, threads=threads) as single:
                one_slot = batch_of_one(engines, single)
    reached = goals([*cells.values()], max(slots), one_slot)
    mismatches = _tell([*cells.values()], {str(way) for way in ways}, missing)
    for goal in reached:
        click.echo(goal)
    if report is not None:
        environment.write(report, machine, results([*cells.values()], reached, missing))
    sys.exit(bool(mismatches))


def _tell(cells: Sequence[Cell], ours: set[str], missing: dict[str, str]) -> int:
    """Print what was found; return how many answers of ours are wrong."""
    Console(width=environment.WIDE).print(table(cells))
    for name, reason in missing.items():
        click.echo(f"not measured: {name}: {reason}")
    runs = [(cell, run) for cell in cells if cell.way in ours for run in cell.runs]
    for cell, run in runs:
        for place, found in run.parted.items():
            click.echo(divergences.line(f"{cell.load}, {cell.way}: {place}", found))
    parted = [run.parted for _, run in runs]
    click.echo(divergences.totals(sum(len(run.answered) for _, run in runs), parted))
    return divergences.count(parted, "mismatch")


def _measure(
    engines: Bundle, way: Way, tokens: int, load: Load, ids: Sequence[list[int]], seed: int
) -> tuple[float, list[Answered]]:
    with Scheduler(engines, slots=way.slots, queue=len(ids)) as scheduler:
        clients = Clients(scheduler, way, tokens)
        seconds = asyncio.run(clients.run(load, ids, seed))
    return seconds, clients.answered


if __name__ == "__main__":
    environment.run(main)
