"""Compare greedy speculative and target-only tokens on many prompts; print tau by depth on the way.

    python -m benchmarks.lossless BUNDLE --prompts FILE.jsonl --prompts FILE.jsonl

Exits with 1 on a mismatch. A divergence at a near-tie (`evaluation/checks.py`) is none: rounding decides
between the target's two likeliest tokens there, and it is listed with its gap.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import environment, questions
from benchmarks.cost import pooled_tau
from benchmarks.questions import Question
from poss_export.evaluation.checks import Divergence, find_divergence
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Generation, Stream


def answer(bundle: Bundle, question: Question, tokens: int, *, target_only: bool) -> Generation:
    """Return the greedy answer."""
    drafter = None if target_only else environment.drafter_of(bundle)
    return Stream(bundle.target, drafter, bundle.text, "", question.ids, max_new_tokens=tokens).run()


def depth_table(answers: dict[str, list[Generation]]) -> Table:
    """Return, for each file, tau and the share of rounds that accepted each depth."""
    depth = max(len(a.accepted_by_depth) for group in answers.values() for a in group)
    columns = ("prompts", "answers", "tokens", "tau", *(f"depth {d + 1}" for d in range(depth)))
    table = Table(*columns, box=None, pad_edge=False)
    for name, group in answers.items():
        rounds, *accepted = rounds_by_depth(group, depth)
        tokens = sum(a.tokens for a in group)
        shares = (f"{count / max(rounds, 1):.3f}" for count in accepted)
        table.add_row(name, str(len(group)), str(tokens), f"{pooled_tau(group):.3f}", *shares)
    return table


def rounds_by_depth(answers: Sequence[Generation], depth: int) -> list[int]:
    """Return how many rounds emitted a drafted token of depth 0 (all rounds), 1, ... up to `depth`."""
    counts = [(a.rounds, *a.accepted_by_depth) for a in answers]
    return [sum(count[d] for count in counts if d < len(count)) for d in range(depth + 1)]


def divergence_line(place: str, found: Divergence) -> str:
    """Return what is printed of an answer that differs from target-only."""
    kind = "near-tie" if found.near_tie else "MISMATCH"
    return f"{kind}: {place}, token {found.position}, gap {found.gap:.2e}"


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    bundle: Path,
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    threads: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    answers: dict[str, list[Generation]] = {}
    divergences: dict[str, Divergence] = {}
    with open_bundle(bundle, threads=threads) as engines:
        asked = questions.load(engines.text, prompts, limit)
        for question in track(asked, "comparing", console=Console(stderr=True), transient=True):
            ours = answer(engines, question, max_new_tokens, target_only=False)
            plain = answer(engines, question, max_new_tokens, target_only=True)
            answers.setdefault(question.source.rpartition(":")[0], []).append(ours)
            found = find_divergence(engines.target, question.ids, ours.token_ids, plain.token_ids)
            if found is not None:
                divergences[question.source] = found
    near_ties = sum(found.near_tie for found in divergences.values())
    mismatches = len(divergences) - near_ties
    Console().print(depth_table(answers))
    for source, found in divergences.items():
        click.echo(divergence_line(source, found))
    click.echo(
        f"{len(asked)} prompts: {len(asked) - len(divergences)} equal, "
        f"{near_ties} near-ties, {mismatches} mismatches"
    )
    if report is not None:
        parted = {source: asdict(found) for source, found in divergences.items()}
        rows = {name: [asdict(a) for a in group] for name, group in answers.items()}
        environment.write(report, machine, {"divergences": parted, "answers": rows})
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    environment.run(main)
