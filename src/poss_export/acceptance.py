"""What a drafter's scores are worth: the chance that a node is accepted (docs/acceptance-calibration.md)."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from poss_export.config import TreeShape
from poss_export.errors import InputError, translated
from poss_export.files import parse_json, write_whole

FORMAT_VERSION = 1

_MAKE_ANOTHER = "make one with `poss-export calibrate` and its file of acceptance"


@dataclass(frozen=True)
class Bin:
    """Nodes with similar scores: mean probability that the drafter gave them, and the share accepted.

    `low` to `high` is the Wilson interval of `accepted`, at 95 %.
    """

    predicted: float
    accepted: float
    count: int
    low: float
    high: float


@dataclass(frozen=True)
class Errors:
    """How wrong predicted chances are: expected calibration error, and Brier score."""

    ece: float
    brier: float


@dataclass(frozen=True)
class DepthCurve:
    """One depth: the fit, whose knots ascend, and what it was made of.

    `before` judges the drafter's own probabilities, `after` the fit on dialogues that it has not seen.
    """

    depth: int
    nodes: int
    probabilities: tuple[float, ...]
    chances: tuple[float, ...]
    bins: tuple[Bin, ...]
    before: Errors
    after: Errors


@dataclass(frozen=True)
class AcceptanceCurves:
    """The chance that a drafted node is accepted by greedy verification, by depth and score.

    `depths` begin at 1. Hashes, tree, precision and time are those of the record; `before` and `after`
    are over the nodes of all depths.
    """

    target_name: str
    target_sha256: str
    drafter_name: str
    drafter_sha256: str
    tree: TreeShape
    precision: str
    created: str
    record_sha256: str
    dialogues: int
    rounds: int
    before: Errors
    after: Errors
    depths: tuple[DepthCurve, ...]

    def chance(self, depth: int, score: float) -> float:
        """Return the chance that a node at `depth` with this cumulative log-probability is accepted.

        Linear between knots and flat beyond them; depths beyond the last use the last; the root has 1.
        """
        if depth < 1:
            return 1.0
        curve = self.depths[min(depth, len(self.depths)) - 1]
        return float(np.interp(math.exp(score), curve.probabilities, curve.chances))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AcceptanceCurves":
        """Read what `to_dict` wrote, after a round trip through JSON.

        Raises InputError where it is of another format version or incomplete.
        """
        values = dict(values)
        if (found := values.pop("format_version", None)) != FORMAT_VERSION:
            raise InputError(
                f"the acceptance calibration has format version {found}, this release reads "
                f"{FORMAT_VERSION}; {_MAKE_ANOTHER}"
            )
        with translated(InputError, f"the acceptance calibration is incomplete; {_MAKE_ANOTHER}"):
            depths = tuple(_read_curve(curve) for curve in values["depths"])
            errors = {name: Errors(**values[name]) for name in ("before", "after")}
            return cls(**{**values, **errors, "tree": TreeShape(**values["tree"]), "depths": depths})

    def save(self, path: Path) -> None:
        """Write a JSON file in one step; raises InputError where it cannot be written."""
        write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "AcceptanceCurves":
        """Read what `save` wrote; raises InputError where the file is something else."""
        try:
            values = parse_json(path.read_bytes())
            assert isinstance(values, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise InputError(f"{str(path)!r} is not an acceptance calibration; {_MAKE_ANOTHER}") from error
        return cls.from_dict(values)


def _read_curve(values: dict[str, Any]) -> DepthCurve:
    knots: dict[str, Sequence[float]] = {name: tuple(values[name]) for name in ("probabilities", "chances")}
    errors = {name: Errors(**values[name]) for name in ("before", "after")}
    return DepthCurve(**{**values, **knots, **errors, "bins": tuple(Bin(**item) for item in values["bins"])})
