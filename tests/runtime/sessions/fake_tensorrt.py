"""Fakes of TensorRT and of a CUDA device, for machines without one: host memory, and ONNX Runtime inside.

What they show is our side of the bargain: bindings, shapes within profiles, shared caches, compaction,
captures. They say nothing about TensorRT's own results.
"""

import ctypes
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
import onnxruntime

from poss_export.engine_spec import EngineEntry
from poss_export.manifest import GRAPHS, Manifest
from poss_export.runtime.sessions import bfloat16

TYPES = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
}
HOST = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT64": "int64", "BOOL": "bool"}


def at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return the array that lies at an address."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = memoryview((ctypes.c_byte * size).from_address(address))
    return np.frombuffer(memory, dtype).reshape(shape)


class FakeDevice:
    """Host memory, full of garbage when it is new; `log` has what all of them captured and launched."""

    stream = 77
    captured: ClassVar[list[Callable[[], None]] | None] = None
    log: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.blocks: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.blocks.clear()

    def allocate(self, size: int) -> int:
        block = (ctypes.c_byte * size)()
        ctypes.memset(block, 0xFF, size)  # not a number, in every float type
        self.blocks.append(block)
        return ctypes.addressof(block)

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        at(address, array.shape, array.dtype.name)[...] = array

    def download(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return at(address, shape, dtype).copy()

    def synchronize(self) -> None: ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        FakeDevice.captured = []
        enqueue()
        work, FakeDevice.captured = FakeDevice.captured, None
        self.log.append("captured")

        def launch() -> None:
            self.log.append("launched")
            for run in work:
                run()

        return launch


class FakeContext:
    """Runs the graph in ONNX Runtime on what lies at the addresses; checks shapes against its profile."""

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine, self.index = engine, 0
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.runs = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == FakeDevice.stream
        self.index = index
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        sizes = self.engine.entry.spec.profiles[self.index].sizes
        for dim, size in zip(self.engine.inputs[name][1], shape, strict=True):
            least, _, most = sizes.get(dim, (1, 1, 1)) if isinstance(dim, str) else (dim, dim, dim)
            assert least <= size <= most, (name, shape)
        self.shapes[name] = shape

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeDevice.stream
        if FakeDevice.captured is None:
            self._run()
        else:
            FakeDevice.captured.append(self._run)
        return self.engine.works

    def _run(self) -> None:
        self.runs += 1
        feed = {}
        for name, (dtype, _) in self.engine.inputs.items():
            array = at(self.addresses[name], self.shapes[name], HOST[dtype])
            feed[name] = bfloat16.widen(array) if dtype == "BF16" else array
        results = self.engine.session.run(list(self.engine.outputs), feed)
        for (name, (dtype, _)), result in zip(self.engine.outputs.items(), results, strict=True):
            value = bfloat16.narrow(result) if dtype == "BF16" else result
            at(self.addresses[name], result.shape, HOST[dtype])[...] = value


class FakeEngine:
    """Describes a graph as TensorRT describes an engine."""

    def __init__(self, entry: EngineEntry, graph: Path) -> None:
        self.entry, self.works, self.aliases = entry, True, {v: k for k, v in entry.aliases.items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = self._describe(self.session.get_inputs())
        self.outputs = self._describe(self.session.get_outputs())
        self.contexts: list[FakeContext] = []

    def _describe(self, nodes: Any) -> dict[str, tuple[str, list[int | str]]]:
        kinds = {node.name: TYPES[node.type] for node in nodes}
        if self.entry.spec.precision == "bf16":  # the graph is a widened one
            kinds.update((n, "BF16") for n, kind in kinds.items() if kind == "FLOAT" and n != "tree_scores")
        return {node.name: (kinds[node.name], node.shape) for node in nodes}

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={**self.inputs, **self.outputs}[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = {**self.inputs, **self.outputs}[name][1]
        return tuple(dim if isinstance(dim, int) else -1 for dim in shape)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name)

    def create_runtime_config(self) -> Any:
        assert self.entry.spec.flavour == "tensorrt-rtx"
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, config: Any = None) -> FakeContext:
        assert config is None or config.cuda_graph_strategy == "whole"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeLibrary:
    """The module: `engines` has what was loaded, by graph and capacity; `graphs` maps that to a folder."""

    TensorIOMode = SimpleNamespace(INPUT="input")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    def __init__(self, graphs: Callable[[int], Path], manifest: Manifest) -> None:
        self.graphs, self.manifest = graphs, manifest
        self.engines: dict[tuple[str, int], FakeEngine] = {}
        self.change: Callable[[FakeEngine], FakeEngine | None] = lambda engine: engine

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None: ...

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, content: Any) -> FakeEngine | None:
        (entry,) = [e for e in self.manifest.engines if content.find(e.spec.to_name().encode()) >= 0]
        spec = entry.spec
        engine = self.change(FakeEngine(entry, self.graphs(spec.capacity) / GRAPHS[spec.graph]))
        if engine is not None:
            self.engines[spec.graph, spec.capacity] = engine
        return engine
