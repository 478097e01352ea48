"""`poss-export bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import print_json, print_rich
from poss_export.cli.progress import show_progress
from poss_export.engine_spec import Backend
from poss_export.errors import InputError

if TYPE_CHECKING:
    from poss_export.evaluation.spec_bench import Asked
    from poss_export.runtime.sessions.ort import Provider

_QUESTIONS = (
    click.option(
        "--questions",
        type=options.FILE,
        required=True,
        help="JSON Lines of `question_id`, `category` and `turns`, as Spec-Bench has them.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Ask so many, spread evenly."),
    click.option("--max-new-tokens", type=click.IntRange(2), default=1024, help="Longest answer, in tokens."),
    click.option("--repeats", type=click.IntRange(1), default=3, help="Ask each so often; medians count."),
)
_OUTPUT = (
    click.option(
        "-o",
        "--output",
        metavar="FOLDER",
        type=options.FILE,
        help="Write target-only.jsonl and speculative.jsonl there, for Spec-Bench's scripts.",
    ),
    options.json_flag(),
)


@options.headed({"Questions": _QUESTIONS, "Engine": options.ENGINE, "Output": _OUTPUT})
@click.command(cls=options.HeadedCommand, short_help="Run Spec-Bench, or questions of its form, on a bundle.")
@options.BUNDLE
def bench(
    bundle: Path,
    questions: Path,
    limit: int | None,
    max_new_tokens: int,
    repeats: int,
    output: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Ask BUNDLE questions with its drafter and without; print by category what speculation is worth.

    Greedy, the chat template, all turns; the first question warms up. An answer that differs is named.
    """
    from poss_export.cli.tables import bench_table
    from poss_export.evaluation.spec_bench import ask, figures
    from poss_export.files import make_writable
    from poss_export.prompts import read_prompts, spread
    from poss_export.runtime.bundle import open_bundle

    prompts = spread(read_prompts(questions), limit)
    if output is not None:
        if output.exists() and not output.is_dir():
            raise InputError(f"{str(output)!r} is a file; name a folder", options=("output",))
        make_writable(output, "choose another folder")
    with (
        open_bundle(bundle, threads=threads, provider=provider, backend=backend) as opened,
        show_progress() as progress,
    ):
        asked = ask(opened, prompts, max_new_tokens=max_new_tokens, repeats=repeats, progress=progress)
    if output is not None:
        _write(asked, bundle.resolve().name, output)
    found = figures(asked)
    parted = {one.prompt.id: one.divergence for one in asked if one.divergence is not None}
    if as_json:
        print_json({"figures": found, "differences": parted})
        return
    print_rich(bench_table(found))
    for name, (turn, position) in ((name, place) for name, place in parted.items() if place is not None):
        click.echo(f"question {name}, turn {turn}: token {position} is not target-only's")


def _write(asked: Sequence["Asked"], name: str, folder: Path) -> None:
    from poss_export.evaluation.spec_bench import answer_line
    from poss_export.files import write_whole

    for way in ("target-only", "speculative"):
        turns = [one.plain if way == "target-only" else one.ours for one in asked]
        lines = [answer_line(one, made, f"{name}-{way}") for one, made in zip(asked, turns, strict=True)]
        write_whole(folder / f"{way}.jsonl", "".join(f"{line}\n" for line in lines))
