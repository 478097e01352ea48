"""Files that are there whole or not at all, and JSON that may be anything."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from poss_export.errors import InputError

_OTHER = "choose another output file"


def check_writable(folder: Path, remedy: str) -> None:
    """Raise InputError, which tells `remedy`, where nothing can be written to a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r} ({error.strerror}): {remedy}") from error


def make_writable(folder: Path, remedy: str) -> None:
    """Make a folder to write files to; raise InputError, which tells `remedy`, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {str(folder)!r} ({error.strerror}): {remedy}") from error
    check_writable(folder, remedy)


def check_file(path: Path) -> None:
    """Raise InputError where no file can be written to `path`."""
    if not path.parent.is_dir():
        raise InputError(f"no folder {str(path.parent)!r} for {path.name!r}; make it first")
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is a device or a pipe: {_OTHER}")
    check_writable(path.parent, _OTHER)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder, to lock it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open folder until it is closed, or its process ends; return whether nobody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system that has no locks
    return True


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write; the file appears at `path` in one step when all went well.

    Otherwise what is at `path` stays as it is, and nothing half-written beside it. What a killed process
    left there is written over.

    Raises:
        InputError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is no file: {_OTHER}")
    path = path.resolve()  # a symbolic link stays
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r} ({error}): {_OTHER}") from error
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
