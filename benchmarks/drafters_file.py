"""The JSON file that `benchmarks/drafters.py` keeps its rows in, and what a drafter's own folder records."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.divergences import count
from benchmarks.drafters_report import Row
from poss_export.drafters.checkpoint import shipped_drafters
from poss_export.errors import CheckpointError, InputError
from poss_export.plots import check_library


def training_of(spec: str) -> dict[str, Any] | None:
    """Return seconds, row-steps and rows of a drafter's training, and what it started from.

    None where its folder has no record. What the training of `started_from` cost is not in these figures.

    Raises:
        CheckpointError: the record cannot be read.
    """
    demo = Path(str(resources.files("poss_export") / "demo"))
    path = (demo / spec if spec in shipped_drafters() else Path(spec)) / "training.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        options, stages = record["options"], record.get("stages")  # early records have no stages
        # A run of so many minutes has a budget too, which it does not go by; early records have that alone.
        row_steps, start = record.get("row_steps", options["budget"]), options.get("start")
        rows = stages and round(sum(stage["share"] * row_steps / stage["steps"] for stage in stages))
        return {
            "seconds": record["training_seconds"],
            "row_steps": row_steps,
            "rows": rows,
            "started_from": start and Path(start).name,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a training record ({error!r}); remove the file, or fetch the drafter again"
        ) from error


def read_rows(report: Path) -> list[Row]:
    """Return the rows of a table file, none where there is no file.

    Raises:
        InputError: the file is something else.
    """
    if not report.exists():
        return []
    try:
        rows = json.loads(report.read_text(encoding="utf-8"))["drafters"]
        if not all(isinstance(row["measured"], dict) for row in rows):
            raise ValueError("a row says nothing of how it was measured")
        count((row["divergences"] for row in rows), "mismatch")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(report)!r} is no table of this benchmark ({error!r}): give another file to --json"
        ) from error
    return list(rows)


def find_row(rows: Sequence[Row], key: dict[str, Any]) -> Row | None:
    """Return the row that was measured so."""
    return next((row for row in rows if row["measured"] == key), None)


def merged(rows: Sequence[Row], new: Row) -> list[Row]:
    """Return the rows with a new one, in place of one that was measured alike."""
    return [*(row for row in rows if row["measured"] != new["measured"]), new]


def check_outputs(report: Path | None, plot: Path | None) -> None:
    """Raise InputError where something cannot be written after all the work."""
    for path in (report, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(
                f"there is no folder {str(path.parent)!r} to write {path.name} to; make it first"
            )
    if plot is not None:
        check_library()
