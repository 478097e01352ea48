"""What a round costs: the target by width, and the parts of a round, in units of a plain step.

    python -m benchmarks.cost BUNDLE --prompts FILE.jsonl

A plain step is one target call of width 1. The widths take turns, so that noise hits all alike.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment, questions
from poss_export.evaluation.answers import take_turns
from poss_export.evaluation.latency import WIDTHS, target_times
from poss_export.evaluation.metrics import decode_speed, pooled_tau, round_parts
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sessions.ort import Provider

_WARM_UP = 16  # tokens of an answer that is not counted


def by_width(bundle: Bundle, past: int, widths: Sequence[int], repeats: int) -> dict[int, float]:
    """Return the median milliseconds of a target call of each width, after `past` tokens."""
    vocab = bundle.manifest.target.config.vocab_size
    times = target_times(bundle.target, vocab, past, widths, repeats)
    return {width: statistics.median(values) for width, values in times.items()}


def width_table(times: dict[int, float]) -> Table:
    """Return the cost of each width."""
    table = Table("width", "ms", "plain steps", box=None, title="Target call by width")
    for width, value in times.items():
        table.add_row(str(width), f"{value:.2f}", f"{value / times[1]:.2f}")
    return table


def round_table(speculative: dict[str, float], plain: dict[str, float]) -> Table:
    """Return the parts of a round beside those of a plain step."""
    headings = ("part", "ms", "plain steps", "share", "target-only ms")
    table = Table(*headings, box=None, title="\nMean round")
    for part in ("target", "draft", "outside", "round"):
        value = speculative[part]
        cells = (f"{value:.2f}", f"{value / plain['round']:.2f}", f"{value / speculative['round']:.1%}")
        table.add_row(part, *cells, f"{plain[part]:.2f}")
    return table


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--past", default=128, show_default=True, help="Tokens in the cache while widths are timed.")
@click.option("--repeats", default=20, show_default=True, help="Calls of each width.")
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--provider", type=click.Choice(get_args(Provider)), default="cpu", show_default=True)
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    bundle: Path,
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    past: int,
    repeats: int,
    threads: int,
    provider: Provider,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    start = time.perf_counter()
    with open_bundle(bundle, threads=threads, provider=provider) as engines:
        loading = time.perf_counter() - start
        widths = by_width(engines, past, WIDTHS, repeats)
        asked = questions.load(engines.text, prompts, limit)
        # A device loads kernels when they are first used, and a bundle measures what rounds cost.
        take_turns(engines, [asked[0].ids], _WARM_UP)
        ours, alone = take_turns(engines, (question.ids for question in asked), max_new_tokens)
    speculative, plain = ({**round_parts(made), "tau": pooled_tau(made)} for made in (ours, alone))
    ratio = decode_speed(ours) / decode_speed(alone)
    console = Console()
    console.print(width_table(widths), round_table(speculative, plain))
    click.echo(
        f"tau {speculative['tau']:.2f}, decoding {ratio:.2f} times as fast as the target alone; "
        f"bundle loaded in {loading:.2f} s; {threads} threads, {machine['processor']}; "
        f"load average before {machine['load_average']}"
    )
    if report is not None:
        values = {"loading_seconds": loading, "milliseconds_by_width": widths}
        environment.write(report, machine, values | {"speculative": speculative, "target_only": plain})


if __name__ == "__main__":
    environment.run(main)
