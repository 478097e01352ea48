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
    kept too. A greedy choice reads no filter. The same `seed` gives the same tokens, with any drafter or
    none, where the engine's logits do not depend on the width of a call.
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


GREEDY = Sampling()


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


class Uniforms:
    """One uniform random number in [0, 1) for each absolute position, whatever was asked before it.

    A counter-based generator (Philox, Salmon et al. 2011): the seed is its key, the position its counter. So
    a token's random number does not depend on how many trees, rounds or other sequences came before.
    """

    def __init__(self, seed: int | None) -> None:
        """Take a seed, or one of the system's for None."""
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)

    def __call__(self, position: int) -> float:
        """Return the number of a position, counted from 0, the prompt's first token."""
        return float(np.random.Generator(np.random.Philox(key=self._key, counter=position)).random())


def draw(q: Probabilities, u: float) -> int:
    """Return the token that `u` in [0, 1) draws from weights [vocab], by their cumulative sum."""
    kept, cumulative = _cumulative(q)
    below = min(u * cumulative[-1], np.nextafter(cumulative[-1], 0))  # never the end itself
    return int(kept[np.searchsorted(cumulative, below, side="right")])


def draw_margin(logits: Logits, sampling: Sampling, u: float) -> float:
    """Return how far the draw by `u` from logits [vocab] is from another one, in probability.

    That is the distance of `u` to the ends of the drawn token's share, or the distance of a filter to keeping
    other tokens, where that would move the ends beyond `u`: closer than rounding, and other sums of the same
    logits may draw another token.
    """
    q = warp(logits, sampling)
    kept, cumulative = _cumulative(q)
    cumulative /= cumulative[-1]
    index = int(np.searchsorted(cumulative, min(u, np.nextafter(1.0, 0)), side="right"))
    start = float(cumulative[index - 1]) if index else -math.inf  # the very ends are no boundaries
    end = float(cumulative[index]) if index + 1 < len(kept) else math.inf
    distance, weights = min(u - start, end - u), q[kept]
    edge = float(weights[weights == weights.min()].sum())  # so far can a filter's next choice move the ends
    return min(distance, max(_filter_margin(logits, sampling, q), distance - edge))


def _filter_margin(logits: Logits, sampling: Sampling, q: Probabilities) -> float:
    """Return how far the kept tokens are from the others, and top-p and min-p from where they would cut."""
    weights = warp(logits, Sampling(sampling.temperature))
    margins = [math.inf]
    if not q.all():
        margins.append(float(weights[q > 0].min() - weights[q == 0].max()))
    if sampling.min_p > 0:
        margins.append(float(np.abs(weights - sampling.min_p * weights.max()).min()))
    if sampling.top_p < 1:
        whole = warp(logits, Sampling(sampling.temperature, sampling.top_k)).astype(np.float64)
        reached = np.cumsum(np.sort(whole)[::-1])
        margins.append(float(np.abs(reached - sampling.top_p).min()))
    return min(margins)


def _cumulative(q: Probabilities) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that have weight, and the cumulative sum of their weights."""
    kept = np.flatnonzero(q)
    return kept, np.cumsum(q[kept], dtype=np.float64)
