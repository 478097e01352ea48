"""What each drafter is worth: acceptance by depth, tau of a chain and of trees, speed, on the same prompts.

    python -m benchmarks.drafters smollm2-135m eagle poss-2 --prompts FILE --json TABLE.json --plot TABLE.png

A DRAFTER is a shipped one or a folder of `poss-export train`, a tree is DEPTH,TOP_K,NODES. Rows that the
--json file has are not measured again. Exits with 1 on a mismatch with target-only (benchmarks/lossless.py).
"""

import hashlib
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from benchmarks import environment, questions
from benchmarks.contestants import BASELINE
from benchmarks.divergences import count, judged
from benchmarks.drafters_file import check_outputs, find_row, merged, read_rows, training_of
from benchmarks.drafters_report import Row, plot_rows, print_rows
from benchmarks.questions import Question
from benchmarks.trees import parse_tree, tree_name
from poss_export.bundling.tuning import capacity_for, exported, paired, plan_pair
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter
from poss_export.errors import InputError, PossExportError
from poss_export.evaluation.answers import answer, take_turns
from poss_export.evaluation.equality import find_divergence
from poss_export.evaluation.metrics import (
    alpha,
    decode_speed,
    mean_tau,
    pooled_tau,
    round_parts,
    tokens_per_second,
)
from poss_export.prompts import spread
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation
from poss_export.targets.checkpoint import Target, open_target
from poss_export.training.held_out import DEPTH, TREES


@dataclass(frozen=True)
class Task:
    """What every drafter has to do: answer `asked` with each tree, and `timed` in turns with the target."""

    asked: list[Question]
    timed: list[Question]
    tokens: int  # an answer has at most
    trees: tuple[TreeShape, ...]
    speed_tree: TreeShape

    @property
    def capacity(self) -> int:
        """Tokens that the caches must hold."""
        ids = [question.ids for question in self.asked]
        return capacity_for(ids, self.tokens, (*self.trees, self.speed_tree))

    def key(self, target: Target, drafter: DrafterCheckpoint) -> dict[str, Any]:
        """Return all that a row's figures depend on besides the machine, as JSON values."""
        ids = json.dumps([question.ids for question in self.asked])
        return {
            "target_sha256": target.sha256,
            "drafter_sha256": drafter.sha256,
            "prompts_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "max_new_tokens": self.tokens,
            "trees": [tree_name(tree) for tree in self.trees],
            "speed_tree": tree_name(self.speed_tree),
            "timed_prompts": len(self.timed),
        }


def chain_of(drafter: DrafterCheckpoint) -> TreeShape:
    """Return the chain that acceptance is measured with: as deep as the drafter drafts, at most 6."""
    longest = drafter.drafter.config.longest_draft or DEPTH
    depth = min(DEPTH, longest)
    return TreeShape(depth, top_k=1, nodes=depth)


def tau_figures(tree: TreeShape, answers: Sequence[Generation]) -> dict[str, Any]:
    """Return tau with a tree: over all rounds (`tau`), and the mean of the answers' own (`tau_by_prompt`)."""
    return {
        "tree": tree_name(tree),
        "tau": pooled_tau(answers),
        "tau_by_prompt": mean_tau(answers),
        "rounds": sum(made.rounds for made in answers),
        "tokens": sum(made.tokens for made in answers),
    }


def speed_figures(tree: TreeShape, ours: Sequence[Generation], plain: Sequence[Generation]) -> dict[str, Any]:
    """Return the parts of a round in milliseconds, tokens/s and ratios to target-only, prompt by prompt.

    `ratio` is of tokens/s with prefill, `decode_ratio` without; `median_ratio` is the median of the prompts'.
    """
    speed, baseline = tokens_per_second(ours), tokens_per_second(plain)
    pairs = zip(ours, plain, strict=True)
    return {
        "tree": tree_name(tree),
        "prompts": len(ours),
        "tau": pooled_tau(ours),
        "milliseconds": round_parts(ours),
        "tokens_per_second": speed,
        "ratio": speed / baseline,
        "decode_ratio": decode_speed(ours) / decode_speed(plain),
        "median_ratio": statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs),
        BASELINE: {"milliseconds": round_parts(plain)["round"], "tokens_per_second": baseline},
    }


def measure(
    bundle: Bundle, target: Target, drafter: DrafterCheckpoint, task: Task, plain: Sequence[Generation]
) -> Row:
    """Return the figures of one drafter; `plain` are the target's own answers to all that is asked."""
    chain = chain_of(drafter)
    row: Row = {"environment": environment.record(), "divergences": {}}
    answers: dict[TreeShape, list[Generation]] = {}
    for tree in dict.fromkeys((chain, *task.trees, task.speed_tree)):
        name = f"tree {tree_name(tree)}"
        with paired(bundle, target, drafter, tree):
            if tree in (chain, *task.trees):
                answers[tree] = [
                    answer(bundle, question.ids, task.tokens, target_only=False, planning=None)
                    for question in watched(task.asked, f"{drafter.name}, {name}")
                ]
                row["divergences"] |= parted(name, bundle, task.asked, answers[tree], plain)
            if tree == task.speed_tree:
                ours, own = timed_answers(bundle, watched(task.timed, f"{drafter.name}, speed"), task)
                row["divergences"] |= parted(f"timed {name}", bundle, task.timed, ours, own)
                row["speed"] = speed_figures(tree, ours, own)
    row["answers"] = len(task.asked) * len(answers) + len(task.timed)
    row["acceptance"] = alpha(answers[chain], chain.depth)
    row["chain"] = tau_figures(chain, answers[chain])
    row["trees"] = [tau_figures(tree, answers[tree]) for tree in task.trees]
    return row


def timed_answers(
    bundle: Bundle, timed: Iterable[Question], task: Task
) -> tuple[list[Generation], list[Generation]]:
    """Return speculative and target-only answers, made in turns after one of each that warms up."""
    take_turns(bundle, [question.ids for question in task.timed[:1]], task.tokens, planning=None)
    return take_turns(bundle, (question.ids for question in timed), task.tokens, planning=None)


def parted(
    answers: str,
    bundle: Bundle,
    asked: Sequence[Question],
    ours: Sequence[Generation],
    plain: Sequence[Generation],
) -> dict[str, Any]:
    """Return where our answers, called `answers`, part from target-only; by question, as JSON values."""
    found = {}
    for question, mine, other in zip(asked, ours, plain, strict=True):
        divergence = find_divergence(bundle.target, question.ids, mine.token_ids, other.token_ids)
        if divergence is not None:
            place = f"{answers}, {question.place}"
            found[place] = judged(divergence, bundle.manifest.exactness, mine.chains)
    return found


def watched(asked: Sequence[Question], what: str) -> Iterable[Question]:
    """Yield the questions under a progress bar, where there is a terminal."""
    console = Console(stderr=True)
    return track(asked, what, console=console, transient=True, disable=not console.is_terminal)


def facts(spec: str, drafter: DrafterCheckpoint) -> Row:
    """Return what needs no measurement: name, parameters, and the training that its folder records."""
    return {"drafter": drafter.name, "parameters": drafter.parameters, "training": training_of(spec)}


def load_drafters(specs: Sequence[str], target: Target, task: Task) -> dict[str, DrafterCheckpoint]:
    """Return the drafters by what names them; raises where one cannot do the task."""
    loaded = {spec: load_drafter(spec) for spec in specs}
    names = [drafter.name for drafter in loaded.values()]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two drafters are named {', '.join(doubled)}: rename one of the folders")
    for drafter in loaded.values():
        for tree in (chain_of(drafter), *task.trees, task.speed_tree):
            try:
                plan_pair(target, drafter, tree, task.capacity)
            except PossExportError as error:
                raise type(error)(f"{drafter.name}, tree {tree_name(tree)}: {error}") from error
    return loaded


def measure_all(
    target: Target, drafters: Mapping[str, DrafterCheckpoint], task: Task
) -> Iterator[tuple[str, Row]]:
    """Yield what names each drafter and its figures, as soon as they are there."""
    if not drafters:
        return
    with exported(target, task.capacity) as bundle:
        plain = [
            answer(bundle, question.ids, task.tokens, target_only=True)
            for question in watched(task.asked, BASELINE)
        ]
        for number, (spec, drafter) in enumerate(drafters.items(), start=1):
            row = measure(bundle, target, drafter, task, plain)
            yield spec, {"measured": task.key(target, drafter), **row}
            click.echo(f"{drafter.name} is measured, {number} of {len(drafters)}", err=True)


@click.command(help=__doc__.partition("\n")[0])
@click.argument("target")
@click.argument("drafters", metavar="DRAFTER...", nargs=-1, required=True)
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option(
    "--tree",
    "trees",
    metavar="DEPTH,TOP_K,NODES",
    multiple=True,
    default=[tree_name(tree) for tree in TREES],
    show_default=True,
    help="Measure tau with this tree; may be repeated.",
)
@click.option(
    "--speed-tree",
    metavar="DEPTH,TOP_K,NODES",
    default=tree_name(TreeShape()),
    show_default=True,
    help="Measure speed with this tree.",
)
@click.option("--speed-limit", type=click.IntRange(1), help="Time so many of the prompts, spread evenly.")
@click.option("--again", is_flag=True, help="Measure also what the --json file has.")
@click.option("--json", "report", type=environment.REPORT, help="Keep the rows here, each once it is there.")
@click.option("--plot", type=environment.REPORT, help="Draw acceptance and tau here, as PNG.")
def main(
    target: str,
    drafters: tuple[str, ...],
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    trees: tuple[str, ...],
    speed_tree: str,
    speed_limit: int | None,
    again: bool,
    report: Path | None,
    plot: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    check_outputs(report, plot)
    kept = [] if report is None else read_rows(report)
    opened = open_target(target)
    asked = questions.load(opened.text, prompts, limit)
    shapes = tuple(dict.fromkeys(map(parse_tree, trees)))
    timed = spread(asked, speed_limit)
    task = Task(asked, timed, max_new_tokens, shapes, parse_tree(speed_tree))
    loaded = load_drafters(drafters, opened, task)
    known = {spec: facts(spec, drafter) for spec, drafter in loaded.items()}
    keys = {spec: task.key(opened, drafter) for spec, drafter in loaded.items()}
    waiting = {s: loaded[s] for s, key in keys.items() if again or find_row(kept, key) is None}

    def keep(spec: str, figures: Row) -> Row:
        nonlocal kept
        row = {**figures, **known[spec]}  # the facts of a row from the file may have changed
        kept = merged(kept, row)
        if report is not None:
            values = {"target": {"name": opened.name, "parameters": opened.parameters}, "drafters": kept}
            environment.write(report, machine, values)
        return row

    for spec, figures in measure_all(opened, waiting, task):
        keep(spec, figures)
    rows = [keep(spec, row) for spec, key in keys.items() if (row := find_row(kept, key))]
    print_rows(rows, opened.parameters)
    click.echo(
        f"{len(asked)} prompts, at most {max_new_tokens} new tokens; {len(timed)} of them timed with tree "
        f"{speed_tree}; {environment.cores()} threads, {machine['processor']}; "
        f"load average before {machine['load_average']}"
    )
    if plot is not None:
        plot_rows(plot, rows)
    sys.exit(bool(count((row["divergences"] for row in rows), "mismatch")))


if __name__ == "__main__":
    environment.run(main)
