"""Whether sampled tokens have the distribution that they should: Pearson's chi-square."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.sampling import Logits, Sampling, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

_OFTEN = 200  # visits of a node that are worth a test
_EXPECTED = 5  # draws of a token that make a class of its own


def node_chances(
    tree: DraftTree, logits: Logits, sampling: Sampling, draws: int, seed: int
) -> dict[int, float]:
    """Accept the same tree `draws` times; test the tokens that follow each node that was visited often.

    Args:
        tree: as the drafter drew it.
        logits: [nodes, vocab], the target's after each node.
        sampling: not greedy.
        draws: how often the tree is walked.
        seed: of the walks, each of which is one position's random numbers.

    Returns:
        For each such node, `chance` of what followed it. Tokens must follow it as the target would
        sample them, whether they were accepted or the target's own.
    """
    verify = verifier(replace(sampling, seed=seed))
    output = TargetOutput(logits.argmax(-1), np.empty(0), lambda: logits)
    followers: list[Counter[int]] = [Counter() for _ in range(len(tree))]
    for number in range(draws):
        walked = verify(tree, output, number * len(tree))  # no two walks share a position
        for node, token in zip(walked.path, walked.tokens.tolist(), strict=True):
            followers[node][token] += 1
    return {
        node: chance(counts, warp(logits[node], sampling))
        for node, counts in enumerate(followers)
        if counts.total() >= min(draws, _OFTEN)
    }


def invented_round(vocab_size: int) -> tuple[DraftTree, Logits]:
    """Return a tree of two nodes below each of two, and random logits [nodes, vocab] that favour its tokens.

    So a walk goes anywhere in it, and ends anywhere.
    """
    rng = np.random.default_rng(0)
    tree = DraftTree.with_root(0, [1, 2, 3, 1, 2, 3], [0, 0, 1, 1, 2, 2], [-1, -2, -3, -4, -5, -6])
    logits = rng.normal(size=(len(tree), vocab_size)).astype(np.float32)
    logits[:, 1:4] = np.log(np.exp(logits).sum(axis=-1, keepdims=True) * (0.8, 0.6, 0.4))
    return tree, logits


def chance(counts: Counter[int], q: NDArray[np.floating[Any]]) -> float:
    """Return how probable it is that draws from `q` [vocab] deviate from it as much as `counts` do.

    Tokens that are expected fewer than five times are one class together. The tail of the chi-square
    distribution is Wilson and Hilferty's approximation.
    """
    observed = np.zeros(len(q))
    observed[list(counts)] = list(counts.values())
    if observed[q == 0].any():
        return 0.0
    expected = q.astype(np.float64) * (counts.total() / q.sum(dtype=np.float64))
    rare = expected < _EXPECTED
    if expected[rare].sum() < _EXPECTED and not rare.all():  # too few even together
        rare[np.where(rare, np.inf, expected).argmin()] = True
    observed, expected = _pool(observed, rare), _pool(expected, rare)
    freedom = len(expected) - 1
    if freedom == 0:
        return 1.0
    statistic = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def _pool(values: NDArray[np.float64], rare: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.append(values[~rare], values[rare].sum())
