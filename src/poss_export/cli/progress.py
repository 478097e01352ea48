"""What long work shows of itself: a bar an activity on a terminal, a line a minute elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from poss_export.cli.printing import log
from poss_export.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

_PAUSE = 60  # seconds between lines


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield what is told of long work; it goes to stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    with _bars(console) as report:
        yield report


@contextmanager
def _bars(console: "Console") -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}

    def report(activity: str, done: int, total: int, note: str) -> None:
        if activity not in tasks:
            tasks[activity] = bars.add_task(activity, total=total, note=note)
        bars.update(tasks[activity], completed=done, total=total, note=note)

    with Bars(*columns, TextColumn("{task.fields[note]}"), console=console) as bars:
        yield report


def _lines() -> Progress:
    last, told, said = 0.0, "", ""

    def report(activity: str, done: int, total: int, note: str) -> None:
        nonlocal last, told, said
        if activity != told or time.monotonic() - last > _PAUSE or done >= total:
            last, told, line = time.monotonic(), activity, f"{activity} {done}/{total} {note}"
            if line != said:  # what ends may be told of more than once
                log(line)
            said = line

    return report
