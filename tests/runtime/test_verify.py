from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from poss_export.runtime.sampling import Sampling, draw, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import Verdict, verifier, verify_greedy, verify_sampled

Grow = Callable[[], tuple[list[int], list[int]]]
Trees = Callable[[int, int, int], Grow]


def leaf_paths(tree: DraftTree) -> list[list[int]]:
    """Every path from the root to a leaf, leftmost first."""

    def below(node: int) -> list[list[int]]:
        children = [child for child in range(1, len(tree)) if tree.parents[child] == node]
        return [[node, *path] for child in children for path in below(child)] or [[node]]

    return below(0)


def path_based(
    tree: DraftTree, logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator
) -> Verdict:
    """The published definition: candidates are whole paths, filtered token by token."""
    paths, accepted = leaf_paths(tree), [0]
    while True:
        depth = len(accepted)
        here = [path for path in paths if path[:depth] == accepted and len(path) > depth]
        if sampling.greedy:
            best = int(np.argmax(logits[accepted[-1]]))
            match = next((path[depth] for path in here if tree.tokens[path[depth]] == best), None)
            if match is None:
                return Verdict(accepted, best)
            accepted = [*accepted, match]
            continue
        q = warp(logits[accepted[-1]], sampling)
        for node in dict.fromkeys(path[depth] for path in here):
            x = tree.tokens[node]
            if rng.random() < q[x]:
                accepted = [*accepted, node]
                break
            q[x] = 0
            q = q / q.sum()
        else:
            return Verdict(accepted, draw(q, rng))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_equals_the_path_based_definition(trees: Trees, temperature: float) -> None:
    sampling = Sampling(temperature, top_p=0.95)
    grow, rng = trees(12, 14, 0), np.random.default_rng(1)
    lengths = Counter[int]()
    for case in range(300):
        tokens, parents = grow()
        tree = DraftTree.with_root(0, tokens, parents, np.zeros(len(tokens)))
        logits = rng.normal(0, 2, (len(tree), 12)).astype(np.float32)
        expected = path_based(tree, logits, sampling, np.random.default_rng(case))
        if sampling.greedy:
            verdict = verify_greedy(tree, logits.argmax(-1))
        else:
            verdict = verify_sampled(tree, logits, sampling, np.random.default_rng(case))
        assert verdict == expected
        lengths[len(verdict.path)] += 1
    assert len(lengths) > 3  # short and long paths both occurred


def test_greedy_reads_no_logits() -> None:
    def refuse() -> NDArray[np.float32]:
        raise AssertionError("a transfer of the logits")

    output = TargetOutput(np.array([[7, 5, 1]]), np.zeros((1, 3, 2)), refuse)
    tree = DraftTree.with_root(0, (7, 5), (0, 1), (0, 0))
    assert verifier(Sampling(top_p=0.5))(tree, output) == Verdict([0, 1, 2], 1)


def test_certain_child_refused_by_rounding_is_accepted() -> None:
    class One(np.random.Generator):
        def random(self) -> float:  # type: ignore[override]
            return 1.0  # what u < 1 rounds to

    tree = DraftTree.with_root(0, (1,), (0,), (0,))
    logits = np.array([[0, 90, 0], [90, 0, 0]], dtype=np.float32)
    verdict = verify_sampled(tree, logits, Sampling(1.0, top_k=1), One(np.random.PCG64(0)))
    assert verdict == Verdict([0, 1], 0)


def test_children_without_weight_are_never_accepted() -> None:
    tree = DraftTree.with_root(0, (1, 2), (0, 0), (0, 0))
    logits = np.tile(np.array([0, -np.inf, -np.inf, 0], dtype=np.float32), (3, 1))
    rng = np.random.default_rng(0)
    verdicts = [verify_sampled(tree, logits, Sampling(1.0), rng) for _ in range(50)]
    assert all(verdict.path == [0] for verdict in verdicts)
    assert {verdict.bonus for verdict in verdicts} == {0, 3}


CHAIN = DraftTree.with_root(0, (1, 2, 3), (0, 1, 2), (0, 0, 0))
BUSHY = DraftTree.with_root(0, (1, 2, 4, 0, 3, 2), (0, 0, 0, 1, 1, 2), (0, 0, 0, 0, 0, 0))
WHOLE = DraftTree.with_root(0, (4, 3, 2, 1, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0))  # proposes every token


PLAIN, NUCLEUS = Sampling(1.0), Sampling(1.2, top_p=0.8)
TOP_K, BOTH = Sampling(0.7, top_k=3), Sampling(1.0, top_k=4, top_p=0.9, min_p=0.1)


@pytest.mark.parametrize(
    ("tree", "sampling"),
    [(CHAIN, PLAIN), (CHAIN, TOP_K), (BUSHY, PLAIN), (BUSHY, NUCLEUS), (BUSHY, BOTH), (WHOLE, PLAIN)],
    ids=["chain", "chain-top-k", "tree", "tree-top-p", "tree-all-filters", "every-token"],
)
def test_two_emitted_tokens_have_the_targets_distribution(tree: DraftTree, sampling: Sampling) -> None:
    """The first two tokens of 20,000 rounds, against the product of the warped distributions."""
    table = np.random.default_rng(5).normal(0, 1.2, (5, 5)).astype(np.float32)  # after the last token
    logits, rng, draws = table[tree.tokens], np.random.default_rng(6), 20_000
    counts = np.zeros((5, 5))
    for _ in range(draws):
        path, bonus = verify_sampled(tree, logits, sampling, rng)
        emitted = [*tree.tokens[path[1:]], bonus]
        if len(emitted) == 1:  # the next round would draw it
            emitted.append(draw(warp(table[bonus], sampling), rng))
        counts[emitted[0], emitted[1]] += 1
    expected = draws * np.array(
        [[warp(table[0], sampling)[x] * warp(table[x], sampling)[y] for y in range(5)] for x in range(5)]
    )
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    chi_square = ((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum()
    freedom = seen.sum() - 1
    assert chi_square < freedom + 3.3 * np.sqrt(2 * freedom)  # a wrong rule gives hundreds


def test_the_distribution_test_notices_a_wrong_rule() -> None:
    """Accepting by the un-renormalised probability is the classic mistake; 20,000 draws tell."""
    q = warp(np.array([1.0, 0.5, 0.0], dtype=np.float32), Sampling(1.0))
    rng, counts = np.random.default_rng(7), np.zeros(3)
    for _ in range(20_000):
        for x in (0, 1):
            if rng.random() < q[x]:
                break
        else:
            x = 2
        counts[x] += 1
    chi_square = ((counts - 20_000 * q) ** 2 / (20_000 * q)).sum()
    assert chi_square > 100
