"""The log of a training run: JSON lines that grow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poss_export.errors import InputError, translated


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log, none where it is missing; a last line cut short by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    for line in lines:
        with translated(InputError, f"{str(path)!r} is damaged; remove it to train anew"):
            entry = json.loads(line)
        yield entry
