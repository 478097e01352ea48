"""Where a bundle is made: in an unfinished folder beside its place, and one rename that makes it appear."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poss_export.errors import InputError
from poss_export.files import check_writable, lock, opened
from poss_export.manifest import MANIFEST, listed_files

_OTHER = "choose another output folder"
_REPLACED = "-replaced"  # where no system call exchanges folders, the old one has this name for a moment
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def real_folder(folder: Path) -> Path:
    """Return where an output folder really is: behind symbolic links, which stay.

    Raises:
        InputError: the links lead in a circle.
    """
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{str(folder)!r} leads nowhere ({error}): {_OTHER}") from error


def check_output(folder: Path) -> None:
    """Raise InputError where no bundle can be put: it cannot be written, or something else would be lost.

    An empty folder is used, and a bundle that holds nothing of somebody else's is replaced.
    """
    folder = real_folder(folder)
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if folder.is_mount():
            raise InputError(
                f"{str(folder)!r} is a mount point, which nothing can replace: name a folder in it"
            )
        if names and MANIFEST not in names:
            raise InputError(f"{str(folder)!r} exists and is not a bundle: {_OTHER}")
        if names and (strangers := sorted(names - listed_files(folder))):
            found = f"{str(folder)!r} holds {strangers[0]!r}, which is no part of the bundle"
            raise InputError(f"{found}: move it, or {_OTHER}")
    elif folder.exists():
        raise InputError(f"{str(folder)!r} exists and is not a bundle: {_OTHER}")
    existing = next(parent for parent in folder.parents if parent.exists())
    check_writable(existing, _OTHER)


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to fill; remove it, and what killed builds left, in the end.

    It is locked while it is in use, so that no other build takes it for such.

    Raises:
        InputError: nothing can be written there, or another build is at work.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with opened(folder.parent) as parent:  # one at a time looks who is there
            lock(parent, wait=True)
            _remove_leftovers(folder)
            path = Path(tempfile.mkdtemp(prefix=f"{_prefix(folder)}{os.getpid()}-", dir=folder.parent))
            descriptor = os.open(path, os.O_RDONLY)
            lock(descriptor)
    except OSError as error:
        raise InputError(f"cannot write to {str(folder.parent)!r} ({error.strerror}): {_OTHER}") from error
    try:
        yield path
    except OSError as error:
        raise InputError(f"the build of {str(folder)!r} failed: {error}; nothing was kept") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed builds left; raise InputError where a build is alive."""
    for path in sorted(folder.parent.iterdir()):
        if not path.name.startswith(_prefix(folder)):
            continue
        with opened(path) as descriptor:
            if not lock(descriptor):
                number = path.name.removeprefix(_prefix(folder)).partition("-")[0]
                raise InputError(f"process {number} is building {str(folder)!r}: wait for it, or {_OTHER}")
            if path.name.endswith(_REPLACED) and not folder.exists():
                path.rename(folder)
            else:
                shutil.rmtree(path)


def publish(finished: Path, folder: Path) -> None:
    """Put the finished folder in place in one step; what was there is then at `finished`, to be removed."""
    finished.chmod(0o755)  # mkdtemp keeps others out
    if not (folder / MANIFEST).exists():
        finished.rename(folder)  # also over an empty folder
    elif not _exchange(finished, folder):
        replaced = finished.with_name(f"{finished.name}{_REPLACED}")
        folder.rename(replaced)
        finished.rename(folder)
        replaced.rename(finished)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return whether this system can."""
    with suppress(AttributeError):
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
        names = (os.fsencode(one), os.fsencode(other))
        return bool(exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    return False


def link_or_copy(file: Path, to: Path) -> None:
    """Put `file` at `to`, without a copy where the file system can."""
    try:
        to.hardlink_to(file)
    except OSError:
        shutil.copy2(file, to)
