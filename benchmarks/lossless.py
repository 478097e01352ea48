"""Compare speculative and target-only tokens on many prompts; print tau by depth on the way.

    python -m benchmarks.lossless BUNDLE --prompts FILE.jsonl --temperature 1 --top-p 0.9 --seed 0 --seed 1

Without a temperature the answers are greedy. Sampled ones have a random number for each position, so that
they are compared token by token too (docs/lossless-sampling.md), once for each seed.

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
from benchmarks.questions import Question
from poss_export.evaluation.answers import take_turns
from poss_export.evaluation.equality import find_divergence
from poss_export.evaluation.metrics import acceptance, pooled_tau
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.sampling import GREEDY, Sampling


def compare(
    bundle: Bundle, question: Question, tokens: int, sampling: Sampling
) -> tuple[Generation, dict[str, dict[str, Any]]]:
    """Return the speculative answer, and where it parts from target-only, if it does, as JSON values."""
    (ours,), (plain,) = take_turns(bundle, [question.ids], tokens, sampling)
    tie = bundle.manifest.exactness.tie(ours.chains)
    found = find_divergence(bundle.target, question.ids, ours.token_ids, plain.token_ids, sampling, tie)
    if found is None:
        return ours, {}
    place = question.place if sampling.greedy else f"{question.place}, seed {sampling.seed}"
    return ours, {place: divergences.judged(found, bundle.manifest.exactness, ours.chains)}


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
@click.option("--temperature", default=0.0, show_default=True, help="Above 0: sample.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample from the likeliest of this share.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), help="Of the random numbers.")
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    bundle: Path,
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seeds: tuple[int, ...],
    threads: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    seeds = tuple(dict.fromkeys(seeds))
    samplings = [Sampling(temperature, top_p=top_p, seed=seed) for seed in seeds if temperature] or [GREEDY]
    answers: dict[str, list[Generation]] = {}
    parted: dict[str, dict[str, Any]] = {}
    with open_bundle(bundle, threads=threads) as engines:
        asked = questions.load(engines.text, prompts, limit)
        trials = [(question, sampling) for sampling in samplings for question in asked]
        for question, sampling in track(trials, "comparing", console=Console(stderr=True), transient=True):
            ours, found = compare(engines, question, max_new_tokens, sampling)
            answers.setdefault(question.file, []).append(ours)
            parted |= found
    Console().print(depth_table(answers))
    for source, values in parted.items():
        click.echo(divergences.line(source, values))
    seeded = f" with {len(seeds)} seeds" if temperature else ""
    click.echo(f"{len(asked)} prompts{seeded}: {divergences.totals(len(trials), [parted])}")
    if report is not None:
        rows = {name: [asdict(a) for a in group] for name, group in answers.items()}
        environment.write(report, machine, {"divergences": parted, "answers": rows})
    sys.exit(bool(divergences.count([parted], "mismatch")))


if __name__ == "__main__":
    environment.run(main)
