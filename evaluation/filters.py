"""Whether the filters of sampling are what `Sampling` says: its words, done step by step in double precision.

Tokens are tested against the distribution that `warp` makes, and every way of decoding shares it. So whether
it is the right one is a question of its own.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.evaluation.checks import Check
from poss_export.runtime.sampling import Logits, Sampling, warp

_ALLOWED = 1e-5  # of a probability: `warp` computes in single precision
_ROWS = 4

# Each filter decides differently behind another than before it.
SAMPLINGS = (
    Sampling(1.5),
    Sampling(0.7, top_k=12),
    Sampling(1.5, top_p=0.8),
    Sampling(1.5, min_p=0.2),
    Sampling(1.5, top_k=12, top_p=0.8),
    Sampling(1.5, top_p=0.8, min_p=0.05),
    Sampling(1.2, top_k=20, top_p=0.9, min_p=0.1),
)


def check_filters(vocab_size: int) -> Check:
    """Compare `warp` with `filtered` on random logits over so many tokens."""
    rows = np.random.default_rng(0).normal(scale=3, size=(_ROWS, vocab_size)).astype(np.float32)
    differences = [
        np.max([np.abs(warp(row, sampling) - filtered(row, sampling)).max() for row in rows])
        for sampling in SAMPLINGS
    ]
    worst = int(np.argmax(differences))  # which takes what is no number for the largest
    check = Check.within("sampling: filters", float(differences[worst]), _ALLOWED)
    words = (
        f"{name} {getattr(SAMPLINGS[worst], name)}" for name in ("temperature", "top_k", "top_p", "min_p")
    )
    return check if check.passed else replace(check, detail=f"{check.detail}, with {', '.join(words)}")


def filtered(logits: Logits, sampling: Sampling) -> NDArray[np.float64]:
    """Return the distribution [vocab] over logits [vocab], as the documentation of `Sampling` defines it."""
    z = logits.astype(np.float64) / sampling.temperature
    chances = np.exp(z - z.max())
    chances /= chances.sum()
    if 0 < sampling.top_k < len(chances):
        chances = _keep(chances, np.sort(chances)[-sampling.top_k])
    if sampling.top_p < 1:
        falling = np.sort(chances)[::-1]
        last = int(np.searchsorted(falling.cumsum(), sampling.top_p))
        chances = _keep(chances, falling[min(last, len(falling) - 1)])
    return _keep(chances, sampling.min_p * chances.max())


def _keep(chances: NDArray[np.float64], least: Any) -> NDArray[np.float64]:
    """Return the distribution over the tokens whose chance is `least` or more."""
    kept = np.where(chances >= least, chances, 0)
    return np.asarray(kept / kept.sum())
