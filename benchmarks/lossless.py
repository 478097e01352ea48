"""Compare greedy speculative and target-only tokens on many prompts; print tau by depth on the way.

    python -m benchmarks.lossless BUNDLE --prompts FILE.jsonl --prompts FILE.jsonl

Exits with 1 on a mismatch. A divergence where the target's two likeliest tokens are closer than
NEAR_TIE is none: rounding decides there, and it is listed with its gap.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import environment, questions
from benchmarks.questions import Question
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import PREFILL_CHUNK, Generation, Stream

NEAR_TIE = 1e-4  # of logits, in fp32


@dataclass(frozen=True)
class Divergence:
    """The first token of an answer that differs."""

    source: str
    position: int  # in the answer
    gap: float  # between the target's two highest logits there

    @property
    def near_tie(self) -> bool:
        """Whether rounding may have decided."""
        return self.gap < NEAR_TIE


def answer(bundle: Bundle, question: Question, tokens: int, *, target_only: bool) -> Generation:
    """Return the greedy answer."""
    drafter = None if target_only else bundle.drafter
    return Stream(bundle.target, drafter, bundle.text, "", question.ids, max_new_tokens=tokens).run()


def gap(bundle: Bundle, ids: Sequence[int]) -> float:
    """Return the difference of the target's two highest logits after `ids`."""
    bundle.target.reset()
    for start in range(0, len(ids), PREFILL_CHUNK):
        chunk = np.array([ids[start : start + PREFILL_CHUNK]])
        n = chunk.shape[1]
        mask = np.tri(n, dtype=bool)[None]
        output = bundle.target.forward(chunk, np.arange(n)[None], mask, np.array([[n - 1]]))
        bundle.target.commit([range(n)])
    second, first = np.sort(output.logits[0, 0])[-2:].astype(float)
    return float(first - second)


def divergence(bundle: Bundle, question: Question, ours: Generation, plain: Generation) -> Divergence | None:
    """Return where the answers part, if they do."""
    if ours.token_ids == plain.token_ids:
        return None
    pairs = zip(ours.token_ids, plain.token_ids, strict=False)
    shorter = min(ours.tokens, plain.tokens)
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    return Divergence(question.source, position, gap(bundle, [*question.ids, *plain.token_ids[:position]]))


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
@click.option("--max-new-tokens", default=128, show_default=True)
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
    divergences: list[Divergence] = []
    console = Console()
    with open_bundle(bundle, threads=threads) as engines:
        asked = questions.load(engines.text, prompts, limit)
        for question in track(asked, "comparing", console=Console(stderr=True), transient=True):
            ours = answer(engines, question, max_new_tokens, target_only=False)
            plain = answer(engines, question, max_new_tokens, target_only=True)
            answers.setdefault(question.source.rpartition(":")[0], []).append(ours)
            if found := divergence(engines, question, ours, plain):
                divergences.append(found)
    mismatches = [found for found in divergences if not found.near_tie]
    console.print(depth_table(answers))
    for found in divergences:
        kind = "near-tie" if found.near_tie else "MISMATCH"
        click.echo(f"{kind}: {found.source}, token {found.position}, gap {found.gap:.2e}")
    click.echo(
        f"{len(asked)} prompts: {len(asked) - len(divergences)} equal, "
        f"{len(divergences) - len(mismatches)} near-ties, {len(mismatches)} mismatches"
    )
    if report is not None:
        rows = {name: [asdict(a) for a in group] for name, group in answers.items()}
        environment.write(report, machine, {"divergences": [asdict(d) for d in divergences], "answers": rows})
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    environment.run(main)
