"""Sessions over TensorRT and TensorRT-RTX: everything bound once, caches written in place on the device.

A call runs under one of the engine's profiles: a fixed one where its sizes are just those, else the open
one. Each profile has a context of its own, whose work is captured once where its sizes are fixed.
"""

import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract, TensorSpec
from poss_export.engine_spec import NAMES, EngineEntry, Profile
from poss_export.errors import BackendError, InputError
from poss_export.manifest import GRAPHS
from poss_export.runtime.sessions import bfloat16
from poss_export.runtime.sessions.base import CachedSession, Ints, TargetOutput
from poss_export.runtime.sessions.caches import DeviceRows
from poss_export.runtime.sessions.cuda import Device
from poss_export.runtime.sessions.fit import load_library
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


class LoadedEngine:
    """An engine on a device: all its tensors bound, its caches allocated, a context for each profile."""

    def __init__(
        self, library: Any, device: Device, folder: Path, entry: EngineEntry, contract: GraphContract
    ) -> None:
        """Load the engine of `entry` from the bundle in `folder`; raises as `TensorrtSession.__enter__`."""
        self.entry, self.capacity, self.profiles = entry, entry.spec.capacity, entry.spec.profiles
        self.contract = contract.with_sizes(batch=1, capacity=self.capacity)
        self._device = device
        self._engine = self._load(library, folder)
        self.contract.check(*_tensors(library, self._engine), entry.spec.file)
        self._addresses = self._allocate()
        self._contexts = [self._context(library, index) for index in range(len(self.profiles))]
        self._run: list[Callable[[], None] | None] = [None] * len(self.profiles)

    def call(self, arrays: Mapping[str, NDArray[Any]], **sizes: int) -> None:
        """Run a call of these sizes on `arrays`, all inputs but the caches, and wait for it."""
        index = choose_profile(self.profiles, **sizes)
        for spec in self.contract.inputs:
            if not spec.is_cache:
                self._device.upload(self._addresses[spec.name], _to_device(spec, arrays[spec.name]))
        if not self.profiles[index].fixed:
            self._set_shapes(self._contexts[index], sizes)
        self._launch(index)
        self._device.synchronize()

    def read(self, name: str, **sizes: int) -> NDArray[Any]:
        """Return an output of the last call, which had these sizes."""
        spec = next(spec for spec in self.contract.outputs if spec.name == name).with_sizes(**sizes)
        array = self._device.download(self._addresses[name], spec.sizes, spec.host_dtype)
        return bfloat16.widen(array) if spec.dtype == "bfloat16" else array

    def _load(self, library: Any, folder: Path) -> Any:
        spec = self.entry.spec
        logger = library.Logger(library.Logger.ERROR)
        self._runtime = library.Runtime(logger)
        with (
            (folder / spec.file).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._failure("does not load; it may be damaged, or the driver too old")
        if spec.options.strip_weights:
            refitter = library.Refitter(engine, logger)
            parser = library.OnnxParserRefitter(refitter, logger)
            graph = folder / GRAPHS[spec.graph]
            if not (parser.refit_from_file(str(graph)) and refitter.refit_cuda_engine()):
                raise self._failure(f"does not take the weights of {graph.name}")
        if spec.options.weight_streaming:
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
        self.rows = DeviceRows(block, shape, itemsize)
        for index, (past, present) in enumerate(contract.aliases.items()):
            addresses[past] = addresses[present] = block + index * self.rows.size
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

    def _failure(self, what: str) -> BackendError:
        spec = self.entry.spec
        return BackendError(f"{spec.file} {what} ({NAMES[spec.flavour]} {spec.version} says more above)")


class TensorrtSession(CachedSession):
    """A graph with caches, of one slot: what target and drafter sessions share.

    Where there are engines of several capacities, an answer begins in the smallest and moves on to the
    next when its tokens no longer fit: a call costs as much as its cache is long.
    """

    def __init__(self, folder: Path, entries: Sequence[EngineEntry], contract: GraphContract) -> None:
        """Keep the arguments: the engines in the bundle `folder`, by ascending capacity."""
        super().__init__(entries[-1].spec.file, entries[-1].spec.capacity)
        self.folder, self.entries, self.contract = folder, entries, contract

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

    def _call(self, slot: int, arrays: Mapping[str, NDArray[Any]], new_rows: int, **sizes: int) -> None:
        """Run a call that writes `new_rows` cache rows; `arrays` are the inputs but the past."""
        self._write(slot, new_rows)
        engine = self._engine_for(slot, new_rows)
        start = time.perf_counter()
        if engine is not self._engine:
            self._engine.rows.copy_to(engine.rows, slot, self.length(slot))
            self._use(engine)
        engine.call({**arrays, "past_length": self._lengths}, **sizes)
        self.engine_seconds += time.perf_counter() - start


class TensorrtTargetSession(TensorrtSession):
    """The target in TensorRT."""

    def forward(self, tree: DraftTree, rows: Ints | None = None, slot: int = 0) -> TargetOutput:
        """Run the nodes of a tree; see `TargetSession`. Logits stay on the device until they are read."""
        rows = np.arange(len(tree)) if rows is None else rows
        arrays = {
            "input_ids": tree.tokens[None],
            "position_ids": self.length(slot) + tree.depths[None],
            "tree_mask": tree.mask[None],
            "logits_rows": rows[None],
        }
        sizes = {"seq": len(tree), "rows": len(rows)}
        self._call(slot, arrays, len(tree), **sizes)
        read = self._engine.read
        return TargetOutput(
            read("next_tokens", **sizes)[0], read("features", **sizes)[0], lambda: read("logits", **sizes)[0]
        )


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
        rows = self._padded(slot, count)
        padding = ((0, rows - count), (0, 0))
        arrays = {
            "next_token_embeddings": np.pad(self._embeddings[next_tokens], padding)[None],
            "features": np.pad(features, padding)[None],
            "row_count": np.array([count]),
        }
        self._call(slot, arrays, rows, rows=rows)
        self._lengths[slot] += count
        tokens, parents, scores = (
            self._engine.read(f"tree_{name}", rows=rows)[0] for name in ("tokens", "parents", "scores")
        )
        return DraftTree.with_root(int(next_tokens[-1]), tokens, parents, scores)

    def _padded(self, slot: int, count: int) -> int:
        """Return the rows of the fixed profile that `count` rows are padded to, if caches have the room."""
        if count > self.room(slot):
            return count  # which is refused
        engine = self._engine_for(slot, count)
        widths = [profile.sizes["rows"][0] for profile in engine.profiles if profile.fixed]
        room = engine.capacity - self.length(slot)
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
