"""Where a bundle is made: in an unfinished folder beside its place, and one rename that makes it appear."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poss_export.errors import InputError
from poss_export.manifest import MANIFEST


def check_output(folder: Path) -> None:
    """Raise InputError where something is at `folder` that is no bundle."""
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise InputError(f"{str(folder)!r} exists and is not a bundle: choose another output folder")


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to fill; remove it, and what killed builds left, in the end.

    Raises:
        InputError: nothing can be written there.
    """
    prefix = f".{folder.name}.partial-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to {str(folder.parent)!r} ({error.strerror}): choose another output folder"
        ) from error
    try:
        yield path
    except OSError as error:
        raise InputError(f"the build of {str(folder)!r} failed: {error}; nothing was kept") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(finished: Path, folder: Path) -> None:
    """Rename the finished folder; a bundle that is there already goes first."""
    finished.chmod(0o755)  # mkdtemp keeps others out
    if folder.exists():
        replaced = finished.with_name(f"{finished.name}-replaced")
        folder.rename(replaced)
        finished.rename(folder)
        shutil.rmtree(replaced)
    else:
        finished.rename(folder)


def link_or_copy(file: Path, to: Path) -> None:
    """Put `file` at `to`, without a copy where the file system can."""
    try:
        to.hardlink_to(file)
    except OSError:
        shutil.copy2(file, to)
