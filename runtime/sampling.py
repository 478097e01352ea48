"""How the next token is chosen from logits."""

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError
from poss_export.exactness import NEAR_TIE

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
                self.temperature == 0 or 1e-6 <= self.temperature <= 1e30,
                "0 (greedy), or from 1e-6 to 1e30",
            ),
            (
                "top_k",
                isinstance(self.top_k, Integral) and self.top_k >= 0,
                "0 (off) or a positive number of tokens",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            (
                "seed",
                self.seed is None or (isinstance(self.seed, Integral) and self.seed >= 0),
                "0, a positive number, or left out",
            ),
        ):
            if not valid:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {expected}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def filters(self) -> bool:
        """Whether any filter is on."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


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
    bound = min((1 - top_p) * mass / len(q), float(q.max()))  # rounding may put it above all of them
    candidates = np.sort(q[q >= bound])[::-1]
    reached = int(np.searchsorted(np.cumsum(candidates, dtype=np.float64), top_p * mass))
    edge: np.float32 = candidates[min(reached, len(candidates) - 1)]
    return edge


_REMEMBERED = 32  # positions: as far as a round may reach


class Noise:
    """Random numbers of each absolute position, one a token, whatever was asked before.

    A counter-based generator (Philox, Salmon et al. 2011): the seed is its key, the position is in its
    counter. So what is drawn does not depend on how many trees, rounds or other sequences came before.
    """

    def __init__(self, seed: int | None) -> None:
        """Take a seed, or one of the system's for None."""
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._latest = dict[int, NDArray[np.float64]]()  # by position: who plans asks before who draws

    def __call__(self, position: int, vocab: int) -> NDArray[np.float64]:
        """Return exponential numbers [vocab] of mean 1; positions count from the prompt's first token.

        They are written over when as many later positions were asked for as a round may reach: new memory
        would take longer than the numbers.
        """
        known = self._latest.get(position)
        if known is not None and len(known) == vocab:
            return known
        counter = position << 64  # its lower word counts the numbers of one position
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        numbers = np.empty(0)
        if len(self._latest) == _REMEMBERED:
            numbers = self._latest.pop(min(self._latest))
        if len(numbers) != vocab:
            numbers = np.empty(vocab)
        generator.standard_exponential(vocab, out=numbers)
        self._latest[position] = numbers
        return numbers

    def ahead(self, position: int) -> NDArray[np.float64]:
        """Return the numbers of a position to come, for as many tokens as something was drawn of before."""
        return self(position, len(next(reversed(self._latest.values()))))


def draw(q: Probabilities, noise: NDArray[np.float64]) -> int:
    """Return the token that exponential `noise` [vocab] draws from weights [vocab].

    Times noise / q are a race that each token wins with its share of q (the Gumbel-max trick, without
    logarithms). Close weights change the winner only where it hardly won.
    """
    return int((q / noise).argmax())


def draw_gap(
    logits: Logits, sampling: Sampling, noise: NDArray[np.float64], tolerance: float = NEAR_TIE
) -> float:
    """Return by how much logits [vocab] must change before `noise` draws another token.

    That is how far the winner is ahead, as a difference of logits; and 0 where a filter decided by less than
    `tolerance` about a token that matters: the winner, or one that would have won.
    """
    q, whole = warp(logits, sampling), warp(logits, Sampling(sampling.temperature))
    winner = draw(q, noise)
    for kept in _nearly_kept(q, whole, logits, sampling, tolerance):
        if draw(np.where(kept, whole, 0), noise) != winner:
            return 0.0
    second, first = np.partition(q / noise, -2)[-2:]
    return sampling.temperature * math.log(first / second) if second > 0 else math.inf


def _nearly_kept(
    q: Probabilities, whole: Probabilities, logits: Logits, sampling: Sampling, tolerance: float
) -> list[NDArray[np.bool_]]:
    """Return which tokens filters would keep if they cut a little less, and if they cut a little more."""
    if not sampling.filters:
        return []
    ratio = math.exp(min(tolerance / sampling.temperature, 80))  # which single precision holds
    less, more = (
        warp(
            logits,
            replace(
                sampling,
                top_p=min(max(sampling.top_p + side * tolerance, 1e-9), 1.0),
                min_p=min(sampling.min_p * ratio**-side, 1.0),
            ),
        )
        > 0
        for side in (1, -1)
    )
    beside = whole * ratio >= whole[q > 0].min()
    inside = whole > whole[q == 0].max(initial=0.0) * ratio
    return [less | beside, more & (inside | (whole == whole.max()))]
