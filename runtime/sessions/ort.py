"""Sessions over ONNX Runtime: CPU (graphs of the `shared` form) and CUDA (the `static` form)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract, TensorSpec
from poss_export.engine_spec import LADDER, MOST_SLOTS
from poss_export.errors import BackendError, InputError
from poss_export.machine import check_threads
from poss_export.runtime.sessions.base import (
    CachedSession,
    DraftCall,
    Ints,
    TargetCall,
    TargetOutput,
)
from poss_export.runtime.sessions.caches import Caches, CudaCaches, HostCaches
from poss_export.runtime.sessions.load_graph import check_graph, load_graph
from poss_export.runtime.sessions.ragged import Block, draft_inputs, drawn, in_blocks, target_inputs
from poss_export.runtime.tree import DraftTree

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda"]

_CALLS_KEPT = 16  # widths bound at a time in a slot: those of the rounds, and some prompt ends
_MOST_ROWS = 16  # new rows of a draft call that several share: reading more takes longer than drafting


@dataclass(frozen=True)
class OrtOptions:
    """Where and how ONNX Runtime runs; `threads` of None leaves their number to it.

    `profile`: how the file begins that a session writes on leaving, with what every node took; "": none.
    `slots`: sequences whose rows fit the caches at a time.
    """

    provider: Provider = "cpu"
    threads: int | None = None
    profile: str = ""
    slots: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        check_threads(self.threads)
        if not 1 <= self.slots <= MOST_SLOTS:
            raise InputError(f"slots is {self.slots}; it must be 1 to {MOST_SLOTS}", options=("slots",))


class _Call:
    """A graph at fixed widths: every tensor is bound to arrays that the caller fills and reads.

    On the host they are bound once. Where a device reads an input, binding it copies what the array holds, so
    that what is not a cache is bound again for each call.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        contract: GraphContract,
        caches: Caches,
        block: Block,
        on_device: bool,
    ) -> None:
        """Bind everything in `contract`, whose dimensions are all known, and the caches of a block."""
        from onnxruntime import OrtValue

        self.block = block
        self.io = session.io_binding()
        self.arrays: dict[str, NDArray[Any]] = {}
        self.logits: OrtValue | None = None  # where they stay on the device
        self._copied: dict[str, OrtValue] = {}
        for spec in _plain(contract.inputs):
            self.arrays[spec.name] = np.zeros(spec.sizes, spec.dtype)
            value = OrtValue.ortvalue_from_numpy(self.arrays[spec.name])
            if on_device:
                self._copied[spec.name] = value
            else:
                self.io.bind_ortvalue_input(spec.name, value)
        for spec in _plain(contract.outputs):
            if on_device and spec.name == "logits":
                value = OrtValue.ortvalue_from_shape_and_type(
                    spec.sizes, np.dtype(spec.dtype).type, "cuda", 0
                )
                self.logits = value
            else:
                self.arrays[spec.name] = np.zeros(spec.sizes, spec.dtype)
                value = OrtValue.ortvalue_from_numpy(self.arrays[spec.name])
            self.io.bind_ortvalue_output(spec.name, value)
        caches.bind(self.io, _cache_names(contract.inputs), _cache_names(contract.outputs), block)

    def run(self, session: "onnxruntime.InferenceSession") -> None:
        """Run the graph on what is in the arrays of its inputs."""
        for name, value in self._copied.items():
            self.io.bind_ortvalue_input(name, value)  # copies to the device what is in the array now
        session.run_with_iobinding(self.io)

    def read_logits(self, place: tuple[int, slice]) -> NDArray[Any]:
        """Return the logits of a sequence's rows, from the device if they are there."""
        logits: NDArray[Any] = self.arrays["logits"] if self.logits is None else self.logits.numpy()
        part: NDArray[Any] = logits[place]
        return part


class OrtSession(CachedSession):
    """A graph with caches, a call for each block of slots: what target and drafter sessions share."""

    _caches: Caches

    def __init__(self, graph: Path, contract: GraphContract, capacity: int, options: OrtOptions) -> None:
        """Keep the arguments; `graph` is read on entering."""
        super().__init__(graph.name, capacity, options.slots)
        self.graph, self.options = graph, options
        self.contract = contract.with_sizes(capacity=capacity)

    def __enter__(self) -> Self:
        """Load the graph and allocate the caches.

        Raises:
            BackendError: ONNX Runtime or the provider is missing, or it refuses the graph.
            BundleError: the graph differs from its contract.
        """
        self._session = load_graph(self.graph, self.options)
        check_graph(self._session, self.contract, self.graph.name)
        caches = [spec.with_sizes(batch=self.slots) for spec in self.contract.inputs if spec.is_cache]
        allocate = CudaCaches if self.options.provider == "cuda" else HostCaches
        shape = (len(caches), *caches[0].sizes)
        self._caches = allocate(shape, caches[0].dtype)
        self._call = lru_cache(_CALLS_KEPT * self.slots)(self._bind)
        self._last: _Call | None = None
        return self

    def __exit__(self, *error: object) -> None:
        """Free the graph and its caches."""
        del self._call, self._last, self._caches, self._session

    def last_feed(self) -> dict[str, NDArray[Any]]:
        """Return every input of the last call by name, as views of the session's own buffers.

        They are valid until the session's next call or `reset`. Cache rows before `past_length` are those
        that the call read, also after `commit`; what lies behind them is provisional.

        Raises:
            InputError: there was no call yet.
            BackendError: the caches are on a device.
        """
        if self._last is None:
            raise InputError(f"{self.name} has not run yet; there is no feed to return")
        if not isinstance(self._caches, HostCaches):
            raise BackendError(f"the caches of {self.name} are on a device; run it on the CPU to read feeds")
        names, arrays, block = _cache_names(self.contract.inputs), self._last.arrays, self._last.block
        plain = {spec.name: arrays[spec.name] for spec in _plain(self.contract.inputs)}
        caches = self._caches.block[:, block.start : block.stop]
        return {**plain, **dict(zip(names, caches, strict=True))}

    def _bind(self, block: Block, **widths: int) -> _Call:
        contract = self.contract.with_sizes(batch=len(block), **widths)
        return _Call(self._session, contract, self._caches, block, self.options.provider == "cuda")

    def _run(self, call: _Call, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Run a call on all inputs but its caches; what is written of it was noted before."""
        for name, values in inputs.items():
            call.arrays[name][:] = values
        start = time.perf_counter()
        try:
            call.run(self._session)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in {self.graph.name}: {error}") from error
        self.engine_seconds += time.perf_counter() - start
        self._last = call


class OrtTargetSession(OrtSession):
    """The target in ONNX Runtime.

    Calls of fewer than `least_width` tokens are filled up with tokens that nobody sees: below it a row's
    result depends on how many others there are (docs/quantisation.md). With several slots that share calls,
    trees are filled up to a ladder of widths, so that few are bound, and a single row takes no other kernels.
    """

    def __init__(
        self,
        graph: Path,
        contract: GraphContract,
        capacity: int,
        options: OrtOptions,
        least_width: int = 1,
        *,
        shares: bool = False,
    ) -> None:
        """Keep the arguments; the caches have room for what fills up the last call.

        shares: whether a call of the graph takes several sequences, which its `static` form does.
        """
        super().__init__(graph, contract, capacity + least_width - 1, options)
        self.capacity, self._least_width = capacity, least_width
        self.fills_up = shares and options.slots > 1

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree behind the committed rows; see `TargetSession`."""
        rows = np.arange(len(tree)) if rows is None else rows
        return self._forward(Block(slot, slot + 1), [TargetCall(tree, rows, slot)])[slot]

    def forward_all(self, calls: Sequence[TargetCall]) -> list[TargetOutput]:
        """Run trees of different slots; each block of slots has arrays of its own."""
        return in_blocks(calls, self.slots, self._may_share, self._fit, self._forward)

    def _may_share(self, call: TargetCall) -> bool:
        return self.fills_up and len(call.rows) == len(call.tree)

    def _fit(self, block: Block, calls: Sequence[TargetCall]) -> bool:
        return self.have_room(block, max(len(call.tree) for call in calls))

    def _forward(self, block: Block, calls: Sequence[TargetCall]) -> dict[int, TargetOutput]:
        """Run the calls of a block; return what comes, by slot."""
        width = max(self._least_width, *(len(call.tree) for call in calls))
        rows = max(self._least_width, *(len(call.rows) for call in calls))
        if self.fills_up and width == rows:
            filled = next((filled for filled in LADDER if filled >= width), width)
            width = rows = filled if self.have_room(block, filled) else width
        call = self._call(block, seq=width, rows=rows)
        inputs = target_inputs(calls, block, self._lengths, width, rows)
        self._write_block(block, {call.slot: len(call.tree) for call in calls}, width)
        self._run(call, inputs)
        next_tokens, features = (call.arrays[name] for name in ("next_tokens", self.contract.feature_output))
        found = {}
        for tree, wanted, slot in calls:
            place = (slot - block.start, slice(len(wanted)))
            read = partial(call.read_logits, place)
            found[slot] = TargetOutput(next_tokens[place], features[place[0], : len(tree)], read)
        return found


class OrtDraftSession(OrtSession):
    """A drafter's whole round in ONNX Runtime."""

    def __init__(
        self,
        graph: Path,
        contract: GraphContract,
        capacity: int,
        options: OrtOptions,
        embeddings: NDArray[Any],
        draft_ids: Ints | None = None,
    ) -> None:
        """As the parent; `embeddings` is the target's table [vocab, hidden]."""
        super().__init__(graph, contract, capacity, options)
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
        return self._propose(Block(slot, slot + 1), [DraftCall(next_tokens, features, slot, noise)])[slot]

    def propose_all(self, calls: Sequence[DraftCall]) -> list[DraftTree]:
        """Do the same for different slots; those that read few rows share calls."""
        return in_blocks(calls, self.slots, self._may_share, self._fit, self._propose)

    def _may_share(self, call: DraftCall) -> bool:
        one = isinstance(self._session.get_inputs()[0].shape[0], int)  # a graph of an earlier build
        return not one and len(call.next_tokens) <= _MOST_ROWS

    def _fit(self, block: Block, calls: Sequence[DraftCall]) -> bool:
        return self.have_room(block, max(len(call.next_tokens) for call in calls))

    def _propose(self, block: Block, calls: Sequence[DraftCall]) -> dict[int, DraftTree]:
        """Run the calls of a block; return the trees by slot."""
        counts = {call.slot: len(call.next_tokens) for call in calls}
        rows = max(counts.values())
        call = self._call(block, rows=rows)
        inputs = draft_inputs(self.contract, self._embeddings, calls, block, self._lengths, rows)
        self._write_block(block, counts, rows)
        self._run(call, inputs)
        for slot, count in counts.items():
            self._lengths[slot] += count
        return drawn(calls, block, lambda name, place: call.arrays[name][place])


def _plain(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if not spec.is_cache]


def _cache_names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs if spec.is_cache]
