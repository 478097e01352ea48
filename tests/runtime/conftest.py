"""Fake sessions: a target whose logits are a table of the last two tokens, and a drafter that guesses."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from poss_export.runtime.session import Ints, TargetOutput
from poss_export.runtime.tree import DraftTree
from poss_export.text import Text, TextConfig


class FakeSession:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.engine_seconds = capacity, 0.0
        self.lengths: Ints = np.zeros(1, dtype=np.int64)
        self.cache: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def reset(self) -> None:
        self.cache.clear()
        self.lengths[:] = 0


class FakeTarget(FakeSession):
    """Its cache holds token ids; a feature is the token's id, so that a drafter can check what it is told."""

    def __init__(self, table: NDArray[Any], capacity: int) -> None:
        super().__init__(capacity)
        self.table = table  # logits [vocab, vocab, vocab] after the last two tokens
        self.calls: list[int] = []  # tokens of each call

    def forward(
        self, input_ids: Ints, depths: Ints, tree_mask: NDArray[np.bool_], rows: Ints
    ) -> TargetOutput:
        ids = input_ids[0]
        assert len(self.cache) + len(ids) <= self.capacity
        self.new = ids.tolist()
        self.calls.append(len(ids))
        logits = []
        for row in rows[0]:
            context = [0, *self.cache[-1:], *ids[tree_mask[0, row]].tolist()]
            assert context[-1] == ids[row]
            assert depths[0, row] == tree_mask[0, row].sum() - 1
            logits.append(self.table[context[-2], context[-1]])
        scores = np.asarray(logits)[None]
        return TargetOutput(scores.argmax(-1), ids[None, :, None].astype(np.float32), lambda: scores)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        self.cache += [self.new[node] for node in paths[0]]
        self.lengths[0] = len(self.cache)


class FakeDrafter(FakeSession):
    """Draws trees by `grow` and checks that rows come once, in order, each with the token after it."""

    def __init__(self, grow: Callable[[], tuple[list[int], list[int]]], capacity: int) -> None:
        super().__init__(capacity)
        self.grow = grow  # tokens and parents, without the root

    def propose(self, next_tokens: Ints, features: NDArray[Any]) -> list[DraftTree]:
        start = max(len(self.cache) - 1, 0)
        self.cache += zip(features[0, :, 0].tolist(), next_tokens[0].tolist(), strict=True)
        seen = self.cache[start:]
        assert all(token == after[0] for (_, token), after in pairwise(seen))
        self.lengths[0] = len(self.cache)
        tokens, parents = self.grow()
        return [DraftTree.with_root(int(next_tokens[0, -1]), tokens, parents, np.zeros(len(tokens)))]


def random_trees(vocab: int, nodes: int, seed: int) -> Callable[[], tuple[list[int], list[int]]]:
    """Return a maker of trees of any shape whose siblings differ."""
    rng = np.random.default_rng(seed)

    def grow() -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        parents: list[int] = []
        for node in range(1, nodes + 1):
            parent = int(rng.integers(node))
            siblings = {token for token, other in zip(tokens, parents, strict=True) if other == parent}
            free = [token for token in range(vocab) if token not in siblings]
            tokens.append(int(rng.choice(free)) if free else 0)
            parents.append(parent if free else node - 1)
        return tokens, parents

    return grow


@pytest.fixture
def byte_text() -> Text:
    """A tokenizer with a token for every byte; byte 0 stops, and is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=order, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    (stop,) = tokenizer.encode("\0").ids
    tokenizer.add_special_tokens([AddedToken(alphabet[stop], special=True)])
    return Text(tokenizer.to_str(), TextConfig(stop_ids=(stop,)))


@pytest.fixture
def fake_target() -> type[FakeTarget]:
    return FakeTarget


@pytest.fixture
def fake_drafter() -> type[FakeDrafter]:
    return FakeDrafter


@pytest.fixture
def trees() -> Callable[[int, int, int], Callable[[], tuple[list[int], list[int]]]]:
    return random_trees
