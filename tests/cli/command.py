"""Run the command line as a user types it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from poss_export.cli.main import main
from poss_export.drafters.checkpoint import save_drafter
from poss_export.targets.checkpoint import open_target

PROGRESS = (
    "loading ",
    "inventing ",
    "recording ",
    "running ",
)  # what lines begin with that tell what is done
CAPACITY = 96  # tokens, of quantised bundles: widths are measured behind 17


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """Return the one line on stderr of a command that must fail."""
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith(PROGRESS)]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def write_drafter(folder: Path, target: Path, random_drafter: Any, **other: Any) -> Path:
    """Write a random drafter for `target`, or for one that differs in `other`."""
    import torch

    opened = open_target(str(target))
    save_drafter(folder, random_drafter(replace(opened.config, **other), 3), opened.sha256, torch.float32)
    return folder


def words(*ids: int) -> str:
    """Return a prompt of these tokens."""
    return " ".join(f"<{number}>" for number in ids)
