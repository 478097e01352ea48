"""Tables, goals and JSON of loads that were answered in several ways."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.loads import Load, Run
from poss_export.evaluation.metrics import pooled_tau


@dataclass(frozen=True)
class Way:
    """How ours answers; the one slot of a `Way` answers in turns."""

    slots: int
    target_only: bool

    def __str__(self) -> str:
        """Return it in words."""
        made = "in turns" if self.slots == 1 else f"{self.slots} slots"
        return f"{made}, {'target-only' if self.target_only else 'speculative'}"


BASELINE = str(Way(1, target_only=True))  # ratios are to it, under the same load


@dataclass(frozen=True)
class Cell:
    """What a way, ours or a peer's, made of a load in each repeat."""

    load: Load
    way: str
    runs: list[Run]

    @property
    def speeds(self) -> list[float]:
        """Tokens/s of each repeat."""
        return [run.tokens_per_second for run in self.runs]

    def ratio(self, other: "Cell") -> float:
        """Return how many times as fast as another it was, the median of repeats."""
        return median(mine / theirs for mine, theirs in zip(self.speeds, other.speeds, strict=True))

    def figures(self) -> dict[str, Any]:
        """Return what is kept, as JSON values; times in milliseconds."""
        answered = [one for run in self.runs for one in run.answered]
        ours = [one.made for one in answered if one.made is not None]
        return {
            "way": self.way,
            "requests": len(answered),
            "tokens_per_second": median(self.speeds),
            "tokens_per_second_by_repeat": self.speeds,
            "tau": pooled_tau(ours) if ours else None,
            "first_ms": _percentiles([one.first for one in answered]),
            "between_ms": _percentiles([gap for one in answered for gap in one.between]),
            "equal": len(answered) - sum(len(run.parted) for run in self.runs),
            "parted": [run.parted for run in self.runs],
        }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    middle, high = np.percentile(seconds or [0.0], [50, 95]).tolist()
    return {"p50": 1000 * middle, "p95": 1000 * high}


@dataclass(frozen=True)
class Goal:
    """How many times as fast one thing is to be as another, and was."""

    what: str
    ratio: float
    wanted: float

    @property
    def met(self) -> bool:
        """Whether it was."""
        return self.ratio >= self.wanted

    def __str__(self) -> str:
        """Return it in words."""
        return f"{'met' if self.met else 'MISSED'}: {self.what}: {self.ratio:.2f}, at least {self.wanted}"


def goals(cells: Sequence[Cell], slots: int, batch_of_one: float | None) -> list[Goal]:
    """Return the goals of serving in so many slots that these cells have the figures for.

    batch_of_one: how many times as fast a plain step is in the graph of one of several slots as in the plain
    graph.
    """
    by_place = {(cell.load.clients, cell.way): cell for cell in cells}
    plain, planned = str(Way(slots, target_only=True)), str(Way(slots, target_only=False))
    pairs = (
        (8, planned, BASELINE, 3.0),
        (4, planned, plain, 1.15),
        (8, planned, plain, 0.98),
    )
    found = [
        Goal(
            f"{clients} clients, {ours} against {theirs}",
            by_place[clients, ours].ratio(by_place[clients, theirs]),
            wanted,
        )
        for clients, ours, theirs, wanted in pairs
        if {(clients, ours), (clients, theirs)} <= by_place.keys()
    ]
    if batch_of_one is not None:
        found.append(Goal("a plain step, the graph of one slot against the plain graph", batch_of_one, 0.98))
    return found


def table(cells: Sequence[Cell]) -> Table:
    """Return a row a cell; ratios are to the target alone in turns under the same load."""
    columns = ("load", "way", "tokens/s", "ratio", "tau", "first p50", "p95", "between p50", "p95", "equal")
    rows = Table(*columns, box=None, pad_edge=False)
    base = {cell.load: cell for cell in cells if cell.way == BASELINE}
    for cell in cells:
        figures = cell.figures()
        ratio = cell.ratio(base[cell.load]) if cell.load in base else float("nan")
        first, between = figures["first_ms"], figures["between_ms"]
        rows.add_row(
            str(cell.load),
            cell.way,
            f"{figures['tokens_per_second']:.1f}",
            f"{ratio:.2f}",
            "" if figures["tau"] is None else f"{figures['tau']:.2f}",
            *(f"{value:.0f} ms" for value in (first["p50"], first["p95"])),
            *(f"{value:.1f} ms" for value in (between["p50"], between["p95"])),
            f"{figures['equal']} of {figures['requests']}",
        )
    return rows


def results(cells: Sequence[Cell], reached: Sequence[Goal], missing: dict[str, str]) -> dict[str, Any]:
    """Return all that was found, as JSON values: loads, with their ways."""
    loads = dict.fromkeys(cell.load for cell in cells)
    return {
        "loads": [
            {"load": str(load), "ways": [cell.figures() for cell in cells if cell.load == load]}
            for load in loads
        ],
        "goals": [{**asdict(goal), "met": goal.met} for goal in reached],
        "missing": missing,
    }
