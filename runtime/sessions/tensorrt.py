"""Sessions over TensorRT and TensorRT-RTX: everything bound once, caches written in place on the device."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract
from poss_export.engine_spec import EngineEntry
from poss_export.runtime.sessions.base import (
    CachedSession,
    Ints,
    TargetCall,
    TargetOutput,
    next_token_input,
)
from poss_export.runtime.sessions.cuda import Device
from poss_export.runtime.sessions.fit import load_library
from poss_export.runtime.sessions.loaded_engine import LoadedEngine
from poss_export.runtime.tree import DraftTree


class TensorrtSession(CachedSession):
    """A graph with caches, of one slot: what target and drafter sessions share.

    Where there are engines of several capacities, an answer begins in the smallest and moves on to the
    next when its tokens no longer fit: a call costs as much as its cache is long.
    """

    def __init__(self, folder: Path, entries: Sequence[EngineEntry], contract: GraphContract) -> None:
        """Keep the arguments: the engines in the bundle `folder`, by ascending capacity."""
        super().__init__(entries[-1].spec.file, entries[-1].spec.capacity)
        self.folder, self.entries, self.contract = folder, entries, contract
        self.widths = _common_widths(entries)

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
                LoadedEngine(library, device, self.folder, entry, self.contract) for entry in self.entries
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
        self._use(self.engines[0])

    def _use(self, engine: LoadedEngine) -> None:
        self._engine, self._caches = engine, engine.rows

    def _engine_for(self, slot: int, new_rows: int) -> LoadedEngine:
        """Return the engine in use, or the next whose caches have room for `new_rows` more rows."""
        needed = max(self.length(slot) + new_rows, self._engine.capacity)
        return next(engine for engine in self.engines if engine.capacity >= needed)

    def _filled(self, slot: int, count: int) -> int:
        """Return the width that a call of `count` rows is filled up to, where the caches have the room."""
        if count > self.room(slot):
            return count  # which is refused
        room = self._engine_for(slot, count).capacity - self.length(slot)
        return min((width for width in self.widths if count <= width <= room), default=count)

    def _call(
        self, slot: int, arrays: Mapping[str, NDArray[Any]], new_rows: int, filling: int, **sizes: int
    ) -> None:
        """Run a call that writes `new_rows` cache rows, and `filling` more that nobody sees.

        `arrays` are the inputs but the past.
        """
        self._write(slot, new_rows, filling)
        engine = self._engine_for(slot, new_rows)
        start = time.perf_counter()
        if engine is not self._engine:
            self._engine.rows.copy_to(engine.rows, slot, self.length(slot))
            self._use(engine)
        engine.call({**arrays, "past_length": self._lengths}, **sizes)
        self.engine_seconds += time.perf_counter() - start


class TensorrtTargetSession(TensorrtSession):
    """The target in TensorRT.

    A tree is filled up to the next width of a fixed profile with tokens that nobody sees. A chunk of a
    prompt, which wants few of its rows, runs as it is.
    """

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree; see `TargetSession`. Logits stay on the device until they are read."""
        seq, rows = len(tree), np.arange(len(tree)) if rows is None else rows
        filling = self._filled(slot, seq) - seq if len(rows) == seq else 0
        mask = np.eye(seq + filling, dtype=bool)
        mask[:seq, :seq] = tree.mask
        arrays = {
            "input_ids": np.pad(tree.tokens, (0, filling))[None],
            "position_ids": self.length(slot) + np.pad(tree.depths, (0, filling))[None],
            "tree_mask": mask[None],
            "logits_rows": np.pad(rows, (0, filling))[None],
        }
        self._call(slot, arrays, seq, filling, seq=seq + filling, rows=len(rows) + filling)
        read, wanted = self._engine.read, {"seq": seq, "rows": len(rows)}
        return TargetOutput(
            read("next_tokens", **wanted)[0],
            read(self.contract.feature_output, **wanted)[0],
            lambda: read("logits", **wanted)[0],
        )

    def forward_all(self, calls: Sequence[TargetCall]) -> list[TargetOutput]:
        """Run the tree of the only slot there is."""
        return [self.forward(*call) for call in calls]


class TensorrtDraftSession(TensorrtSession):
    """A drafter's whole round in TensorRT."""

    def __init__(
        self,
        folder: Path,
        entries: Sequence[EngineEntry],
        contract: GraphContract,
        embeddings: NDArray[Any],
    ) -> None:
        """As the parent; `embeddings` is the target's table [vocab, hidden], bfloat16 as its bits."""
        super().__init__(folder, entries, contract)
        self._embeddings = embeddings

    def propose(self, next_tokens: Ints, features: NDArray[Any], slot: int = 0) -> DraftTree:
        """Read new rows and draw a tree; see `DraftSession`."""
        count = len(next_tokens)
        filling = self._filled(slot, count) - count
        name, values = next_token_input(self.contract, self._embeddings, next_tokens)
        padding = ((0, filling), (0, 0))
        arrays = {
            name: np.pad(values, padding[: values.ndim])[None],
            "features": np.pad(features, padding)[None],
            "row_count": np.array([count]),
        }
        self._call(slot, arrays, count, filling, rows=count + filling)
        self._lengths[slot] += count
        tokens, parents, scores = (
            self._engine.read(f"tree_{name}")[0] for name in ("tokens", "parents", "scores")
        )
        return DraftTree.with_root(int(next_tokens[-1]), tokens, parents, scores)


def _common_widths(entries: Sequence[EngineEntry]) -> tuple[int, ...]:
    """Return the widths that engines of every capacity have a fixed profile for, ascending."""
    fixed = ({profile.rows for profile in entry.spec.profiles if profile.fixed} for entry in entries)
    return tuple(sorted(set.intersection(*fixed)))
