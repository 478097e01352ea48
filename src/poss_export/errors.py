"""The one exception tree.

    PossExportError
    ├── InputError        a value the user gave
    │   └── PromptError   a prompt; others may well be answered
    ├── BusyError         more is asked for at once than can be answered
    ├── CheckpointError   a target or drafter checkpoint that cannot be used
    ├── BundleError       a bundle that is incomplete, edited or does not fit
    ├── BackendError      an engine library or device that is not there, or refused the graph
    ├── ParityError       a graph whose results differ from what it was made from
    └── QualityError      a quantised bundle that loses more than is allowed

A user's mistake raises one of these with the value, what was expected and what to do next.
A message names no flag of the command line: `options` holds the names of the parameters that are the remedy.
The command line prints the message with their flags, and exits with `exit_code`. Libraries' errors are
translated where they are caught, with `raise ... from`; whatever a file may cause, by `translated`.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class PossExportError(Exception):
    """Root of every error that this package raises on purpose.

    `options`: parameters that the message tells to change, by their names in Python, such as "capacity".
    """

    exit_code = 1

    def __init__(self, message: str, *, options: tuple[str, ...] = ()) -> None:
        """Keep what to say, and the parameters that are the remedy."""
        super().__init__(message)
        self.options = options


class InputError(PossExportError):
    """A value the user gave cannot be used."""

    exit_code = 2


class PromptError(InputError):
    """A prompt cannot be answered, with this bundle or at all."""


class BusyError(PossExportError):
    """More is asked for at once than can be answered, or the work is being ended; others may have room."""


class CheckpointError(PossExportError):
    """A checkpoint is missing, truncated, of an unknown kind, or does not fit the other one."""


class BundleError(PossExportError):
    """A bundle is incomplete, was changed after it was built, or does not fit what is asked of it."""


class BackendError(PossExportError):
    """An engine library or a device is missing, or refused the graph."""


class ParityError(PossExportError):
    """A graph's results differ from the model it was exported from, or tokens differ where they must not."""


class QualityError(PossExportError):
    """A quantised bundle loses more than is allowed."""


@contextmanager
def translated(kind: type[PossExportError], words: str) -> Iterator[None]:
    """Raise a `kind` with `words` for any error that a file causes within, which is somebody else's to write.

    Ours pass as they are, and so does a library that is not installed.
    """
    try:
        yield
    except (PossExportError, ImportError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise kind(f"{words} ({told[:_LONGEST]})") from error


_LONGEST = 300  # characters of somebody else's message
