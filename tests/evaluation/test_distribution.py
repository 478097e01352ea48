"""Accepted trees keep the target's distribution, and a wrong rule of acceptance shows."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from poss_export.evaluation import distribution
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Sampling, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree

# Two children under the root and one below the first; logits of a random target over 12 tokens.
TREE = DraftTree.with_root(0, np.array([3, 5, 7]), np.array([0, 0, 1]), np.array([-1, -2, -3], np.float32))
LOGITS = np.random.default_rng(1).normal(size=(4, 12)).astype(np.float32)
LOGITS[[0, 0, 1], [3, 5, 7]] += 3  # the drafter is good: all nodes are visited
SAMPLINGS = [Sampling(1.0), Sampling(0.7, top_k=6), Sampling(1.3, top_p=0.8), Sampling(1.0, min_p=0.05)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_accepted_trees_keep_the_distribution(sampling: Sampling) -> None:
    chances = distribution.node_chances(TREE, LOGITS, sampling, 20_000, seed=0)
    assert chances.keys() >= {0, 1}
    assert min(chances.values()) > 1e-3


RNG = np.random.default_rng(0)


def always(tree: DraftTree, output: TargetOutput, position: int) -> Round:
    """Accept the first child without a draw."""
    q = warp(output.logits[1], Sampling(1.0))
    return Round(tree, (0, 1), int(RNG.choice(12, p=q)))


def unmoved(tree: DraftTree, output: TargetOutput, position: int) -> Round:
    """After a refusal draw from the whole distribution, which may give the refused token again."""
    q = warp(output.logits[0], Sampling(1.0)).astype(np.float64)
    accepted = RNG.random() < q[3]
    return Round(tree, (0, 1), 0) if accepted else Round(tree, (0,), int(RNG.choice(12, p=q / q.sum())))


@pytest.mark.parametrize("fault", [always, unmoved])
def test_a_wrong_acceptance_rule_shows(fault: Callable[..., Round], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "verifier", lambda sampling: fault)
    chances = distribution.node_chances(TREE, LOGITS, Sampling(1.0), 2000, seed=0)
    assert min(chances.values()) < 1e-9


def test_chance_of_a_fair_sample_is_uniform() -> None:
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.full(30, 0.3))
    chances = [distribution.chance(Counter(rng.choice(30, size=500, p=q).tolist()), q) for _ in range(400)]
    assert 0.4 < np.mean(chances) < 0.6
    assert 0.02 < np.mean(np.array(chances) < 0.1) < 0.2


def test_chance_of_special_samples() -> None:
    assert distribution.chance(Counter({1: 10}), np.array([0.0, 1.0, 0.0])) == 1.0
    assert distribution.chance(Counter({0: 1, 1: 10}), np.array([0.0, 1.0, 0.0])) == 0.0
    # By the tables of the chi-square distribution: 10.83 at one degree of freedom is 0.001.
    assert distribution.chance(Counter({0: 552, 1: 448}), np.array([0.5, 0.5])) == pytest.approx(
        1e-3, rel=0.2
    )
