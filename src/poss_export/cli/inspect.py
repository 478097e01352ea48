"""`poss-export inspect`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import print_json, print_rich

if TYPE_CHECKING:
    from rich.table import Table

    from poss_export.bundling.facts import Facts

_THING = (
    options.POSITIONS,
    click.option(
        "--lint", is_flag=True, help="Take an ONNX file, and name what TensorRT would refuse in it."
    ),
)


@options.headed({"What": _THING, "Output": (options.json_flag("Print everything, as a JSON object."),)})
@click.command(cls=options.HeadedCommand)
@click.argument("thing", metavar="BUNDLE|DRAFTER|TARGET|FILE.onnx")
@click.pass_context
def inspect(
    ctx: click.Context, thing: str, positions_per_specialist: int | None, lint: bool, as_json: bool
) -> None:
    """Print what a bundle, a drafter or a target is.

    With --lint, exit with 1 if the graph breaks a rule.
    """
    if lint:
        ctx.exit(_lint(Path(thing), as_json))
    from poss_export.bundling.facts import facts_of

    facts = facts_of(thing, positions_per_specialist)
    if as_json:
        print_json(facts.to_dict())
    else:
        print_rich(_card(facts))


def _card(facts: "Facts") -> "Table":
    from poss_export.bundling.facts import BundleFacts, DrafterFacts
    from poss_export.cli.cards import bundle_card, drafter_card, target_card

    if isinstance(facts, BundleFacts):
        return bundle_card(facts)
    return drafter_card(facts) if isinstance(facts, DrafterFacts) else target_card(facts)


def _lint(path: Path, as_json: bool) -> int:
    from poss_export.exporters.linter import lint
    from poss_export.exporters.rules import VERSION

    violations = lint(path)
    if as_json:
        print_json({"rules": VERSION, "violations": [asdict(v) for v in violations]})
    else:
        for violation in violations:
            click.echo(violation)
        click.echo(f"{path}: {len(violations)} violations of the rules of {VERSION}")
    return int(bool(violations))
