"""What long work is told to tell: the one shape of a report, whoever draws it."""

from collections.abc import Callable

Report = Callable[[str], None]  # told what begins
Progress = Callable[[str, int, int, str], None]  # told the activity, how much of how much is done, a note


def silent(*_: object) -> None:
    """Tell nobody: a `Report` and a `Progress`."""
