"""Files that are there whole or not at all, and JSON that may be anything."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from poss_export.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write; the file appears at `path` in one step when all went well.

    Otherwise what is at `path` stays as it is, and nothing half-written beside it. What a killed process
    left there is written over.

    Raises:
        InputError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r} ({error}): choose another output file") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step, text in UTF-8; see `whole`."""
    data = content.encode() if isinstance(content, str) else content
    with whole(path) as partial:
        partial.write_bytes(data)


def parse_json(text: str | bytes) -> Any:
    """Return the values of JSON in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON, is not UTF-8, or is nested too deep to be read.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
