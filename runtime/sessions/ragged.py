"""Sequences of different lengths beside each other in one call: which slots share one, and what it reads.

A call takes a block of slots, which lie behind each other in the caches. Its sequences are filled up to one
width on the right, by rows that see the text and themselves and that nobody sees; so are slots of the block
that are not at work. What fills up is written behind the committed rows, where later calls write over it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract
from poss_export.runtime.sessions.base import DraftCall, Ints, TargetCall, next_token_input
from poss_export.runtime.tree import DraftTree

Block = range  # of slots
Call = TypeVar("Call", TargetCall, DraftCall)
Result = TypeVar("Result")


def share(
    calls: Sequence[Call],
    slots: int,
    may: Callable[[Call], bool],
    fits: Callable[[Block, list[Call]], bool],
) -> Iterator[tuple[Block, list[Call]]]:
    """Yield the blocks of slots that share a call, and the calls in each; those that may not share come last.

    For what fills up a block is written where calls of its other slots write later, and not the reverse.

    A block begins at a multiple of its size, a power of two but for the last slots, so that there are few of
    them; it is as small as can be, and one that does not fit is halved. A single slot always fits.
    """
    sharing = [call for call in calls if may(call)]

    def split(block: Block) -> Iterator[tuple[Block, list[Call]]]:
        mine = [call for call in sharing if call.slot in block]
        middle = block.start + (1 << (len(block) - 1).bit_length()) // 2
        halves = Block(block.start, middle), Block(middle, block.stop)
        spread = all(any(call.slot in half for call in mine) for half in halves)
        if mine and (len(block) == 1 or (spread and fits(block, mine))):
            yield block, mine
        elif mine:
            for half in halves:
                yield from split(half)

    yield from split(Block(slots))
    for call in calls:
        if not may(call):
            yield Block(call.slot, call.slot + 1), [call]


def in_blocks(
    calls: Sequence[Call],
    slots: int,
    may: Callable[[Call], bool],
    fits: Callable[[Block, list[Call]], bool],
    run: Callable[[Block, list[Call]], dict[int, Result]],
) -> list[Result]:
    """Run calls in the blocks that `share` makes; return what `run` gave by slot, in their order."""
    found = dict[int, Result]()
    for block, mine in share(calls, slots, may, fits):
        found |= run(block, mine)
    return [found[call.slot] for call in calls]


def target_inputs(
    calls: Sequence[TargetCall], block: Block, lengths: Ints, width: int, wanted: int
) -> dict[str, NDArray[Any]]:
    """Return what a target graph reads for a block, but for its caches.

    lengths: int64 [slots], committed rows of all slots. width, wanted: tokens of each sequence, and logits.
    """
    batch, past = len(block), lengths[block.start : block.stop]
    ids, rows = np.zeros((batch, width), np.int64), np.zeros((batch, wanted), np.int64)
    positions = np.repeat(past[:, None], width, axis=1)
    mask = np.repeat(np.eye(width, dtype=bool)[None], batch, axis=0)
    for call in calls:
        place, seq = call.slot - block.start, len(call.tree)
        ids[place, :seq] = call.tree.tokens
        positions[place, :seq] += call.tree.depths
        mask[place, :seq, :seq] = call.tree.mask
        rows[place, : len(call.rows)] = call.rows
    return {
        "input_ids": ids,
        "position_ids": positions,
        "tree_mask": mask,
        "past_length": past,
        "logits_rows": rows,
    }


def draft_inputs(
    contract: GraphContract,
    embeddings: NDArray[Any],
    calls: Sequence[DraftCall],
    block: Block,
    lengths: Ints,
    rows: int,
) -> dict[str, NDArray[Any]]:
    """Return what a draft graph reads for a block, but for its caches, `rows` new rows of each sequence.

    embeddings: the target's table [vocab, hidden]. lengths: int64 [slots], rows in the caches of all slots.
    """
    parts = [next_token_input(contract, embeddings, call.next_tokens) for call in calls]
    name, example = parts[0]
    tokens = np.zeros((len(block), rows, *example.shape[1:]), example.dtype)
    features = np.zeros((len(block), rows, calls[0].features.shape[1]), calls[0].features.dtype)
    count = np.ones(len(block), np.int64)
    for call, (_, values) in zip(calls, parts, strict=True):
        place, new = call.slot - block.start, len(values)
        tokens[place, :new], features[place, :new], count[place] = values, call.features, new
    noise = np.zeros(contract.noise.with_sizes(batch=len(block)).sizes, np.float32)
    for call in calls:
        if call.noise is not None:
            noise[call.slot - block.start] = call.noise
    return {
        name: tokens,
        "features": features,
        "row_count": count,
        "past_length": lengths[block.start : block.stop],
        "gumbel_noise": noise,
    }


def drawn(
    calls: Sequence[DraftCall], block: Block, read: Callable[[str, int], NDArray[Any]]
) -> dict[int, DraftTree]:
    """Return the trees that a draft call gave, by slot; `read`: an output, by its name, at a place."""
    trees = {}
    for call in calls:
        parts = (read(f"tree_{name}", call.slot - block.start) for name in ("tokens", "parents", "scores"))
        trees[call.slot] = DraftTree.with_root(int(call.next_tokens[-1]), *parts)
    return trees
