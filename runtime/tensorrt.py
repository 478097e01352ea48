"""Sessions over TensorRT and TensorRT-RTX: everything bound once, caches written in place on the device.

A call runs under one of the engine's profiles: a fixed one where its sizes are just those, else the open
one. Each profile has a context of its own, whose work is captured once where its sizes are fixed.
"""

import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract, TensorSpec
from poss_export.engine import NAMES, EngineEntry, Profile
from poss_export.errors import BackendError, InputError
from poss_export.runtime import bfloat16
from poss_export.runtime.cached import CachedSession
from poss_export.runtime.caches import DeviceRows
from poss_export.runtime.cuda import Device
from poss_export.runtime.engines import load_library
from poss_export.runtime.session import Ints, TargetOutput
from poss_export.runtime.tree import DraftTree

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "BOOL": "bool"}


def choose_profile(profiles: Sequence[Profile], **sizes: int) -> int:
    """Return the index of the profile to run a call of these sizes: a fixed one if there is one.

    Raises:
        InputError: the call is too large for all of them.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.fits(**sizes)]
    if not fitting:
        largest = {name: most for name, (_, _, most) in profiles[0].sizes.items()}
        raise InputError(f"a call of {sizes} is too large for the engine, which takes up to {largest}")
    return next((index for index in fitting if profiles[index].fixed), fitting[0])


def plan_buffers(contract: GraphContract, profiles: Sequence[Profile]) -> dict[str, int]:
    """Return the bytes that each tensor but the caches needs at its largest; sizes of caches are known."""
    return {
        spec.name: max(
            prod(spec.with_sizes(**{name: most for name, (_, _, most) in profile.sizes.items()}).sizes)
            for profile in profiles
        )
        * np.dtype(spec.host_dtype).itemsize
        for spec in (*contract.inputs, *contract.outputs)
        if not spec.is_cache
    }


class TensorrtSession(CachedSession):
    """An engine with caches for one sequence: what target and drafter sessions share."""

    def __init__(self, engine: Path, entry: EngineEntry, contract: GraphContract, graph: Path) -> None:
        """Keep the arguments; `graph` gives the weights of an engine that was built without them."""
        super().__init__(engine.name, entry.spec.capacity)
        self.engine, self.entry, self.graph = engine, entry, graph
        self.profiles = entry.spec.profiles
        self.contract = contract.with_sizes(batch=1, capacity=self.capacity)

    def __enter__(self) -> Self:
        """Load the engine, bind all tensors, allocate the caches.

        Raises:
            BackendError: library, driver or device are missing or others, or the library refuses the engine.
            BundleError: the engine differs from its contract.
        """
        library = load_library(self.entry)
        with ExitStack() as stack:
            self._device = stack.enter_context(Device())
            self._engine = self._load(library)
            self.contract.check(*_tensors(library, self._engine), self.name)
            self._addresses = self._allocate()
            self._contexts = [self._context(library, index) for index in range(len(self.profiles))]
            self._run: list[Callable[[], None] | None] = [None] * len(self.profiles)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Free the engine, its buffers and its caches."""
        del self._run, self._contexts, self._engine
        self._resources.close()

    def _load(self, library: Any) -> Any:
        logger = library.Logger(library.Logger.ERROR)
        self._runtime = library.Runtime(logger)
        with self.engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._failure("does not load; it may be damaged, or the driver too old")
        options = self.entry.spec.options
        if options.strip_weights:
            refitter = library.Refitter(engine, logger)
            parser = library.OnnxParserRefitter(refitter, logger)
            if not (parser.refit_from_file(str(self.graph)) and refitter.refit_cuda_engine()):
                raise self._failure(f"does not take the weights of {self.graph.name}")
        if options.weight_streaming:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        for past, present in self.entry.aliases.items():
            if (found := engine.get_aliased_input_tensor(present)) != past:
                raise self._failure(f"has {present} share the memory of {found}, expected {past}")
        return engine

    def _allocate(self) -> dict[str, int]:
        """Return the address of every tensor, and set up the caches."""
        device, contract = self._device, self.contract
        addresses = {name: device.allocate(n) for name, n in plan_buffers(contract, self.profiles).items()}
        caches = [spec for spec in contract.inputs if spec.is_cache]
        shape, itemsize = (len(caches), *caches[0].sizes), np.dtype(caches[0].host_dtype).itemsize
        block = device.allocate(prod(shape) * itemsize)
        self._caches = rows = DeviceRows(block, shape, itemsize)
        for index, (past, present) in enumerate(contract.aliases.items()):
            addresses[past] = addresses[present] = block + index * rows.size
        return addresses

    def _context(self, library: Any, index: int) -> Any:
        if self.entry.spec.flavour == "tensorrt-rtx":  # it captures what can be captured itself
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(index, self._device.stream):
            raise self._failure(f"gives no context for profile {index}; the device may lack memory")
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        profile = self.profiles[index]
        self._set_shapes(context, {name: most for name, (_, _, most) in profile.sizes.items()})
        return context

    def _set_shapes(self, context: Any, sizes: dict[str, int]) -> None:
        for spec in self.contract.inputs:
            context.set_input_shape(spec.name, spec.with_sizes(**sizes).sizes)

    def _call(self, arrays: dict[str, NDArray[Any]], new_rows: int, **sizes: int) -> GraphContract:
        """Run a call that writes `new_rows` cache rows; return the contract of its sizes.

        `arrays` are the inputs, but for `past_length` and the caches.
        """
        self._write(new_rows)
        index = choose_profile(self.profiles, **sizes)
        contract = self.contract.with_sizes(**sizes)
        start = time.perf_counter()
        for spec in contract.inputs:
            if not spec.is_cache:
                array = self.lengths if spec.name == "past_length" else arrays[spec.name]
                self._device.upload(self._addresses[spec.name], _to_device(spec, array))
        if not self.profiles[index].fixed:
            self._set_shapes(self._contexts[index], sizes)
        self._launch(index)
        self._device.synchronize()
        self.engine_seconds += time.perf_counter() - start
        return contract

    def _launch(self, index: int) -> None:
        """Queue the work of a profile; a fixed one is captured when it ran once, as TensorRT asks for."""

        def enqueue() -> None:
            if not self._contexts[index].execute_async_v3(self._device.stream):
                raise self._failure("failed while it ran")

        if (run := self._run[index]) is not None:
            run()
            return
        enqueue()
        if self.profiles[index].fixed and self.entry.spec.flavour == "tensorrt":
            self._device.synchronize()
            self._run[index] = self._device.capture(enqueue)

    def _read(self, contract: GraphContract, name: str) -> NDArray[Any]:
        """Return an output of the last call."""
        spec = next(spec for spec in contract.outputs if spec.name == name)
        array = self._device.download(self._addresses[name], spec.sizes, spec.host_dtype)
        return bfloat16.widen(array) if spec.dtype == "bfloat16" else array

    def _failure(self, what: str) -> BackendError:
        return BackendError(
            f"{self.name} {what} ({NAMES[self.entry.spec.flavour]} {self.entry.spec.version} says more above)"
        )


class TensorrtTargetSession(TensorrtSession):
    """The target in TensorRT."""

    def forward(
        self, input_ids: Ints, depths: Ints, tree_mask: NDArray[np.bool_], rows: Ints
    ) -> TargetOutput:
        """Run tokens after the committed rows; see `TargetSession`. Logits stay on the device until read."""
        arrays = {
            "input_ids": input_ids,
            "position_ids": self.lengths[:, None] + depths,
            "tree_mask": tree_mask,
            "logits_rows": rows,
        }
        seq = input_ids.shape[1]
        contract = self._call(arrays, seq, seq=seq, rows=rows.shape[1])
        return TargetOutput(
            self._read(contract, "next_tokens"),
            self._read(contract, "features"),
            lambda: self._read(contract, "logits"),
        )


class TensorrtDraftSession(TensorrtSession):
    """A drafter's whole round in TensorRT."""

    def __init__(
        self,
        engine: Path,
        entry: EngineEntry,
        contract: GraphContract,
        graph: Path,
        embeddings: NDArray[Any],
    ) -> None:
        """As the parent; `embeddings` is the target's table [vocab, hidden], bfloat16 as its bits."""
        super().__init__(engine, entry, contract, graph)
        self._embeddings = embeddings

    def propose(self, next_tokens: Ints, features: NDArray[Any]) -> list[DraftTree]:
        """Read new rows and draw a tree; see `DraftSession`."""
        count = next_tokens.shape[1]
        rows = self._padded(count)
        padding = ((0, 0), (0, rows - count), (0, 0))
        arrays = {
            "next_token_embeddings": np.pad(self._embeddings[next_tokens], padding),
            "features": np.pad(features, padding),
            "row_count": np.array([count]),
        }
        contract = self._call(arrays, rows, rows=rows)
        self.lengths[0] += count
        tokens, parents, scores = (
            self._read(contract, f"tree_{name}")[0] for name in ("tokens", "parents", "scores")
        )
        return [DraftTree.with_root(int(next_tokens[0, -1]), tokens, parents, scores)]

    def _padded(self, count: int) -> int:
        """Return the rows of the fixed profile that `count` rows are padded to, if caches have the room."""
        widths = [profile.sizes["rows"][0] for profile in self.profiles if profile.fixed]
        room = self.capacity - int(self.lengths[0])
        return min((width for width in widths if count <= width <= room), default=count)


def _to_device(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous array of the tensor's type; bits are taken as they are."""
    if spec.dtype == "bfloat16" and array.dtype != np.uint16:
        return bfloat16.narrow(array)
    return np.ascontiguousarray(array, dtype=spec.host_dtype)


def _tensors(library: Any, engine: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return an engine's inputs and outputs as it describes them; open dimensions get a name."""
    inputs, outputs = list[TensorSpec](), list[TensorSpec]()
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        dtype = engine.get_tensor_dtype(name).name
        shape = tuple("open" if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        side = inputs if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT else outputs
        side.append(TensorSpec(name, _DTYPES.get(dtype, dtype), shape))
    return inputs, outputs
