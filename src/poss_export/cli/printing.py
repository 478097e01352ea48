"""Where output goes: results to stdout, everything else to stderr."""

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from poss_export.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from poss_export.runtime.generation import Generation

_STANDARD_ERROR = 2  # the last of the standard streams


def prepare_streams() -> None:
    """See that results arrive, whatever the letters that standard output has.

    Raises:
        InputError: standard output is closed.
    """
    # The next file that is opened gets the number of a closed stream, and libraries would write into it.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(spare)
    if sys.stdout is None:
        raise InputError("standard output is closed; send results to a file, or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def log(line: str) -> None:
    """Tell what is done."""
    click.echo(line, err=True)


def print_json(values: Any, indent: int | None = 2) -> None:
    """Print plain values; letters that standard output lacks are escaped."""
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(values, indent=indent)
    click.echo(text)


def print_rich(thing: "RenderableType") -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console

    Console().print(thing)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print a row for every value in nested facts."""
    from poss_export.cli.tables import facts_table

    print_rich(facts_table(facts))


def answer_figures(answers: Sequence["Generation"]) -> str:
    """Return what answers took and gave, in a line."""
    from poss_export.evaluation.metrics import pooled_tau, rounds_by_kind

    tokens, seconds = sum(a.tokens for a in answers), sum(a.seconds for a in answers)
    rounds = ", ".join(f"{count} {kind}" for kind, count in rounds_by_kind(answers).items())
    return (
        f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s, "
        f"tau {pooled_tau(answers):.2f}, rounds: {rounds or 'none'}"
    )


def megabytes(size: float) -> str:
    """Return a size in bytes in words."""
    return f"{size / 1e6:.0f} MB"
