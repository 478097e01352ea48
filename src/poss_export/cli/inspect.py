"""`poss-export inspect`."""

from dataclasses import asdict
from pathlib import Path

import click

from poss_export.cli import options
from poss_export.cli.printing import print_facts, print_json

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
    from poss_export.bundling.facts import facts_of, in_short

    facts = facts_of(thing, positions_per_specialist)
    if as_json:
        print_json(facts)
    else:
        print_facts(in_short(facts))


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
