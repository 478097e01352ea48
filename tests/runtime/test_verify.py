from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Noise, Sampling, draw, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import Drawn, verifier

Grow = Callable[[], tuple[list[int], list[int]]]
Trees = Callable[[int, int, int], Grow]


def leaf_paths(tree: DraftTree) -> list[list[int]]:
    """Every path from the root to a leaf, leftmost first."""

    def below(node: int) -> list[list[int]]:
        children = [child for child in range(1, len(tree)) if tree.parents[child] == node]
        return [[node, *path] for child in children for path in below(child)] or [[node]]

    return below(0)


def output_of(logits: NDArray[np.float32]) -> TargetOutput:
    """Return what a target says that has these logits, [nodes, vocab]."""
    return TargetOutput(logits.argmax(-1), np.zeros((len(logits), 2)), lambda: logits)


def verdict_of(made: Round) -> tuple[tuple[int, ...], int]:
    return made.path, made.bonus


def path_based(
    tree: DraftTree, logits: NDArray[np.float32], sampling: Sampling, position: int
) -> tuple[tuple[int, ...], int]:
    """The definition over whole paths: of the target's own tokens, as many as some path begins with."""
    noise = Noise(sampling.seed)
    paths, accepted = leaf_paths(tree), [0]
    while True:
        depth = len(accepted)
        here = [path for path in paths if path[:depth] == accepted and len(path) > depth]
        row = logits[accepted[-1]]
        y = int(np.argmax(row))
        if not sampling.greedy:
            y = draw(warp(row, sampling), noise(position + depth - 1, len(row)))
        match = next((path[depth] for path in here if tree.tokens[path[depth]] == y), None)
        if match is None:
            return tuple(accepted), y
        accepted = [*accepted, match]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_equals_the_path_based_definition(trees: Trees, temperature: float) -> None:
    sampling = Sampling(temperature, top_p=0.95, seed=3)
    grow, rng = trees(12, 14, 0), np.random.default_rng(1)
    lengths = Counter[int]()
    for case in range(900):
        tokens, parents = grow()
        tree = DraftTree.with_root(0, tokens, parents, np.zeros(len(tokens)))
        logits = rng.normal(0, 2, (len(tree), 12)).astype(np.float32)
        made = verifier(sampling)(tree, output_of(logits), 20 * case)
        assert verdict_of(made) == path_based(tree, logits, sampling, 20 * case)
        lengths[len(made.path)] += 1
    assert len(lengths) > 3  # short and long paths both occurred


def test_greedy_reads_no_logits() -> None:
    def refuse() -> NDArray[np.float32]:
        raise AssertionError("a transfer of the logits")

    output = TargetOutput(np.array([7, 5, 1]), np.zeros((3, 2)), refuse)
    tree = DraftTree.with_root(0, (7, 5), (0, 1), (0, 0))
    assert verdict_of(verifier(Sampling(top_p=0.5))(tree, output, 9)) == ((0, 1, 2), 1)


def test_children_without_weight_are_never_accepted() -> None:
    tree = DraftTree.with_root(0, (1, 2), (0, 0), (0, 0))
    logits = np.tile(np.array([0, -np.inf, -np.inf, 0], dtype=np.float32), (3, 1))
    verify = verifier(Sampling(1.0, seed=0))
    rounds = [verify(tree, output_of(logits), position) for position in range(50)]
    assert all(made.path == (0,) for made in rounds)
    assert {made.bonus for made in rounds} == {0, 3}


def test_a_token_depends_on_its_position_and_on_no_tree() -> None:
    """The same three tokens, found by one wide tree, by a chain, and step by step."""
    table = np.random.default_rng(5).normal(0, 1, (8, 8)).astype(np.float32)  # after the last token
    sampling, tokens = Sampling(1.0, seed=11), [0]
    for position in range(30, 33):
        verify = verifier(sampling)  # a new one each time: nothing is remembered
        tokens.append(verify(DraftTree.with_root(tokens[-1]), output_of(table[[tokens[-1]]]), position).bonus)
    wide = DraftTree.with_root(0, (*range(8), *range(8)), (*[0] * 8, *[1 + tokens[1]] * 8), np.zeros(16))
    for tree in (DraftTree.chain(tokens[:3]), wide):
        made = verifier(sampling)(tree, output_of(table[tree.tokens]), 30)
        assert made.tokens.tolist() == tokens[1:]


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
    output, rng, draws = output_of(table[tree.tokens]), np.random.default_rng(6), 20_000
    verify = verifier(replace(sampling, seed=6))
    counts = np.zeros((5, 5))
    for number in range(draws):
        emitted = verify(tree, output, len(tree) * number).tokens.tolist()
        if len(emitted) == 1:  # the next round would draw it
            emitted.append(draw(warp(table[emitted[0]], sampling), rng.standard_exponential(5)))
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


def drawn_before(temperature: float, vocab: int, seed: int = 0) -> Drawn:
    """Return a rule that has drawn its first token, at position 0."""
    rule = Drawn(Sampling(temperature, seed=seed))
    rule(DraftTree.with_root(0), output_of(np.zeros((1, vocab), np.float32)), 0)
    return rule


def test_noise_knows_what_will_be_drawn_where_shares_are_known() -> None:
    """With it a drafter of the target's shares leads with what is drawn, without it with the likeliest."""
    random, vocab = np.random.default_rng(0), 20
    logits = random.normal(0, 2, (500, vocab)).astype(np.float32)
    rule, all_ids = drawn_before(1.0, vocab), np.arange(vocab)
    wanted = [draw(warp(row, rule.sampling), rule.noise(at, vocab)) for at, row in enumerate(logits)]
    raced = [int((row + rule.gumbel(at, all_ids)).argmax()) for at, row in enumerate(logits)]
    hits, likeliest = np.mean(np.equal(raced, wanted)), np.mean(np.equal(logits.argmax(-1), wanted))
    assert hits > 0.85 > 0.6 > likeliest


def test_noise_is_of_the_tokens_asked_for_and_less_where_it_is_colder() -> None:
    rule, colder = drawn_before(1.0, 30), drawn_before(0.1, 30)
    ids = np.array([4, 29, 0])
    np.testing.assert_array_equal(rule.gumbel(5, ids), rule.gumbel(5, np.arange(30))[ids])
    np.testing.assert_allclose(colder.gumbel(5, ids), 0.1 * rule.gumbel(5, ids), rtol=1e-5)
    np.testing.assert_array_equal(drawn_before(9.0, 30).gumbel(5, ids), rule.gumbel(5, ids))


def test_looked_up_tokens_have_the_chances_that_their_numbers_give() -> None:
    """Over many positions they are right as often as they claim to be, and the numbers tell them apart."""
    random, vocab, share = np.random.default_rng(0), 12, 0.4
    q = np.array([share, *random.dirichlet(np.ones(vocab - 1)) * (1 - share)])
    rule = drawn_before(1.0, vocab)
    said = np.array([next(rule.chances(at, [0], [share])) for at in range(2000)])
    right = np.array([draw(q, rule.noise(at, vocab)) == 0 for at in range(2000)])
    assert abs(said.mean() - right.mean()) < 0.07
    assert right[said > 0.6].mean() > 0.7
    assert right[said < 0.2].mean() < 0.15
    assert list(rule.chances(7, [0, 3], [share, 0.2]))[1:] == list(rule.chances(8, [3], [0.2]))
