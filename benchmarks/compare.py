"""Compare engines on the same prompts in one run: tokens/s, ratios of medians, tau, equality of the tokens.

    python -m benchmarks.compare BUNDLE --prompts FILE.jsonl

Every engine lives in a process of its own and they take turns, prompt by prompt, in a rotating order,
so that noise of the machine hits all alike. Greedy, one sequence, the chat template.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks import environment, questions
from benchmarks.answers import Answer, Engine
from benchmarks.compare_report import print_results
from benchmarks.contestants import BASELINE, ENGINES, QUALITY
from benchmarks.peers import Peers
from benchmarks.questions import Question
from benchmarks.workers import Setup, Worker
from poss_export.errors import InputError
from poss_export.evaluation import metrics
from poss_export.evaluation.equality import first_difference
from poss_export.manifest import TOKENIZER, Manifest, read_manifest
from poss_export.targets.checkpoint import open_target
from poss_export.text import Text


@dataclass
class Row:
    """What one engine did: its answers by repeat, then by prompt."""

    name: str
    answers: list[list[Answer]] = field(default_factory=list)

    def speeds(self) -> list[float]:
        """Return tokens/s of each repeat, prefill included."""
        return [metrics.tokens_per_second(run) for run in self.answers]

    def decode_speed(self) -> float:
        """Return tokens/s without prefill, the median of the repeats."""
        return statistics.median(map(metrics.decode_speed, self.answers))

    def of(self, prompts: Sequence[int]) -> "Row":
        """Return what it did with these prompts only."""
        return Row(self.name, [[run[prompt] for prompt in prompts] for run in self.answers])

    def differences(self, other: "Row") -> list[tuple[int, int]]:
        """Return (prompt, position) of the first token that differs from `other`, where one does."""
        pairs = enumerate(zip(self.answers[0], other.answers[0], strict=True))
        found = ((prompt, first_difference(a.token_ids, b.token_ids)) for prompt, (a, b) in pairs)
        return [(prompt, position) for prompt, position in found if position is not None]


def measure(workers: Mapping[str, Engine], prompts: list[list[int]], tokens: int, repeats: int) -> list[Row]:
    """Let the workers take turns; the first prompt is answered once before, to warm up."""
    rows = {name: Row(name, [[] for _ in range(repeats)]) for name in workers}
    names = list(workers)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(names) * (repeats * len(prompts) + 1))
        for name in names:
            workers[name](prompts[0], tokens)
            progress.advance(task)
        for repeat in range(repeats):
            for turn, ids in enumerate(prompts):
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    rows[name].answers[repeat].append(workers[name](ids, tokens))
                    progress.advance(task)
    return list(rows.values())


def prompt_tokens(asked: Iterable[Question]) -> int:
    """Return the tokens of all prompts."""
    return sum(len(question.ids) for question in asked)


def baseline_of(rows: list[Row]) -> Row:
    """Return what ratios and equality are against: target-only, or the first where that is not measured."""
    return next((row for row in rows if row.name == BASELINE), rows[0])


def summary(rows: list[Row], read: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each row, medians over repeats; ratios and equality are to `baseline_of` them.

    `read`: the tokens of all prompts.
    """
    baseline = baseline_of(rows)
    for row in rows:
        speeds, differences = row.speeds(), row.differences(baseline)
        yield {
            "engine": row.name,
            "tokens_per_second": statistics.median(speeds),
            "tokens_per_second_by_repeat": speeds,
            "ratio": statistics.median(speeds) / statistics.median(baseline.speeds()),
            "prefill_tokens_per_second": statistics.median(
                metrics.prefill_speed(run, read) for run in row.answers
            ),
            "decode_tokens_per_second": row.decode_speed(),
            "decode_ratio": row.decode_speed() / baseline.decode_speed(),
            "tau": metrics.pooled_tau(row.answers[0]),
            "tokens": sum(answer.tokens for answer in row.answers[0]),
            "equal_answers": len(row.answers[0]) - len(differences),
            "first_differences": differences,
        }


def by_kind(rows: list[Row], asked: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Return, for each kind of text, how many prompts it has and the `figures` of each row on them."""
    found = {}
    for kind in dict.fromkeys(question.kind for question in asked):
        chosen = [index for index, question in enumerate(asked) if question.kind == kind]
        part = [row.of(chosen) for row in rows]
        figures = list(summary(part, prompt_tokens([asked[index] for index in chosen])))
        for row in figures:
            del row["first_differences"]  # they count the prompts of the kind: the whole has them
        found[kind] = {"prompts": len(chosen), "figures": figures}
    return found


def results(
    rows: list[Row], asked: Sequence[Question], qualities: Mapping[str, str], missing: Sequence[str]
) -> dict[str, Any]:
    """Return all that was found, as JSON values."""
    return {
        "not_installed": missing,
        "qualities": qualities,
        "baseline": baseline_of(rows).name,
        "prompts": [{"place": q.place, "kind": q.kind, "tokens": len(q.ids)} for q in asked],
        "figures": list(summary(rows, prompt_tokens(asked))),
        "kinds": by_kind(rows, asked),
        "answers": {row.name: [list(map(asdict, run)) for run in row.answers] for row in rows},
    }


def open_peers(manifest: Manifest, target: str | None, cache: Path) -> Peers:
    """Return the maker of the peers' models, from the checkpoint that the bundle was built from."""
    checkpoint = open_target(target or manifest.target.name)
    if checkpoint.sha256 != manifest.target.sha256:
        raise InputError(
            f"the bundle was built from another target than {checkpoint.name!r}: pass that one with --target"
        )
    return Peers(checkpoint, cache)


def ask_every_turn(
    asked: Iterable[Question], text: Text, workers: Mapping[str, Engine], tokens: int
) -> list[Question]:
    """Return a question for each turn; all engines are asked it behind the baseline's earlier answers."""
    answers = workers.get(BASELINE) or next(iter(workers.values()))
    return list(questions.every_turn(asked, text, lambda ids: answers(ids, tokens).token_ids))


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--target", help="Checkpoint of the bundle's target, for the peers.  [default: as recorded]")
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--only", multiple=True, type=click.Choice(list(ENGINES)), help="Measure these engines only.")
@click.option("--cache", default="out/peers", type=click.Path(path_type=Path), help="Where peers' models go.")
@click.option("--json", "report", type=environment.REPORT, help="Write figures and answers here.")
def main(
    bundle: Path,
    target: str | None,
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    repeats: int,
    threads: int,
    only: tuple[str, ...],
    cache: Path,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    manifest = read_manifest(bundle)
    text = Text((bundle / TOKENIZER).read_text(encoding="utf-8"), manifest.text)
    found = questions.load(text, prompts, limit)
    machine = environment.record()
    kinds = {name: ENGINES[name] for name in only or ENGINES}
    missing = [name for name, kind in kinds.items() if find_spec(kind.module) is None]
    if len(missing) == len(kinds):
        raise InputError(f"not installed: {', '.join(missing)}; see benchmarks/README.md, or name others")
    setups = {}
    for name, kind in kinds.items():
        if name not in missing:
            model = kind.files(open_peers(manifest, target, cache)) if kind.files else bundle
            setups[name] = Setup(model, manifest.text.stop_ids, manifest.capacity, threads)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(kinds[name].open, setups[name])) for name in setups}
        asked = ask_every_turn(found, text, workers, max_new_tokens)
        rows = measure(workers, [question.ids for question in asked], max_new_tokens, repeats)
    qualities = {name: kind.quality or QUALITY[manifest.label("target")] for name, kind in kinds.items()}
    values = results(rows, asked, qualities, missing)
    print_results(values)
    click.echo(
        f"{len(asked)} prompts, at most {max_new_tokens} new tokens, {repeats} repeats, {threads} threads, "
        f"{machine['processor']}; load average before {machine['load_average']}"
    )
    if report is not None:
        environment.write(report, machine, values)


if __name__ == "__main__":
    environment.run(main)
