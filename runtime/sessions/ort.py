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
from poss_export.machine import check_threads, installed
from poss_export.runtime.sessions.base import CachedSession, Ints, TargetOutput, next_token_input
from poss_export.runtime.sessions.caches import Caches, CudaCaches, HostCaches
from poss_export.runtime.tree import DraftTree

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_CALLS_KEPT = 16  # widths bound at a time: those of the rounds, and some prompt ends
# How long an idle thread waits awake. Target and drafter take turns, so by its default of milliseconds the
# threads of one steal the cores of the other: on 2 cores a draft call then took twice as long, and on a
# machine with other work a round over 10 times. This bridges the pauses within a call as well as any.
_SPIN_MICROSECONDS = 50


@dataclass(frozen=True)
class OrtOptions:
    """Where and how ONNX Runtime runs; `threads` of None leaves their number to it.

    `profile`: how the file begins that a session writes on leaving, with what every node took; "": none.
    """

    provider: Provider = "cpu"
    threads: int | None = None
    profile: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        check_threads(self.threads)


class _Call:
    """A graph at fixed widths: every tensor is bound once, to arrays that the caller fills and reads."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        contract: GraphContract,
        caches: Caches,
        on_device: bool,
    ) -> None:
        """Bind everything in `contract`, whose dimensions are all known."""
        from onnxruntime import OrtValue

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
        caches.bind(self.io, _cache_names(contract.inputs), _cache_names(contract.outputs))

    def read_logits(self) -> NDArray[Any]:
        """Return the logits, from the device if they are there."""
        logits: NDArray[Any] = self.arrays["logits"] if self.logits is None else self.logits.numpy()
        return logits


class OrtSession(CachedSession):
    """A graph with caches, of one slot: what target and drafter sessions share."""

    _caches: Caches

    def __init__(self, graph: Path, contract: GraphContract, capacity: int, options: OrtOptions) -> None:
        """Keep the arguments; `graph` is read on entering."""
        super().__init__(graph.name, capacity)
        self.graph, self.options = graph, options
        self.contract = contract.with_sizes(batch=1, capacity=capacity)

    def __enter__(self) -> Self:
        """Load the graph and allocate the caches.

        Raises:
            BackendError: ONNX Runtime or the provider is missing, or it refuses the graph.
            BundleError: the graph differs from its contract.
        """
        self._session = load_graph(self.graph, self.options)
        inputs, outputs = _specs(self._session.get_inputs()), _specs(self._session.get_outputs())
        self.contract.check(inputs, outputs, self.graph.name)
        caches = [spec for spec in self.contract.inputs if spec.is_cache]
        allocate = CudaCaches if self.options.provider == "cuda" else HostCaches
        self._caches = allocate((len(caches), *caches[0].sizes), caches[0].dtype)
        self._call = lru_cache(_CALLS_KEPT)(self._bind)
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
        names, arrays = _cache_names(self.contract.inputs), self._last.arrays
        plain = {spec.name: arrays[spec.name] for spec in _plain(self.contract.inputs)}
        return {**plain, **dict(zip(names, self._caches.block, strict=True))}

    def _bind(self, **widths: int) -> _Call:
        contract = self.contract.with_sizes(**widths)
        return _Call(self._session, contract, self._caches, self.options.provider == "cuda")

    def _run(self, call: _Call, slot: int, new_rows: int, filling: int = 0) -> None:
        """Run `call`, which writes `new_rows` cache rows after the committed ones, and `filling` more."""
        self._write(slot, new_rows, filling)
        call.arrays["past_length"][:] = self.length(slot)
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
        self, graph: Path, contract: GraphContract, capacity: int, options: OrtOptions, least_width: int = 1
    ) -> None:
        """Keep the arguments; the caches have room for what fills up the last call."""
        super().__init__(graph, contract, capacity + least_width - 1, options)
        self.capacity, self._least_width = capacity, least_width

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree behind the committed rows; see `TargetSession`."""
        seq, rows = len(tree), np.arange(len(tree)) if rows is None else rows
        width, wanted = max(seq, self._least_width), len(rows)
        call = self._call(seq=width, rows=max(wanted, self._least_width))
        arrays = {name: array[0] for name, array in call.arrays.items() if name != "past_length"}
        arrays["input_ids"][:seq] = tree.tokens
        arrays["position_ids"][:] = self.length(slot)
        arrays["position_ids"][:seq] += tree.depths
        arrays["tree_mask"][:] = np.eye(width, dtype=bool)
        arrays["tree_mask"][:seq, :seq] = tree.mask
        arrays["logits_rows"][:wanted] = rows
        self._run(call, slot, seq, width - seq)
        return TargetOutput(
            arrays["next_tokens"][:wanted],
            arrays[self.contract.feature_output][:seq],
            lambda: call.read_logits()[0, :wanted],
        )


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
        call = self._call(rows=rows)
        arrays = call.arrays
        name, values = next_token_input(self.contract, self._embeddings, next_tokens)
        arrays[name][:] = values
        arrays["features"][:] = features
        arrays["row_count"][:] = rows
        self._run(call, slot, rows)
        self._lengths[slot] += rows
        tokens, parents, scores = (arrays[f"tree_{name}"][0] for name in ("tokens", "parents", "scores"))
        return DraftTree.with_root(int(next_tokens[-1]), tokens, parents, scores)


def _plain(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if not spec.is_cache]


def _cache_names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs if spec.is_cache]


def _specs(nodes: Sequence["onnxruntime.NodeArg"]) -> list[TensorSpec]:
    return [TensorSpec(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]


def load_graph(
    graph: Path | bytes, options: OrtOptions, weights: Path | None = None
) -> "onnxruntime.InferenceSession":
    """Return a loaded graph: a file, or a serialised model whose weights lie in the folder `weights`.

    Raises:
        BackendError: ONNX Runtime or the provider is missing, or it refuses the graph.
    """
    _require_one_build()
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be imported ({error}); pip install poss-export") from error
    providers = ["CPUExecutionProvider"]
    if options.provider == "cuda":
        _require_cuda(ort.get_available_providers())
        providers.insert(0, "CUDAExecutionProvider")
    try:
        session = ort.InferenceSession(graph, _settings(options, weights), providers=providers)
    except Exception as error:
        what = "the graph" if isinstance(graph, bytes) else repr(str(graph))
        raise BackendError(f"ONNX Runtime refuses {what}: {error}") from error
    if options.provider == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise BackendError(
            "ONNX Runtime could not start its CUDA provider; check the driver with nvidia-smi, or use the CPU"
        )
    return session


def _settings(options: OrtOptions, weights: Path | None) -> "onnxruntime.SessionOptions":
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors: they come as exceptions too
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = options.threads or 0
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    if options.profile:
        settings.enable_profiling, settings.profile_file_prefix = True, options.profile
    if weights is not None:
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights)
        )
    return settings


def _require_one_build() -> None:
    """Raise BackendError where two builds of ONNX Runtime overwrite each other (docs/decisions/0002)."""
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install the one that is wanted"
        )


def _require_cuda(available: Sequence[str]) -> None:
    """Raise BackendError where this ONNX Runtime has no CUDA provider."""
    if "CUDAExecutionProvider" not in available:
        raise BackendError(
            f"this ONNX Runtime has no CUDA provider, only {', '.join(available)}: in a fresh environment "
            "run POSS_EXPORT_ONNXRUNTIME=gpu pip install poss-export, or use the CPU"
        )
