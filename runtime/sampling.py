"""How the next token is chosen from logits."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError

Logits = NDArray[Any]  # float16 or float32
Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """Choice of the next token; every value is off by default, and temperature 0 is greedy.

    The filters apply in this order: `temperature` divides the logits, `top_k` keeps the k likeliest
    tokens (0: all), `top_p` the likeliest ones that together reach this share of what is left, `min_p`
    those at least this share as likely as the likeliest. Tokens that tie with the last one kept are
    kept too. A greedy choice reads no filter. The same `seed` and engine give the same tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, valid, expected in (
            (
                "temperature",
                self.temperature == 0 or 1e-6 <= self.temperature < math.inf,
                "0 (greedy) or at least 1e-6",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or a positive number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("seed", self.seed is None or self.seed >= 0, "0, a positive number, or left out"),
        ):
            if not valid:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {expected}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


def warp(logits: Logits, sampling: Sampling) -> Probabilities:
    """Return the distribution [vocab] that `sampling` makes of logits [vocab]."""
    z = logits.astype(np.float32)
    z -= z.max()
    z /= np.float32(sampling.temperature)
    if 0 < sampling.top_k < len(z):
        z[z < np.partition(z, -sampling.top_k)[-sampling.top_k]] = -np.inf
    q = np.exp(z, out=z)  # the likeliest token has 1
    if sampling.top_p < 1:
        q[q < _nucleus_edge(q, sampling.top_p)] = 0
    if sampling.min_p > 0:
        q[q < sampling.min_p] = 0
    q /= q.sum()
    return q


def _nucleus_edge(q: Probabilities, top_p: float) -> np.float32:
    """Return the smallest weight in the nucleus: the likeliest tokens that reach `top_p` of the mass."""
    mass = q.sum(dtype=np.float64)
    # Tokens under this bound hold at most 1 - top_p together, so the nucleus lies above it: sort only those.
    candidates = np.sort(q[q > (1 - top_p) * mass / len(q)])[::-1]
    reached = int(np.searchsorted(np.cumsum(candidates, dtype=np.float64), top_p * mass))
    edge: np.float32 = candidates[min(reached, len(candidates) - 1)]
    return edge


def draw(q: Probabilities, rng: np.random.Generator) -> int:
    """Draw a token from weights [vocab], which need not sum to 1."""
    cumulative = np.cumsum(q, dtype=np.float64)
    below = min(rng.random() * cumulative[-1], np.nextafter(cumulative[-1], 0))  # never the end itself
    return int(np.searchsorted(cumulative, below, side="right"))
