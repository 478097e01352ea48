"""`poss-export verify`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import log, print_json, print_rich
from poss_export.engine_spec import Backend
from poss_export.errors import InputError

if TYPE_CHECKING:
    from poss_export.evaluation.checks import Check
    from poss_export.runtime.sessions.ort import Provider

_CHECKPOINTS = (
    click.option("--target", help="Where the bundle's target is; left out: its name in the manifest."),
    click.option("--drafter", help="Where the bundle's drafter is; left out: its name in the manifest."),
)
_ANSWERS = (
    options.prompts(default="a few built in"),
    click.option("--num-prompts", type=click.IntRange(1), help="Compare so many answers; left out: all."),
    click.option("--max-new-tokens", default=64, help="Longest answer, in tokens."),
    click.option("--slots", type=click.IntRange(1), default=1, help="Check so many answers at once, too."),
    click.option("--draws", type=click.IntRange(1), default=8000, help="Samples for the distribution test."),
)

_OUTPUT = (
    click.option(
        "--report",
        metavar="FILE.html",
        type=options.FILE,
        help="Write a page with all figures and pictures, for a bug report; it tells no prompts.",
    ),
    click.option("--report-prompts", is_flag=True, help="Tell prompts of answers that part there, too."),
    options.json_flag("Print one JSON object a check."),
)


@options.headed(
    {
        "Checkpoints": _CHECKPOINTS,
        "Answers": _ANSWERS,
        "Engine": options.ENGINE,
        "Output": _OUTPUT,
    }
)
@click.command(cls=options.HeadedCommand, short_help="Check that a bundle is whole and loses nothing.")
@options.BUNDLE
@click.pass_context
def verify(
    ctx: click.Context,
    bundle: Path,
    target: str | None,
    drafter: str | None,
    prompts: Path | None,
    num_prompts: int | None,
    max_new_tokens: int,
    slots: int,
    draws: int,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    report: Path | None,
    report_prompts: bool,
    as_json: bool,
) -> None:
    """Check that BUNDLE is whole, computes what PyTorch does, and loses nothing by speculating.

    Exits with 1 if a check fails. Checks of parity with PyTorch, and of the text with the
    target's files, need the `export` extra and the checkpoints; without them they are skipped.
    """
    from poss_export.bundling.verify import verify as verify_bundle
    from poss_export.evaluation.held_out import PROMPTS
    from poss_export.evaluation.report import check_report, write_report
    from poss_export.progress import silent
    from poss_export.prompts import read_prompts

    if report_prompts and report is None:
        raise InputError("prompts go into a report, and none is asked for", options=("report",))
    if report is not None:
        check_report(report)
    asked = read_prompts(prompts) if prompts else PROMPTS
    found = verify_bundle(
        bundle,
        target=target,
        drafter=drafter,
        prompts=asked[:num_prompts],
        max_new_tokens=max_new_tokens,
        slots=slots,
        draws=draws,
        backend=backend,
        provider=provider,
        threads=threads,
        costs=report is not None,
        report=log,
        tell=_print_json if as_json else silent,
    )
    if report is not None:
        write_report(found, report, prompts=report_prompts)
    if not as_json:
        _print_table(found.checks)
    ctx.exit(int(found.failed))


def _print_json(check: "Check") -> None:
    print_json(asdict(check), indent=None)


def _print_table(checks: Sequence["Check"]) -> None:
    from poss_export.cli.tables import checks_table

    print_rich(checks_table(checks))
    for note in (note for check in checks for note in check.notes):
        click.echo(note)
