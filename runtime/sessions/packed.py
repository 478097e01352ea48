"""The target for several sequences at once in ONNX Runtime on the CPU: their rows share one call."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract
from poss_export.errors import BackendError
from poss_export.runtime.sessions.base import CachedSession, Ints, TargetCall, TargetOutput
from poss_export.runtime.sessions.caches import HostCaches
from poss_export.runtime.sessions.load_graph import check_graph, load_graph
from poss_export.runtime.sessions.ort import OrtOptions
from poss_export.runtime.sessions.prepacked import prepacked
from poss_export.runtime.sessions.slots import for_slots, load_for_slots, slot_name
from poss_export.runtime.tree import DraftTree


class PackedTargetSession(CachedSession):
    """The target in graphs of 1, 2, 4, ... slots, rewritten from the bundle's on entering.

    They share their weights (`prepacked`) and the caches: each slot of a graph can be any slot of these. A
    call runs in the smallest graph with a slot for every sequence; its other slots read a row for nobody.
    """

    _caches: HostCaches

    def __init__(
        self,
        graph: Path,
        sha256: str,
        contract: GraphContract,
        capacity: int,
        options: OrtOptions,
        least_width: int = 1,
        cache: Path | None = None,
    ) -> None:
        """Keep the arguments; `sha256` and `cache` are those of `prepacked`."""
        super().__init__(graph.name, capacity, options.slots)
        self.graph, self.options, self.contract = graph, options, contract.with_sizes(batch=1)
        self._sha256, self._least_width, self._cache = sha256, least_width, cache

    def __enter__(self) -> Self:
        """Rewrite and load the graphs, and allocate the caches.

        Raises:
            BackendError: ONNX Runtime or onnx is missing, or a graph is refused.
            BundleError: a graph differs from its contract.
            InputError: there is no room for the shared weights.
        """
        specs = [spec for spec in self.contract.inputs if spec.is_cache]
        rows = self.capacity + self._least_width - 1  # what fills up the last call has room too
        shape = specs[0].with_sizes(capacity=rows).sizes
        self._caches = HostCaches((len(specs), self.slots, *shape[1:]), specs[0].dtype)
        whole = prepacked(self.graph, self._sha256, self._cache)
        sizes = [*(1 << bit for bit in range((self.slots - 1).bit_length())), self.slots]
        self._graphs = [_Graph(whole, self.contract, size, self.options) for size in sizes]
        return self

    def __exit__(self, *error: object) -> None:
        """Free the graphs and their caches."""
        del self._graphs, self._caches

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree behind the committed rows of one slot; see `TargetSession`."""
        rows = np.arange(len(tree)) if rows is None else rows
        return self.forward_all([TargetCall(tree, rows, slot)])[0]

    def forward_all(self, calls: Sequence[TargetCall]) -> list[TargetOutput]:
        """Run trees of different slots in one call; see `TargetSession`."""
        graph = next(graph for graph in self._graphs if graph.slots >= len(calls))
        work = list[TargetCall]()
        for call in calls:  # each slot has rows enough by itself: attention depends on their number too
            filling = max(self._least_width - len(call.tree), 0)
            self._write(call.slot, len(call.tree), filling)
            work.append(call._replace(tree=_filled(call.tree, filling)))
        work += self._for_nobody(calls, graph.slots - len(calls))
        lengths = [self.length(call.slot) for call in work]
        start = time.perf_counter()
        outputs = graph.run(work, lengths, self._caches, self._least_width)
        self.engine_seconds += time.perf_counter() - start
        return [
            TargetOutput(output.next_tokens, output.features[: len(call.tree)], output.read_logits)
            for call, output in zip(calls, outputs, strict=False)
        ]

    def _for_nobody(self, calls: Sequence[TargetCall], count: int) -> list[TargetCall]:
        """Return calls of a single row in slots that are not at work: attention takes no empty slot."""
        at_work = {call.slot for call in calls}
        idle = [slot for slot in range(self.slots) if slot not in at_work and self.room(slot)]
        for slot in idle[:count]:
            self._write(slot, 1)
        none = np.zeros(0, dtype=np.int64)
        return [TargetCall(DraftTree.with_root(0), none, slot) for slot in idle[:count]]


def _filled(tree: DraftTree, more: int) -> DraftTree:
    """Return a tree with more nodes behind the others, children of its root; they see nothing else."""
    if more == 0:
        return tree
    nodes = (np.append(part, np.zeros(more, part.dtype)) for part in (tree.tokens, tree.parents, tree.scores))
    return DraftTree(*nodes)


class _Graph:
    """A graph of so many slots; the rows of a call may be any number."""

    def __init__(self, whole: Path, contract: GraphContract, slots: int, options: OrtOptions) -> None:
        self.slots, self._name = slots, whole.name
        wanted = for_slots(contract, slots)
        self._session = load_graph(load_for_slots(whole, slots), options, weights=whole.parent, ragged=True)
        check_graph(self._session, wanted, whole.name)
        self._io = self._session.io_binding()
        self._inputs = [spec for spec in wanted.inputs if not spec.is_cache]
        self._outputs = [spec for spec in wanted.outputs if not spec.is_cache]
        self._past, self._present = contract.aliases.keys(), contract.aliases.values()
        self._bound: list[int] = [-1] * slots  # which slot of the caches each of the graph's is
        self._buffers: dict[str, NDArray[Any]] = {}

    def run(
        self, calls: Sequence[TargetCall], lengths: Sequence[int], caches: HostCaches, least_rows: int
    ) -> list[TargetOutput]:
        """Run a call for each slot, behind so many rows of it; at least so many logits are computed."""
        starts = np.cumsum([0, *(len(call.tree) for call in calls)])
        rows = np.concatenate([start + call.rows for start, call in zip(starts, calls, strict=False)])
        sizes = {slot_name("seq", slot): len(call.tree) for slot, call in enumerate(calls)}
        sizes |= {"seq": int(starts[-1]), "rows": max(len(rows), least_rows)}
        arrays = self._bind(sizes)
        arrays["input_ids"][0] = np.concatenate([call.tree.tokens for call in calls])
        arrays["logits_rows"][0] = np.resize(rows, sizes["rows"])
        for slot, (call, length) in enumerate(zip(calls, lengths, strict=True)):
            arrays[slot_name("position_ids", slot)][0] = length + call.tree.depths
            arrays[slot_name("tree_mask", slot)][0] = call.tree.mask
            arrays[slot_name("past_length", slot)][0] = length
            if self._bound[slot] != call.slot:
                self._bound[slot] = call.slot
                past, present = ([slot_name(n, slot) for n in side] for side in (self._past, self._present))
                caches.bind(self._io, past, present, range(call.slot, call.slot + 1))
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in {self._name}: {error}") from error
        ends = np.cumsum([len(call.rows) for call in calls])
        logits, next_tokens, features = (arrays[spec.name][0] for spec in self._outputs)
        return [
            TargetOutput(
                next_tokens[end - len(call.rows) : end],
                features[start : start + len(call.tree)],
                partial(logits.__getitem__, slice(end - len(call.rows), end)),
            )
            for call, start, end in zip(calls, starts, ends, strict=False)
        ]

    def _bind(self, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        """Bind what is no cache to arrays of these sizes, parts of buffers that grow; return them."""
        from onnxruntime import OrtValue

        arrays = {}
        for spec in (*self._inputs, *self._outputs):
            sized = spec.with_sizes(**sizes)
            shape = sized.sizes
            buffer = self._buffers.get(spec.name)
            if buffer is None or buffer.size < prod(shape):
                buffer = self._buffers[spec.name] = np.zeros(prod(shape), spec.dtype)
            arrays[spec.name] = buffer[: prod(shape)].reshape(shape)
            value = OrtValue.ortvalue_from_numpy(arrays[spec.name])
            if spec in self._inputs:
                self._io.bind_ortvalue_input(spec.name, value)
            else:
                self._io.bind_ortvalue_output(spec.name, value)
        return arrays
