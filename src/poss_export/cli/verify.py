"""`poss-export verify`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import log, print_json, print_rich
from poss_export.engine_spec import Backend

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


@options.headed(
    {
        "Checkpoints": _CHECKPOINTS,
        "Answers": _ANSWERS,
        "Engine": options.ENGINE,
        "Output": (options.json_flag("Print one JSON object a check."),),
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
    as_json: bool,
) -> None:
    """Check that BUNDLE is whole, computes what PyTorch does, and loses nothing by speculating.

    Exits with 1 if a check fails. Checks of parity with PyTorch, and of the text with the
    target's files, need the `export` extra and the checkpoints; without them they are skipped.
    """
    from poss_export.bundling.verify import verify as verify_bundle
    from poss_export.evaluation.held_out import PROMPTS
    from poss_export.prompts import read_prompts

    asked = read_prompts(prompts) if prompts else PROMPTS
    made = verify_bundle(
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
        report=log,
    )
    _print_checks(made, as_json)
    ctx.exit(int(any(check.passed is False for check in made)))


def _print_checks(checks: Sequence["Check"], as_json: bool) -> None:
    if as_json:
        for check in checks:
            print_json(asdict(check), indent=None)
        return
    from poss_export.cli.tables import checks_table

    print_rich(checks_table(checks))
    for note in (note for check in checks for note in check.notes):
        click.echo(note)
