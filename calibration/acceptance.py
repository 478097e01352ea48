"""What a drafter's scores are worth: the chance that a node is accepted (docs/acceptance-calibration.md)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.calibration.record import MIN_DIALOGUES, MIN_ROUNDS, Record
from poss_export.config import TreeShape
from poss_export.errors import InputError
from poss_export.files import write_whole

FORMAT_VERSION = 1
FOLDS = 4  # each is judged by the fit on the others; dialogue i is in fold i % FOLDS
BINS = 10  # of equal count; fewer where they would hold less than MIN_NODES
MIN_NODES = 20  # that a share is taken of
Z = 1.96  # of a 95 % interval

Floats = NDArray[np.float64]


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
                f"{FORMAT_VERSION}; make it again with `poss-export calibrate --acceptance`"
            )
        try:
            depths = tuple(_read_curve(curve) for curve in values["depths"])
            errors = {name: Errors(**values[name]) for name in ("before", "after")}
            return cls(**{**values, **errors, "tree": TreeShape(**values["tree"]), "depths": depths})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"the acceptance calibration is incomplete ({error}); "
                "make it again with `poss-export calibrate --acceptance`"
            ) from error


@dataclass(frozen=True)
class _Nodes:
    """Drafted nodes [nodes]: the root is always accepted, and not among them."""

    dialogues: NDArray[np.int64]
    depths: NDArray[np.int64]
    probabilities: Floats
    accepted: Floats  # 0 or 1

    def where(self, mask: NDArray[np.bool_]) -> "_Nodes":
        return _Nodes(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


def from_record(record: Record) -> AcceptanceCurves:
    """Fit the chance of acceptance to the rounds of a record.

    Raises:
        InputError: the record has no drafter, or too few dialogues or rounds.
    """
    if record.drafter_name is None or record.drafter_sha256 is None or record.tree is None:
        raise InputError(
            "the samples were recorded without a drafter, so nothing was drafted that could be accepted: "
            "record them with a bundle that has one"
        )
    dialogues, rounds = len(record.dialogues), len(record.rounds)
    if dialogues < MIN_DIALOGUES or rounds < MIN_ROUNDS:
        raise InputError(
            f"acceptance cannot be fitted to {dialogues} dialogues and {rounds} rounds, expected at least "
            f"{MIN_DIALOGUES} and {MIN_ROUNDS}: record more prompts or longer answers"
        )
    nodes = _collect(record)
    held_out = _predict_held_out(nodes)
    return AcceptanceCurves(
        target_name=record.target_name,
        target_sha256=record.target_sha256,
        drafter_name=record.drafter_name,
        drafter_sha256=record.drafter_sha256,
        tree=record.tree,
        precision=record.precision,
        created=record.created,
        record_sha256=record.sha256,
        dialogues=dialogues,
        rounds=rounds,
        before=_errors(nodes.probabilities, nodes.accepted),
        after=_errors(held_out, nodes.accepted),
        depths=tuple(_curve(nodes, held_out, depth) for depth in range(1, int(nodes.depths.max()) + 1)),
    )


def _collect(record: Record) -> _Nodes:
    rows = [
        (number, depth, math.exp(score), float(node in item.path))
        for number, dialogue in enumerate(record.dialogues)
        for item in dialogue.rounds
        for node, (depth, score) in enumerate(
            zip(item.tree.depths.tolist(), item.scores.tolist(), strict=True)
        )
        if node > 0
    ]
    dialogues, depths, probabilities, accepted = zip(*rows, strict=True)
    return _Nodes(np.array(dialogues), np.array(depths), np.array(probabilities), np.array(accepted))


def _predict_held_out(nodes: _Nodes) -> Floats:
    """Return the chance of each node by a fit on the folds that its dialogue is not in."""
    predicted = np.empty(len(nodes.accepted))
    for fold in range(FOLDS):
        held_out = nodes.dialogues % FOLDS == fold
        predict = _fit_depths(nodes.where(~held_out))
        for depth in np.unique(nodes.depths):
            here = held_out & (nodes.depths == depth)
            predicted[here] = predict(int(depth), nodes.probabilities[here])
    return predicted


def _fit_depths(nodes: _Nodes) -> Callable[[int, Floats], Floats]:
    last = int(nodes.depths.max())
    fits = []
    for depth in range(1, last + 1):
        here = nodes.where(nodes.depths == depth)
        fits.append(fit_isotonic(here.probabilities, here.accepted))
    return lambda depth, probabilities: np.interp(probabilities, *fits[min(depth, last) - 1])


def fit_isotonic(x: Floats, y: Floats, fewest: int = MIN_NODES) -> tuple[Floats, Floats]:
    """Return the knots of the non-decreasing fit of y to x, by pooling adjacent violators.

    Pools begin as `fewest` neighbours in x, so that no single point makes a chance of 0 or 1. Adjacent pools
    whose mean x or mean y would not rise become one, until all rise. A knot is a pool's mean x and mean y.
    """
    order = np.argsort(x, kind="stable")
    pools: list[Floats] = []  # sum of x, sum of y, count
    for part in np.array_split(order, max(1, len(order) // fewest)):
        pool = np.array([x[part].sum(), y[part].sum(), len(part)])
        while pools and (pools[-1][:2] / pools[-1][2] >= pool[:2] / pool[2]).any():
            pool = pool + pools.pop()
        pools.append(pool)
    sums = np.array(pools)
    return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]


def _curve(nodes: _Nodes, held_out: Floats, depth: int) -> DepthCurve:
    mask = nodes.depths == depth
    here = nodes.where(mask)
    probabilities, chances = fit_isotonic(here.probabilities, here.accepted)
    return DepthCurve(
        depth=depth,
        nodes=len(here.accepted),
        probabilities=tuple(probabilities.tolist()),
        chances=tuple(chances.tolist()),
        bins=reliability(here.probabilities, here.accepted),
        before=_errors(here.probabilities, here.accepted),
        after=_errors(held_out[mask], here.accepted),
    )


def reliability(predicted: Floats, accepted: Floats) -> tuple[Bin, ...]:
    """Return bins of equal count in ascending order of `predicted`."""
    order = np.argsort(predicted, kind="stable")
    bins = []
    for part in np.array_split(order, min(BINS, max(1, len(order) // MIN_NODES))):
        low, high = wilson(float(accepted[part].sum()), len(part))
        share = float(accepted[part].mean())
        bins.append(Bin(float(predicted[part].mean()), share, len(part), low, high))
    return tuple(bins)


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    share = successes / count
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    # Shares of 0 and 1 end their own intervals, whatever rounding says.
    return min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale))


def _errors(predicted: Floats, accepted: Floats) -> Errors:
    bins = reliability(predicted, accepted)
    ece = sum(item.count * abs(item.predicted - item.accepted) for item in bins) / len(accepted)
    return Errors(ece, float(np.square(predicted - accepted).mean()))


def _read_curve(values: dict[str, Any]) -> DepthCurve:
    knots: dict[str, Sequence[float]] = {name: tuple(values[name]) for name in ("probabilities", "chances")}
    errors = {name: Errors(**values[name]) for name in ("before", "after")}
    return DepthCurve(**{**values, **knots, **errors, "bins": tuple(Bin(**item) for item in values["bins"])})


def save_acceptance(acceptance: AcceptanceCurves, path: Path) -> None:
    """Write a JSON file in one step; raises InputError where it cannot be written."""
    write_whole(path, json.dumps(acceptance.to_dict(), indent=2) + "\n")


def load_acceptance(path: Path) -> AcceptanceCurves:
    """Read what `save_acceptance` wrote; raises InputError where the file is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(values, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise InputError(
            f"{str(path)!r} is not an acceptance calibration; "
            "make one with `poss-export calibrate --acceptance`"
        ) from error
    return AcceptanceCurves.from_dict(values)
