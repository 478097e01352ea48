"""`poss-export verify`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import log, print_json, print_rich
from poss_export.engine_spec import Backend

if TYPE_CHECKING:
    from poss_export.evaluation.checks import Check
    from poss_export.manifest import Manifest
    from poss_export.runtime.bundle import Bundle
    from poss_export.runtime.sessions.ort import Provider

_CHECKPOINTS = (
    click.option("--target", help="Where the bundle's target is; left out: its name in the manifest."),
    click.option("--drafter", help="Where the bundle's drafter is; left out: its name in the manifest."),
)
_ANSWERS = (
    options.prompts("a few built in"),
    click.option("--num-prompts", type=click.IntRange(1), help="Compare so many answers; left out: all."),
    click.option("--max-new-tokens", default=64, help="Longest answer, in tokens."),
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
    draws: int,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Check that BUNDLE is whole, computes what PyTorch does, and loses nothing by speculating.

    Exits with 1 if a check fails. Checks of parity with PyTorch need the `export` extra and the
    checkpoints; without them they are skipped.
    """
    from poss_export.evaluation import checks
    from poss_export.manifest import read_manifest
    from poss_export.prompts import read_prompts
    from poss_export.runtime.bundle import open_bundle

    asked = (read_prompts(prompts) if prompts else checks.PROMPTS)[:num_prompts]
    manifest = read_manifest(bundle, full=True)
    made = [checks.Check("files", True, f"{len(manifest.files)} files are as they were built")]
    check_parity, skipped = _prepare_parity(manifest, target, drafter)
    made += skipped
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend) as engines:
        made += check_parity(engines)
        made += checks.check_cache_laws(engines)
        made.append(checks.check_greedy(engines, asked, max_new_tokens, log))
        made.append(checks.check_sampling(engines, asked, draws, log))
    _print_checks(made, as_json)
    ctx.exit(int(any(check.passed is False for check in made)))


def _prepare_parity(
    manifest: "Manifest", target: str | None, drafter: str | None
) -> "tuple[Callable[[Bundle], list[Check]], list[Check]]":
    """Run PyTorch; return what compares a bundle with it, and the checks that cannot be made."""
    from poss_export.evaluation.checks import Check

    if manifest.quantisation:
        reason = "quantised graphs were compared when they were built; `inspect` tells what they lose"
        return lambda _: [], [Check("parity", None, reason)]
    try:
        from poss_export.exporters import parity
    except ImportError as error:
        return lambda _: [], [Check("parity", None, f"{error}; pip install 'poss-export[export]'")]
    log("running PyTorch")
    reference, skipped = parity.find_reference(manifest, target, drafter)
    if reference is None:
        return lambda _: [], skipped
    return lambda engines: parity.check_parity(engines, reference), skipped


def _print_checks(checks: Sequence["Check"], as_json: bool) -> None:
    if as_json:
        for check in checks:
            print_json(asdict(check), indent=None)
        return
    from poss_export.cli.tables import checks_table

    print_rich(checks_table(checks))
    for note in (note for check in checks for note in check.notes):
        click.echo(note)
