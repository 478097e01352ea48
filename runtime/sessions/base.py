"""What the loop asks of an engine, and what every session with caches does alike.

A session is cheap to construct; entering it loads the engine and allocates its caches, leaving it frees
both. A call serves one sequence, whose rows lie in one slot of the caches. The session owns them: `commit`
keeps the rows of an accepted path, `trim` forgets the last ones, `release` and `reset` empty a slot and all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract
from poss_export.errors import InputError
from poss_export.runtime.sessions.caches import Rows
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.turns import Turns

Ints = NDArray[np.int64]

PREFILL_CHUNK = 256  # tokens of a call that reads: bounds the memory of a mask and of activations


@dataclass(frozen=True)
class TargetOutput:
    """Results of one call, in the session's own buffers: the session's next call overwrites them.

    next_tokens: int64 [rows], the likeliest token after each row asked for.
    features: what the drafter reads of each node, [nodes, feature_size]. logits: [rows, vocab], read only
    where they are asked for, because on a device that is a transfer.
    """

    next_tokens: Ints
    features: NDArray[Any]
    read_logits: Callable[[], NDArray[Any]]

    @property
    def logits(self) -> NDArray[Any]:
        """Logits [rows, vocab]."""
        return self.read_logits()


class TargetCall(NamedTuple):
    """What the target runs for one sequence: a tree behind the committed rows of a slot.

    rows: int64 [rows], the nodes whose logits are wanted.
    """

    tree: DraftTree
    rows: Ints
    slot: int


class DraftCall(NamedTuple):
    """What the drafter reads for one sequence: new rows behind those in its slot (`DraftSession.propose`).

    noise: float32 [depth, draft_vocab], added to the logits of its tokens by depth; None: 0.
    """

    next_tokens: Ints
    features: NDArray[Any]
    slot: int
    noise: NDArray[np.float32] | None = None


class Session(Protocol):
    """What target and drafter sessions share."""

    capacity: int  # rows that a slot holds
    slots: int  # sequences whose rows it can hold at a time
    engine_seconds: float  # time spent in the engine since `reset`

    def __enter__(self) -> Self:
        """Load the engine and allocate the caches."""

    def __exit__(self, *error: object) -> None:
        """Free both."""

    def length(self, slot: int = 0) -> int:
        """Return the rows committed in a slot."""

    def room(self, slot: int = 0) -> int:
        """Return the rows that a slot can still take."""

    def trim(self, rows: int, slot: int = 0) -> None:
        """Forget the committed rows behind the first `rows`."""

    def release(self, slot: int = 0) -> None:
        """Empty a slot."""

    def reset(self) -> None:
        """Empty all slots, and count the engine's time anew."""


class TargetSession(Session, Protocol):
    """The target."""

    widths: tuple[int, ...]  # of calls that the engine was built for, ascending; empty: any
    fills_up: bool  # whether trees that share a call are filled up to the widest of them
    turns: Turns  # which answer has it, and the drafter beside it

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree behind the committed rows; theirs stay provisional until `commit`.

        A call whose every row is wanted costs what the next of `widths` does, while the slot has room for
        it. A chunk of a prompt is a chain, a plain step a tree of its root. `rows` are the nodes whose logits
        are wanted, int64 [rows]; None: all.
        """

    def forward_all(self, calls: Sequence[TargetCall]) -> list[TargetOutput]:
        """Run trees of different slots, in one call where the engine can; the outputs have this order.

        Trees of which few rows are wanted, pieces of prompts, may have calls of their own.
        """

    def commit(self, path: Sequence[int], slot: int = 0) -> None:
        """Keep the rows of these nodes of the last call, ascending, in this order, and drop its others."""


class DraftSession(Session, Protocol):
    """The drafter, whose whole round is one call."""

    depth: int  # of its trees
    draft_ids: Ints | None  # the tokens that it can propose, in the order of its noise; None: it gets none

    def propose(
        self,
        next_tokens: Ints,
        features: NDArray[Any],
        slot: int = 0,
        noise: NDArray[np.float32] | None = None,
    ) -> DraftTree:
        """Read the target's features of new rows, then draw a tree.

        next_tokens: int64 [rows], the token after each row; the last one is the root. features: [rows,
        feature_size]. noise: as in `DraftCall`. The rows are committed at once, since only accepted tokens
        are ever shown to a drafter.
        """

    def propose_all(self, calls: Sequence[DraftCall]) -> list[DraftTree]:
        """Do the same for different slots, in one call where the engine can; the trees have this order."""


def next_token_input(
    contract: GraphContract, embeddings: NDArray[Any], tokens: Ints
) -> tuple[str, NDArray[Any]]:
    """Return how a draft graph reads tokens [rows]: the name of the input, and its values [rows, ...].

    These are rows of the target's table of embeddings, or the ids for a drafter that has a table of its own.
    """
    name = contract.inputs[0].name
    return name, tokens if name == "next_tokens" else embeddings[tokens]


class CachedSession:
    """Counts the rows in its caches and keeps those of accepted paths; a subclass sets `_caches`."""

    widths: tuple[int, ...] = ()  # any
    fills_up = False
    _caches: Rows

    def __init__(self, name: str, capacity: int, slots: int = 1) -> None:
        """Start empty; `name` is the file that errors tell."""
        self.name, self.capacity, self.slots = name, capacity, slots
        self.engine_seconds = 0.0
        self.turns = Turns()
        self._lengths: Ints = np.zeros(slots, dtype=np.int64)
        self._written: Ints = np.zeros(slots, dtype=np.int64)  # rows that may differ from zero

    def length(self, slot: int = 0) -> int:
        """Return the rows committed in a slot."""
        return int(self._lengths[slot])

    def room(self, slot: int = 0) -> int:
        """Return the rows that a slot can still take."""
        return self.capacity - self.length(slot)

    def have_room(self, slots: Iterable[int], rows: int) -> bool:
        """Whether each of these slots can take so many rows."""
        return all(self.room(slot) >= rows for slot in slots)

    def trim(self, rows: int, slot: int = 0) -> None:
        """Forget the committed rows behind the first `rows`; later calls write over them."""
        assert 0 <= rows <= self.length(slot), (rows, self.length(slot))
        self._lengths[slot] = rows

    def release(self, slot: int = 0) -> None:
        """Empty a slot."""
        self._caches.clear(slot, int(self._written[slot]))
        self._written[slot] = self._lengths[slot] = 0

    def reset(self) -> None:
        """Empty all slots, and count the engine's time anew."""
        for slot in range(len(self._lengths)):
            self.release(slot)
        self.engine_seconds = 0.0

    def commit(self, path: Sequence[int], slot: int = 0) -> None:
        """Keep the rows of these nodes of the last call, ascending, in this order, and drop its others."""
        rows = np.asarray(path, dtype=np.int64)
        length = self.length(slot)
        in_place = int((rows == np.arange(len(rows))).sum())  # ascending: those in place come first
        if in_place < len(rows):
            self._caches.move(slot, length + rows[in_place:], length + in_place)
        self._lengths[slot] += len(rows)

    def _write(self, slot: int, new_rows: int, filling: int = 0) -> None:
        """Note that a call writes `new_rows` cache rows after the committed ones, and `filling` more.

        Raises InputError where they do not fit: an engine may write beyond its cache without a word. For what
        fills up a call the session sees to room itself.
        """
        length = self.length(slot)
        if new_rows > self.room(slot):
            raise InputError(
                f"{self.name}: {new_rows} tokens after {length} do not fit the capacity {self.capacity}"
            )
        self._written[slot] = max(self._written[slot], length + new_rows + filling)

    def _write_block(self, block: range, new_rows: Mapping[int, int], width: int) -> None:
        """Note that a call writes `width` rows in each slot of a block, of which so many are new, by slot."""
        for slot in block:
            new = new_rows.get(slot, 0)
            self._write(slot, new, width - new)
