"""Sessions over TensorRT and TensorRT-RTX: everything bound once, caches written in place on the device."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract
from poss_export.engine_spec import EngineEntry
from poss_export.runtime.sessions.base import (
    CachedSession,
    DraftCall,
    Ints,
    TargetCall,
    TargetOutput,
)
from poss_export.runtime.sessions.cuda import Device
from poss_export.runtime.sessions.fit import load_library
from poss_export.runtime.sessions.loaded_engine import LoadedEngine
from poss_export.runtime.sessions.ragged import (
    Block,
    draft_inputs,
    drawn,
    in_blocks,
    share,
    target_inputs,
)
from poss_export.runtime.tree import DraftTree


class TensorrtSession(CachedSession):
    """A graph with caches, a call for each block of slots: what target and drafter sessions share.

    Where there are engines of several capacities, answers begin in the smallest, and all move on to the next
    when the tokens of one no longer fit: a call costs as much as its cache is long.
    """

    def __init__(
        self, folder: Path, entries: Sequence[EngineEntry], contract: GraphContract, slots: int = 1
    ) -> None:
        """Keep the arguments: the engines in the bundle `folder`, by ascending capacity."""
        super().__init__(entries[-1].spec.file, entries[-1].spec.capacity, slots)
        self.folder, self.entries, self.contract = folder, entries, contract
        self._ladders = {count: _common_widths(entries, count) for count in range(1, slots + 1)}
        self.widths = self._ladders[1]

    def __enter__(self) -> Self:
        """Load the engines, bind all tensors, allocate the caches.

        Raises:
            BackendError: library, driver or device are missing or others, or the library refuses an engine.
            BundleError: an engine differs from its contract.
        """
        library = load_library(self.entries[0])
        with ExitStack() as stack:
            device = stack.enter_context(Device())
            self.engines = [
                LoadedEngine(library, device, self.folder, entry, self.contract, self.slots)
                for entry in self.entries
            ]
            self._use(self.engines[0])
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Free the engines, their buffers and their caches."""
        del self.engines, self._engine, self._caches
        self._resources.close()

    def release(self, slot: int = 0) -> None:
        """Empty a slot, in the caches of every capacity."""
        for engine in self.engines:
            engine.rows.clear(slot, min(int(self._written[slot]), engine.capacity))
        self._written[slot] = self._lengths[slot] = 0
        if not self._lengths.any():
            self._use(self.engines[0])

    def _use(self, engine: LoadedEngine) -> None:
        self._engine, self._caches = engine, engine.rows

    def _make_room(self, new_rows: Mapping[int, int]) -> None:
        """Move on to an engine whose caches have room for so many more rows of these slots, if one has."""
        needed = max(self.length(slot) + count for slot, count in new_rows.items())
        engine = next((e for e in self.engines if e.capacity >= max(needed, self._engine.capacity)), None)
        if engine is None or engine is self._engine:
            return
        start = time.perf_counter()
        for slot, written in enumerate(self._written.tolist()):
            self._engine.rows.copy_to(engine.rows, slot, min(written, self._engine.capacity))
        self._use(engine)
        self.engine_seconds += time.perf_counter() - start

    def _filled(self, block: Block, count: int) -> int | None:
        """Return the width that calls of up to `count` rows are filled up to; None where there is none.

        The caches must have the room, and an engine must be made for so many sequences.
        """
        room = self._engine.capacity - max(map(self.length, block))
        return min((w for w in self._ladders[len(block)] if count <= w <= room), default=None)

    def _run(
        self, block: Block, inputs: Mapping[str, NDArray[Any]], new_rows: Mapping[int, int], **sizes: int
    ) -> None:
        """Run a call of these sizes, which writes so many new rows in slots of a block, and fills them up."""
        self._write_block(block, new_rows, max(sizes.get("seq", 0), sizes["rows"]))
        start = time.perf_counter()
        self._engine.call(inputs, block, **sizes)
        self.engine_seconds += time.perf_counter() - start


class TensorrtTargetSession(TensorrtSession):
    """The target in TensorRT.

    Trees are filled up to the next width of a fixed profile with tokens that nobody sees. A chunk of a
    prompt, which wants few of its rows, runs as it is.
    """

    fills_up = True

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree; see `TargetSession`. Logits stay on the device until they are read."""
        return self.forward_all([TargetCall(tree, np.arange(len(tree)) if rows is None else rows, slot)])[0]

    def forward_all(self, calls: Sequence[TargetCall]) -> list[TargetOutput]:
        """Run trees of different slots; those of a block whose engine is made for so many share a call.

        Logits of the last block stay on the device until they are read.
        """
        self._make_room({call.slot: len(call.tree) for call in calls})
        blocks = list(share(calls, self.slots, self._may_share, self._fit))
        found = dict[int, TargetOutput]()
        for number, (block, mine) in enumerate(blocks, start=1):
            found |= self._forward(block, mine, keep_logits=number < len(blocks))
        return [found[call.slot] for call in calls]

    def _may_share(self, call: TargetCall) -> bool:
        return len(call.rows) == len(call.tree) <= max(self.widths, default=0)

    def _fit(self, block: Block, calls: Sequence[TargetCall]) -> bool:
        return self._filled(block, max(len(call.tree) for call in calls)) is not None

    def _forward(
        self, block: Block, calls: Sequence[TargetCall], *, keep_logits: bool
    ) -> dict[int, TargetOutput]:
        """Run the calls of a block; return what comes, by slot."""
        width, rows = max(len(call.tree) for call in calls), max(len(call.rows) for call in calls)
        if width == rows and (filled := self._filled(block, width)) is not None:
            width = rows = filled
        inputs = target_inputs(calls, block, self._lengths, width, rows)
        self._run(block, inputs, {call.slot: len(call.tree) for call in calls}, seq=width, rows=rows)
        found = {}
        for tree, wanted, slot in calls:
            place, sizes = slot - block.start, {"seq": len(tree), "rows": len(wanted)}
            tokens, features, logits = (
                partial(self._engine.read, name, place, **sizes)
                for name in ("next_tokens", self.contract.feature_output, "logits")
            )
            if keep_logits:
                logits = partial(np.asarray, logits())
            found[slot] = TargetOutput(tokens(), features(), logits)
        return found


class TensorrtDraftSession(TensorrtSession):
    """A drafter's whole round in TensorRT."""

    def __init__(
        self,
        folder: Path,
        entries: Sequence[EngineEntry],
        contract: GraphContract,
        embeddings: NDArray[Any],
        draft_ids: Ints | None = None,
        slots: int = 1,
    ) -> None:
        """As the parent; `embeddings` is the target's table [vocab, hidden], bfloat16 as its bits."""
        super().__init__(folder, entries, contract, slots)
        self._embeddings, self.draft_ids = embeddings, draft_ids
        self.depth = int(contract.noise.shape[1])

    def propose(
        self,
        next_tokens: Ints,
        features: NDArray[Any],
        slot: int = 0,
        noise: NDArray[np.float32] | None = None,
    ) -> DraftTree:
        """Read new rows and draw a tree; see `DraftSession`."""
        return self.propose_all([DraftCall(next_tokens, features, slot, noise)])[0]

    def propose_all(self, calls: Sequence[DraftCall]) -> list[DraftTree]:
        """Do the same for different slots; those of a block whose engine is made for so many share a call."""
        self._make_room({call.slot: len(call.next_tokens) for call in calls})
        return in_blocks(calls, self.slots, self._may_share, self._fit, self._propose)

    def _may_share(self, call: DraftCall) -> bool:
        return len(call.next_tokens) <= max(self.widths, default=0)

    def _fit(self, block: Block, calls: Sequence[DraftCall]) -> bool:
        return self._filled(block, max(len(call.next_tokens) for call in calls)) is not None

    def _propose(self, block: Block, calls: Sequence[DraftCall]) -> dict[int, DraftTree]:
        """Run the calls of a block; return the trees by slot."""
        counts = {call.slot: len(call.next_tokens) for call in calls}
        longest = max(counts.values())
        rows = self._filled(block, longest) or longest
        inputs = draft_inputs(self.contract, self._embeddings, calls, block, self._lengths, rows)
        self._run(block, inputs, counts, rows=rows)
        for slot, count in counts.items():
            self._lengths[slot] += count
        return drawn(calls, block, self._engine.read)


def _common_widths(entries: Sequence[EngineEntry], sequences: int) -> tuple[int, ...]:
    """Return the widths of so many sequences that engines of every capacity have a fixed profile for."""
    fixed = (
        {p.rows for p in entry.spec.profiles if p.fixed and p.sequences == sequences} for entry in entries
    )
    return tuple(sorted(set.intersection(*fixed)))
