"""The fit of acceptance curves to the rounds of a record, and what it is judged by."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poss_export.acceptance import AcceptanceCurves, Bin, DepthCurve, Errors
from poss_export.calibration.record import MIN_DIALOGUES, MIN_ROUNDS, Record
from poss_export.errors import InputError

FOLDS = 4  # each is judged by the fit on the others; dialogue i is in fold i % FOLDS
BINS = 10  # of equal count; fewer where they would hold less than MIN_NODES
MIN_NODES = 20  # that a share is taken of
Z = 1.96  # of a 95 % interval

Floats = NDArray[np.float64]


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
            zip(item.tree.depths.tolist(), item.tree.scores.tolist(), strict=True)
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
