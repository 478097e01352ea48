"""Sessions over ONNX Runtime: CPU (graphs of the `shared` form) and CUDA (the `static` form)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract, TensorSpec
from poss_export.errors import BackendError, InputError
from poss_export.machine import check_threads
from poss_export.runtime.sessions.base import (
    CachedSession,
    Ints,
    TargetCall,
    TargetOutput,
    next_token_input,
)
from poss_export.runtime.sessions.caches import Caches, CudaCaches, HostCaches
from poss_export.runtime.sessions.load_graph import check_graph, load_graph
from poss_export.runtime.tree import DraftTree

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda"]

_MOST_SLOTS = 64
_CALLS_KEPT = 16  # widths bound at a time in a slot: those of the rounds, and some prompt ends


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
        if not 1 <= self.slots <= _MOST_SLOTS:
            raise InputError(f"slots is {self.slots}; it must be 1 to {_MOST_SLOTS}", options=("slots",))


class _Call:
    """A graph at fixed widths: every tensor is bound once, to arrays that the caller fills and reads."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        contract: GraphContract,
        caches: Caches,
        slot: int,
        on_device: bool,
    ) -> None:
        """Bind everything in `contract`, whose dimensions are all known, and a slot of the caches."""
        from onnxruntime import OrtValue

        self.slot = slot
        self.io = session.io_binding()
        self.arrays: dict[str, NDArray[Any]] = {}
        self.logits: OrtValue | None = None  # where they stay on the device
        for spec in _plain(contract.inputs):
            self.arrays[spec.name] = np.zeros(spec.sizes, spec.dtype)
            self.io.bind_ortvalue_input(spec.name, OrtValue.ortvalue_from_numpy(self.arrays[spec.name]))
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
        caches.bind(self.io, _cache_names(contract.inputs), _cache_names(contract.outputs), slot)

    def read_logits(self) -> NDArray[Any]:
        """Return the logits, from the device if they are there."""
        logits: NDArray[Any] = self.arrays["logits"] if self.logits is None else self.logits.numpy()
        return logits


class OrtSession(CachedSession):
    """A graph with caches, a slot a call: what target and drafter sessions share."""

    _caches: Caches

    def __init__(self, graph: Path, contract: GraphContract, capacity: int, options: OrtOptions) -> None:
        """Keep the arguments; `graph` is read on entering."""
        super().__init__(graph.name, capacity, options.slots)
        self.graph, self.options = graph, options
        self.contract = contract.with_sizes(batch=1, capacity=capacity)

    def __enter__(self) -> Self:
        """Load the graph and allocate the caches.

        Raises:
            BackendError: ONNX Runtime or the provider is missing, or it refuses the graph.
            BundleError: the graph differs from its contract.
        """
        self._session = load_graph(self.graph, self.options)
        check_graph(self._session, self.contract, self.graph.name)
        caches = [spec for spec in self.contract.inputs if spec.is_cache]
        allocate = CudaCaches if self.options.provider == "cuda" else HostCaches
        shape = (len(caches), self.slots, *caches[0].sizes[1:])
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
        names, arrays, slot = _cache_names(self.contract.inputs), self._last.arrays, self._last.slot
        plain = {spec.name: arrays[spec.name] for spec in _plain(self.contract.inputs)}
        return {**plain, **dict(zip(names, self._caches.block[:, slot : slot + 1], strict=True))}

    def _bind(self, slot: int, **widths: int) -> _Call:
        contract = self.contract.with_sizes(**widths)
        return _Call(self._session, contract, self._caches, slot, self.options.provider == "cuda")

    def _run(self, call: _Call, new_rows: int, filling: int = 0) -> None:
        """Run `call`, which writes `new_rows` cache rows after the committed ones, and `filling` more."""
        self._write(call.slot, new_rows, filling)
        call.arrays["past_length"][:] = self.length(call.slot)
        start = time.perf_counter()
        try:
            self._session.run_with_iobinding(call.io)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in {self.graph.name}: {error}") from error
        self.engine_seconds += time.perf_counter() - start
        self._last = call


class OrtTargetSession(OrtSession):
    """The target in ONNX Runtime.

    Calls of fewer than `least_width` tokens are filled up with tokens that nobody sees: below it a row's
    result depends on how many others there are (docs/quantisation.md).
    """

    def __init__(
        self,
        graph: Path,
        contract: GraphContract,
        capacity: int,
        options: OrtOptions,
        least_width: int = 1,
    ) -> None:
        """Keep the arguments; the caches have room for what fills up the last call."""
        super().__init__(graph, contract, capacity + least_width - 1, options)
        self.capacity, self._least_width = capacity, least_width

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree behind the committed rows; see `TargetSession`."""
        seq, rows = len(tree), np.arange(len(tree)) if rows is None else rows
        width, wanted = max(seq, self._least_width), len(rows)
        call = self._call(slot, seq=width, rows=max(wanted, self._least_width))
        arrays = {name: array[0] for name, array in call.arrays.items() if name != "past_length"}
        arrays["input_ids"][:seq] = tree.tokens
        arrays["position_ids"][:] = self.length(slot)
        arrays["position_ids"][:seq] += tree.depths
        arrays["tree_mask"][:] = np.eye(width, dtype=bool)
        arrays["tree_mask"][:seq, :seq] = tree.mask
        arrays["logits_rows"][:wanted] = rows
        self._run(call, seq, width - seq)
        return TargetOutput(
            arrays["next_tokens"][:wanted],
            arrays[self.contract.feature_output][:seq],
            lambda: call.read_logits()[0, :wanted],
        )

    def forward_all(self, calls: Sequence[TargetCall]) -> list[TargetOutput]:
        """Run trees of different slots, one after the other; each slot has arrays of its own."""
        return [self.forward(*call) for call in calls]


class OrtDraftSession(OrtSession):
    """A drafter's whole round in ONNX Runtime."""

    def __init__(
        self,
        graph: Path,
        contract: GraphContract,
        capacity: int,
        options: OrtOptions,
        embeddings: NDArray[Any],
    ) -> None:
        """As the parent; `embeddings` is the target's table [vocab, hidden]."""
        super().__init__(graph, contract, capacity, options)
        self._embeddings = embeddings

    def propose(self, next_tokens: Ints, features: NDArray[Any], slot: int = 0) -> DraftTree:
        """Read new rows and draw a tree; see `DraftSession`."""
        rows = len(next_tokens)
        call = self._call(slot, rows=rows)
        arrays = call.arrays
        name, values = next_token_input(self.contract, self._embeddings, next_tokens)
        arrays[name][:] = values
        arrays["features"][:] = features
        arrays["row_count"][:] = rows
        self._run(call, rows)
        self._lengths[slot] += rows
        tokens, parents, scores = (arrays[f"tree_{name}"][0] for name in ("tokens", "parents", "scores"))
        return DraftTree.with_root(int(next_tokens[-1]), tokens, parents, scores)


def _plain(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if not spec.is_cache]


def _cache_names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs if spec.is_cache]
