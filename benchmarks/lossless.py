"""Compare greedy speculative and target-only tokens on many prompts; print tau by depth on the way.

    python -m benchmarks.lossless BUNDLE --prompts FILE.jsonl --prompts FILE.jsonl

Exits with 1 on a mismatch. Answers are judged as by `poss-export verify` (evaluation/equality.py): near-ties,
where rounding decides, are none, nor is what differs where nothing is claimed; all are listed with gaps.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import divergences, environment, questions
from poss_export.evaluation.answers import take_turns
from poss_export.evaluation.equality import find_divergence
from poss_export.evaluation.metrics import acceptance, pooled_tau
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.generation import Generation


def depth_table(answers: dict[str, list[Generation]]) -> Table:
    """Return, for each file, tau and the share of rounds that accepted each depth."""
    shares = {name: acceptance(group) for name, group in answers.items()}
    depth = max(map(len, shares.values()))
    columns = ("prompts", "answers", "tokens", "tau", *(f"depth {d + 1}" for d in range(depth)))
    table = Table(*columns, box=None, pad_edge=False)
    for name, group in answers.items():
        tokens = sum(a.tokens for a in group)
        padded = (*shares[name], *[0.0] * (depth - len(shares[name])))
        figures = (f"{value:.3f}" for value in (pooled_tau(group), *padded))
        table.add_row(name, str(len(group)), str(tokens), *figures)
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
    parted: dict[str, dict[str, Any]] = {}
    with open_bundle(bundle, threads=threads) as engines:
        exactness = engines.manifest.exactness
        asked = questions.load(engines.text, prompts, limit)
        for question in track(asked, "comparing", console=Console(stderr=True), transient=True):
            (ours,), (plain,) = take_turns(engines, [question.ids], max_new_tokens)
            answers.setdefault(question.source.rpartition(":")[0], []).append(ours)
            found = find_divergence(engines.target, question.ids, ours.token_ids, plain.token_ids)
            if found is not None:
                parted[question.source] = divergences.judged(found, exactness, ours.chains)
    Console().print(depth_table(answers))
    for source, values in parted.items():
        click.echo(divergences.line(source, values))
    click.echo(f"{len(asked)} prompts: {divergences.totals(len(asked), [parted])}")
    if report is not None:
        rows = {name: [asdict(a) for a in group] for name, group in answers.items()}
        environment.write(report, machine, {"divergences": parted, "answers": rows})
    sys.exit(bool(divergences.count([parted], "mismatch")))


if __name__ == "__main__":
    environment.run(main)
