"""Whether an answer is the target's own: the one judge of `verify`, of benchmarks and of their reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from poss_export.exactness import NEAR_TIE, Exactness
from poss_export.runtime.loop import read
from poss_export.runtime.sampling import GREEDY, Logits, Noise, Sampling, draw_gap
from poss_export.runtime.sessions.base import TargetSession

Verdict = Literal["equal", "near-tie", "mismatch", "not claimed"]


@dataclass(frozen=True)
class Divergence:
    """The first position where two answers differ, counted in tokens of the answer.

    `gap`: by how little the target chose its own token there, as a difference of logits: of the two highest,
    or when sampling of the two first of the draw (`draw_gap`, docs/lossless-sampling.md).
    """

    position: int
    gap: float


def judge(
    divergence: Divergence | None, exactness: Exactness, chain: bool, *, beside: bool = False
) -> Verdict:
    """Return what it means that an answer parts from target-only, or does not.

    A difference where nothing is claimed is neither a failure nor lossless: it is told.

    Args:
        divergence: of the answer; None where it is equal.
        exactness: of the bundle.
        chain: whether every tree that was verified for the answer was a chain.
        beside: whether others shared its calls.
    """
    if divergence is None:
        return "equal"
    if (tie := exactness.tie(chain, beside=beside)) is None:
        return "not claimed"
    return "near-tie" if divergence.gap < tie else "mismatch"


def find_divergence(
    target: TargetSession,
    prompt_ids: Sequence[int],
    ours: Sequence[int],
    plain: Sequence[int],
    sampling: Sampling = GREEDY,
    tie: float | None = None,
) -> Divergence | None:
    """Return where two answers to a prompt part, if they do; asks the target for the gap there.

    `sampling` is that of both answers, with its seed; `tie` how close a near-tie is, for what its filters
    nearly cut off: `NEAR_TIE` where nothing is claimed.
    """
    if (position := first_difference(ours, plain)) is None:
        return None
    context = [*prompt_ids, *plain[:position]]
    logits = _last_logits(target, context)
    if not sampling.greedy:
        noise = Noise(sampling.seed)(len(context), len(logits))
        return Divergence(position, draw_gap(logits, sampling, noise, tie or NEAR_TIE))
    second, first = np.partition(logits.astype(np.float64), -2)[-2:]
    return Divergence(position, float(first - second))


def _last_logits(target: TargetSession, ids: Sequence[int]) -> Logits:
    """Return the logits [vocab] after ids, which are read as a prompt."""
    target.reset()
    *_, (_, output) = read(target, np.asarray(ids))
    logits: Logits = output.logits[-1]
    return logits


def first_difference(ours: Sequence[int], plain: Sequence[int]) -> int | None:
    """Return where two answers differ, if they do; the shorter length where one continues the other."""
    if len(ours) == len(plain) and all(a == b for a, b in zip(ours, plain, strict=True)):
        return None
    pairs = enumerate(zip(ours, plain, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(plain)))
