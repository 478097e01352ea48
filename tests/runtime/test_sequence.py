from typing import Any, cast

import numpy as np

from poss_export.runtime.sampling import GREEDY
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import PREFILL_CHUNK, DraftSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier


class Reader:
    """Notes what it is shown, and draws nothing."""

    draft_ids = None

    def __init__(self) -> None:
        self.shown: list[tuple[list[int], list[float]]] = []

    def propose(self, next_tokens: Any, features: Any, slot: int = 0, noise: Any = None) -> DraftTree:
        self.shown.append((next_tokens.tolist(), features[:, 0].tolist()))
        return DraftTree.with_root(int(next_tokens[-1]))


def test_a_long_stretch_is_caught_up_with_in_chunks_and_once() -> None:
    """Engines take calls of so many rows at most, and a mask grows with them."""
    sequence, reader = Sequence(np.array([1]), verifier(GREEDY)), Reader()
    tokens = list(range(2 * PREFILL_CHUNK + 5))
    for start in range(0, len(tokens), 7):
        part = np.array(tokens[start : start + 7])
        sequence.keep(part, part[:, None].astype(np.float32))
    assert sequence.unread_rows == len(tokens)
    tree = sequence.draft(cast(DraftSession, reader))
    assert tree.tokens.tolist() == [tokens[-1]]
    assert [len(t) for t, _ in reader.shown] == [PREFILL_CHUNK, PREFILL_CHUNK, 5]
    assert [token for t, _ in reader.shown for token in t] == tokens
    assert all(f == [float(token) for token in t] for t, f in reader.shown)
    assert sequence.unread_rows == 0
