from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from poss_export.runtime.loop import speculate
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Sampling, warp
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.verify import verifier

Grow = Callable[[], tuple[list[int], list[int]]]
GREEDY = Sampling()
VOCAB = 5


def table(seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 1.2, (VOCAB, VOCAB, VOCAB)).astype(np.float32)


def chain_of(length: int, seed: int) -> Grow:
    rng = np.random.default_rng(seed)
    return lambda: (rng.integers(VOCAB, size=length).tolist(), list(range(length)))


def rounds_of(target: Any, drafter: Any, prompt: list[int], sampling: Sampling = GREEDY) -> Iterator[Round]:
    return speculate(target, drafter, Sequence(np.array(prompt), verifier(sampling)), chunk=4)


def emitted(target: Any, drafter: Any, prompt: list[int], sampling: Sampling = GREEDY) -> list[int]:
    rounds = rounds_of(target, drafter, prompt, sampling)
    return list(chain.from_iterable(made.tokens.tolist() for made in rounds))


@pytest.mark.parametrize("nodes", [1, 4, 9])
@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 8, 13])
def test_greedy_equals_target_only_to_the_last_token(
    fake_target: Any, fake_drafter: Any, trees: Any, nodes: int, prompt: int
) -> None:
    """Whatever the drafter guesses, and up to a full cache: capacity - prompt + 1 tokens come."""
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(VOCAB, size=prompt).tolist()
        plain = emitted(fake_target(table(seed), 40), None, ids)
        drafted = emitted(fake_target(table(seed), 40), fake_drafter(trees(VOCAB, nodes, seed), 40), ids)
        assert drafted == plain
        assert len(plain) == 40 - prompt + 1


def test_good_drafts_take_fewer_rounds(fake_target: Any, fake_drafter: Any) -> None:
    """A drafter that knows the answer has its whole chain accepted."""
    answer = emitted(fake_target(table(0), 32), None, [1, 2])
    target = fake_target(table(0), 32)

    def grow() -> tuple[list[int], list[int]]:
        known = answer[target.length() - 1 :][:3]
        return known, list(range(len(known)))

    rounds = list(rounds_of(target, fake_drafter(grow, 32), [1, 2]))
    assert list(chain.from_iterable(made.tokens.tolist() for made in rounds)) == answer
    assert [len(made.path) for made in rounds] == [1, 4, 4, 4, 4, 4, 4, 4, 2]


def test_prompt_is_read_in_chunks(fake_target: Any, fake_drafter: Any) -> None:
    target, drafter = fake_target(table(0), 40), fake_drafter(chain_of(3, 0), 40)
    next(rounds_of(target, drafter, [*range(4), *range(4), 1]))
    assert target.calls == [4, 4, 1]
    assert drafter.length() == 8  # the last chunk waits for the first round


def test_trees_shrink_to_what_fits(fake_target: Any, fake_drafter: Any, trees: Any) -> None:
    target = fake_target(table(1), 12)
    tokens = emitted(target, fake_drafter(trees(VOCAB, 8, 1), 12), [1, 2, 3])
    assert len(tokens) == 10
    assert target.length() == 12
    assert target.calls[1] == 9
    assert target.calls[-1] < 9


def test_prompt_that_fills_the_cache_gives_one_token(fake_target: Any) -> None:
    assert len(emitted(fake_target(table(0), 4), None, [1, 2, 3, 4])) == 1


def test_same_seed_same_tokens(fake_target: Any, fake_drafter: Any, trees: Any) -> None:
    def run(seed: int) -> list[int]:
        drafter = fake_drafter(trees(VOCAB, 6, 0), 60)
        return emitted(fake_target(table(2), 60), drafter, [1], Sampling(1.0, seed=seed))

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_drafts_that_follow_the_noise_are_what_is_drawn(fake_target: Any, fake_drafter: Any) -> None:
    """Where all tokens are alike the numbers alone decide: of the tokens and positions that they are of."""
    same, ids = np.zeros((VOCAB, VOCAB, VOCAB), np.float32), np.array([3, 0, 4, 1, 2])

    def grow() -> tuple[list[int], list[int]]:
        best = [] if drafter.noise[-1] is None else ids[drafter.noise[-1].argmax(-1)]
        return list(best), list(range(len(best)))

    drafter = fake_drafter(grow, 40)
    drafter.draft_ids, drafter.depth = ids, 4
    _, *rounds = rounds_of(fake_target(same, 40), drafter, [1, 2], Sampling(1.0, seed=5))
    assert [made.accepted for made in rounds[:-1]] == [4] * len(rounds[:-1])
    drafter.reset()
    drafter.noise.clear()
    emitted(fake_target(same, 40), drafter, [1, 2])
    assert set(drafter.noise) == {None}  # nothing is drawn


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.7), Sampling(1.3, top_k=3), Sampling(0.9, top_p=0.8, min_p=0.1)]
)
@pytest.mark.parametrize("nodes", [1, 4, 9])
def test_sampled_equals_target_only_with_the_same_seed(
    fake_target: Any, fake_drafter: Any, trees: Any, nodes: int, sampling: Sampling
) -> None:
    """Token for token, whatever the drafter guesses: each is drawn by its position's random number."""
    saved = 0
    for seed in range(12):
        seeded = replace(sampling, seed=seed)
        plain = emitted(fake_target(table(seed), 40), None, [1, 2, 3], seeded)
        drafter = fake_drafter(trees(VOCAB, nodes, seed), 40)
        rounds = list(rounds_of(fake_target(table(seed), 40), drafter, [1, 2, 3], seeded))
        assert list(chain.from_iterable(made.tokens.tolist() for made in rounds)) == plain
        saved += len(plain) - len(rounds)
    assert saved > 20  # drafted tokens were accepted; without them nothing was shown


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, seed=1), Sampling(0.8, top_k=3, top_p=0.9, seed=2)], ids=["plain", "filters"]
)
def test_sampling_has_the_targets_distribution(
    fake_target: Any, fake_drafter: Any, trees: Any, shape: str, sampling: Sampling
) -> None:
    """20,000 tokens of one answer: each is one draw of the warped row of the two tokens before it."""
    draws, logits = 20_000, table(7)
    grow = chain_of(3, 1) if shape == "chain" else trees(VOCAB, 6, 1)
    rounds = rounds_of(fake_target(logits, draws + 50), fake_drafter(grow, draws + 50), [1, 2], sampling)
    tokens = [1, 2, *islice(chain.from_iterable(made.tokens.tolist() for made in rounds), draws)]
    counts = np.zeros((VOCAB, VOCAB, VOCAB))
    np.add.at(counts, (tokens[:-2], tokens[1:-1], tokens[2:]), 1)
    q = np.array([[warp(row, sampling) for row in rows] for rows in logits])
    expected = counts.sum(-1, keepdims=True) * q
    assert (counts[q == 0] == 0).all()
    seen = expected > 5  # what the chi-square approximation asks for
    chi_square = ((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum()
    freedom = seen.sum() - (expected.sum(-1) > 0).sum()
    assert freedom > 20
    assert chi_square < freedom + 3.3 * np.sqrt(2 * freedom)
