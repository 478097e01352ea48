"""What every benchmark shares: the record of the machine, the report, how a mistake ends."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from poss_export.errors import PossExportError
from poss_export.files import write_whole
from poss_export.machine import cores as cores
from poss_export.machine import processor, versions

REPORT = click.Path(dir_okay=False, writable=True, path_type=Path)
WIDE = 120  # columns of a table that no terminal is too narrow for
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "onnxruntime-genai",
    "llama-cpp-python",
    "openvino-genai",
)


def record() -> dict[str, Any]:
    """Return the date, the processor, and the versions of the packages that take part."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": cores(),
        "load_average": round(os.getloadavg()[0], 2),  # above the cores that we use: the figures are noisy
        "system": platform.platform(),
        "packages": versions(*PACKAGES),
    }


def write(report: Path, machine: dict[str, Any], values: dict[str, Any]) -> None:
    """Write `values` to `report` with the machine and the options of the running command."""
    options = {name: str(value) for name, value in click.get_current_context().params.items()}
    write_whole(report, json.dumps({"environment": machine, "settings": options, **values}) + "\n")


def run(command: click.Command) -> None:
    """Run a benchmark's command line; a user's mistake becomes one message and an exit code."""
    try:
        command()
    except PossExportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
