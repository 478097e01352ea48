"""Where output goes: results to stdout, everything else to stderr."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType


def log(line: str) -> None:
    """Tell what is done."""
    click.echo(line, err=True)


def print_json(values: Any, indent: int | None = 2) -> None:
    """Print plain values."""
    click.echo(json.dumps(values, indent=indent, ensure_ascii=False))


def print_rich(thing: "RenderableType") -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console

    Console().print(thing)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print a row for every value in nested facts."""
    from poss_export.cli.tables import facts_table

    print_rich(facts_table(facts))


def megabytes(size: float) -> str:
    """Return a size in bytes in words."""
    return f"{size / 1e6:.0f} MB"
