"""Compare greedy speculative and target-only tokens on many prompts; print tau by depth on the way.

    python -m benchmarks.lossless BUNDLE --prompts FILE.jsonl --prompts FILE.jsonl

Exits with 1 on a mismatch. A divergence at a near-tie (`runtime/checks.py`) is none: rounding decides
between the target's two likeliest tokens there, and it is listed with its gap.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import environment, questions
from benchmarks.questions import Question
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.checks import Divergence, find_divergence
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
        rounds = max(sum(a.rounds for a in group), 1)
        tokens = sum(a.tokens for a in group)
        accepted = [
            sum(a.accepted_by_depth[d] for a in group if d < len(a.accepted_by_depth)) for d in range(depth)
        ]
        shares = (f"{count / rounds:.3f}" for count in accepted)
        table.add_row(name, str(len(group)), str(tokens), f"{(tokens - len(group)) / rounds:.3f}", *shares)
    return table


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
        kind = "near-tie" if found.near_tie else "MISMATCH"
        click.echo(f"{kind}: {source}, token {found.position}, gap {found.gap:.2e}")
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
