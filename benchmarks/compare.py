"""Compare engines on the same prompts in one run: tokens/s, ratios of medians, tau, equality of the tokens.

    python -m benchmarks.compare BUNDLE ... --prompts FILE.jsonl

Several bundles, one of each precision, are compared in one run with all peers: a table by precision, and one
of everybody's best.

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
from benchmarks.contestants import ENGINES, OURS, QUALITY, Contestant, is_baseline, line_up
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
    return next((row for row in rows if is_baseline(row.name)), rows[0])


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


def by_precision(
    rows: list[Row], contestants: Mapping[str, Contestant], read: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each row beside those of its quality; finer ones first.

    `equal_to_plain`: answers that are those of the same engine without its speculation, where both ran.
    """
    named = {row.name: row for row in rows}
    found = {}
    for quality in dict.fromkeys(QUALITY.values()):
        part = [row for row in rows if contestants[row.name].quality == quality]
        figures = list(summary(part, read)) if part else []
        for row in figures:
            plain = named.get(contestants[row["engine"]].plain or "")
            answers = named[row["engine"]].answers[0]
            row["equal_to_plain"] = plain and len(answers) - len(named[row["engine"]].differences(plain))
        if figures:
            found[quality] = figures
    return found


def best(figures: Sequence[Mapping[str, Any]], contestants: Mapping[str, Contestant]) -> list[dict[str, Any]]:
    """Return the fastest row of every maker, the fastest first, with its ratio to ours, or to the first."""
    fastest = dict[str, Mapping[str, Any]]()
    for row in sorted(figures, key=lambda row: -float(row["tokens_per_second"])):
        fastest.setdefault(contestants[row["engine"]].kind.maker, row)
    base = fastest.get(OURS) or next(iter(fastest.values()))
    names = ("engine", "tokens_per_second", "decode_tokens_per_second", "tau")
    return [
        {
            "maker": maker,
            **{name: row[name] for name in names},
            "ratio": row["tokens_per_second"] / base["tokens_per_second"],
        }
        for maker, row in fastest.items()
    ]


def results(
    rows: list[Row],
    asked: Sequence[Question],
    contestants: Mapping[str, Contestant],
    missing: Sequence[str],
) -> dict[str, Any]:
    """Return all that was found, as JSON values."""
    read = prompt_tokens(asked)
    figures = list(summary(rows, read))
    return {
        "not_installed": missing,
        "qualities": {name: contestant.quality for name, contestant in contestants.items()},
        "baseline": baseline_of(rows).name,
        "prompts": [{"place": q.place, "kind": q.kind, "tokens": len(q.ids)} for q in asked],
        "figures": figures,
        "precisions": by_precision(rows, contestants, read),
        "best": best(figures, contestants),
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


def read_bundles(folders: Sequence[Path]) -> dict[Path, Manifest]:
    """Return the manifests of bundles of one target.

    Raises:
        InputError: their targets differ.
    """
    manifests = {folder: read_manifest(folder) for folder in folders}
    if len({manifest.target.sha256 for manifest in manifests.values()}) > 1:
        raise InputError("the bundles are of different targets; name bundles of one")
    return manifests


def ask_every_turn(
    asked: Iterable[Question], text: Text, workers: Mapping[str, Engine], tokens: int
) -> list[Question]:
    """Return a question for each turn; all engines are asked it behind the baseline's earlier answers."""
    name = next(filter(is_baseline, workers), next(iter(workers)))
    answers = workers[name]
    return list(questions.every_turn(asked, text, lambda ids: answers(ids, tokens).token_ids))


@click.command(help=__doc__.partition("\n")[0])
@click.argument(
    "bundles", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--target", help="Checkpoint of the bundles' target, for the peers.  [default: as recorded]")
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--only", multiple=True, type=click.Choice(list(ENGINES)), help="Measure these engines only.")
@click.option("--cache", default="out/peers", type=click.Path(path_type=Path), help="Where peers' models go.")
@click.option("--json", "report", type=environment.REPORT, help="Write figures and answers here.")
def main(
    bundles: tuple[Path, ...],
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
    manifests = read_bundles(bundles)
    manifest = manifests[bundles[0]]
    text = Text((bundles[0] / TOKENIZER).read_text(encoding="utf-8"), manifest.text)
    found = questions.load(text, prompts, limit)
    machine = environment.record()
    labels = {folder: one.label("target") for folder, one in manifests.items()}
    contestants = line_up(labels, only)
    missing = [name for name, one in contestants.items() if find_spec(one.kind.module) is None]
    if len(missing) == len(contestants):
        raise InputError(f"not installed: {', '.join(missing)}; see benchmarks/README.md, or name others")
    capacity = min(one.capacity for one in manifests.values())
    setups = {}
    for name, one in contestants.items():
        if name not in missing:
            files = one.kind.files
            model = one.bundle or (files and files(open_peers(manifest, target, cache)))
            assert model is not None
            setups[name] = Setup(model, manifest.text.stop_ids, capacity, threads)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(contestants[name].kind.open, setups[name])) for name in setups
        }
        asked = ask_every_turn(found, text, workers, max_new_tokens)
        rows = measure(workers, [question.ids for question in asked], max_new_tokens, repeats)
    values = results(rows, asked, contestants, missing)
    print_results(values)
    click.echo(
        f"{len(asked)} prompts, at most {max_new_tokens} new tokens, {repeats} repeats, {threads} threads, "
        f"{machine['processor']}; load average before {machine['load_average']}"
    )
    if report is not None:
        environment.write(report, machine, values)


if __name__ == "__main__":
    environment.run(main)
