"""Which slots share a call, and what a call of several sequences reads."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from poss_export.runtime.sessions.base import TargetCall
from poss_export.runtime.sessions.ragged import Block, share, target_inputs
from poss_export.runtime.tree import DraftTree

STEP, NONE = DraftTree.with_root(1), np.zeros(0, np.int64)


def calls_in(slots: Sequence[int]) -> list[TargetCall]:
    return [TargetCall(STEP, NONE, slot) for slot in slots]


def blocks_of(calls: Sequence[TargetCall], slots: int, largest: int = 64) -> list[Block]:
    found = share(calls, slots, lambda _: True, lambda block, _: len(block) <= largest)
    return [block for block, _ in found]


@given(st.integers(1, 12), st.data())
def test_every_call_is_in_one_aligned_block(slots: int, data: st.DataObject) -> None:
    at_work = data.draw(st.lists(st.integers(0, slots - 1), unique=True))
    alone = set(data.draw(st.lists(st.sampled_from(at_work)))) if at_work else set()
    largest = data.draw(st.sampled_from([1, 2, 4, 16]))
    calls = calls_in(at_work)
    found = list(share(calls, slots, lambda c: c.slot not in alone, lambda b, _: len(b) <= largest))
    assert sorted(call.slot for _, mine in found for call in mine) == sorted(at_work)
    for block, mine in found:
        assert all(call.slot in block for call in mine)
        assert len(mine) == 1 or not alone.intersection(call.slot for call in mine)
        assert block.stop <= slots
        assert len(block) <= largest
        size = 1 << (len(block) - 1).bit_length()
        assert block.start % size == 0
        assert len(block) == size or block.stop == slots
    together = [block for block, mine in found if mine[0].slot not in alone]
    assert len({slot for block in together for slot in block}) == sum(map(len, together))


def test_a_block_is_as_small_as_can_be() -> None:
    assert blocks_of(calls_in([0, 1, 2]), 8) == [range(4)]
    assert blocks_of(calls_in([5]), 8) == [range(5, 6)]
    assert blocks_of(calls_in([6, 7]), 8) == [range(6, 8)]
    assert blocks_of(calls_in([3, 4]), 8) == [range(8)]
    assert blocks_of(calls_in([0, 4]), 5) == [range(5)]


def test_what_does_not_fit_is_halved() -> None:
    assert blocks_of(calls_in([0, 1, 2, 6]), 8, largest=2) == [range(2), range(2, 3), range(6, 7)]
    assert blocks_of(calls_in([0, 3]), 4, largest=2) == [range(1), range(3, 4)]


def test_what_fills_up_sees_the_text_and_itself() -> None:
    tree = DraftTree.with_root(7, [8, 9], [0, 0], [-0.1, -0.2])
    calls = [TargetCall(tree, np.array([0, 2]), 5), TargetCall(STEP, np.array([0]), 6)]
    lengths = np.array([0, 0, 0, 0, 3, 11, 2, 30])
    found = target_inputs(calls, range(4, 8), lengths, 4, 3)
    assert found["past_length"].tolist() == [3, 11, 2, 30]
    assert found["input_ids"].tolist() == [[0] * 4, [7, 8, 9, 0], [1, 0, 0, 0], [0] * 4]
    assert found["position_ids"].tolist() == [[3] * 4, [11, 12, 12, 11], [2] * 4, [30] * 4]
    assert found["logits_rows"].tolist() == [[0] * 3, [0, 2, 0], [0] * 3, [0] * 3]
    expected = np.eye(4, dtype=bool)
    for place in (0, 2, 3):
        assert (found["tree_mask"][place] == expected).all()
    expected[1:3, 0] = True
    assert (found["tree_mask"][1] == expected).all()
