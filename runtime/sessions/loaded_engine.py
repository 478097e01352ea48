"""A TensorRT engine on a device: its tensors bound once, a context for each of its profiles.

A call runs under one of the engine's profiles: a fixed one where its sizes are just those, else the open
one. Each profile has a context of its own for each slot that its calls begin at, whose work is captured once
where its sizes are fixed. Contexts work one at a time, so all of them share the memory that one needs.
"""

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract, TensorSpec
from poss_export.engine_spec import NAMES, EngineEntry, Profile
from poss_export.errors import BackendError, InputError
from poss_export.manifest import GRAPHS
from poss_export.runtime.sessions import bfloat16
from poss_export.runtime.sessions.caches import DeviceRows
from poss_export.runtime.sessions.cuda import Device

_LARGEST = 2  # of the three sizes of a profile
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "BOOL": "bool"}


def choose_profile(profiles: Sequence[Profile], **sizes: int) -> int:
    """Return the index of the profile to run a call of these sizes: a fixed one if there is one.

    Raises:
        InputError: the call is too large for all of them.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.fits(**sizes)]
    if not fitting:
        largest = {name: profiles[0].of(name)[_LARGEST] for name in sizes}
        raise InputError(f"a call of {sizes} is too large for the engine, which takes up to {largest}")
    return next((index for index in fitting if profiles[index].fixed), fitting[0])


def plan_buffers(contract: GraphContract, profiles: Sequence[Profile]) -> dict[str, int]:
    """Return the bytes that each tensor but the caches needs at its largest; sizes of caches are known."""
    return {
        spec.name: max(spec.with_sizes(**profile.at(_LARGEST)).nbytes for profile in profiles)
        for spec in (*contract.inputs, *contract.outputs)
        if not spec.is_cache
    }


@dataclass
class _Context:
    """A context of the library, whose shapes are set, and its work as captured, if it is."""

    context: Any
    run: Callable[[], None] | None = None


class LoadedEngine:
    """An engine on a device: all its tensors bound, its caches allocated, a context for each profile.

    Profiles for more sequences than there are slots are left alone.
    """

    def __init__(
        self,
        library: Any,
        device: Device,
        folder: Path,
        entry: EngineEntry,
        contract: GraphContract,
        slots: int = 1,
    ) -> None:
        """Load the engine of `entry` from the bundle in `folder`; raises as `TensorrtSession.__enter__`."""
        self.entry, self.capacity, self.profiles = entry, entry.spec.capacity, entry.spec.profiles
        self.contract = contract.with_sizes(capacity=self.capacity)
        self._device, self._library, self._slots = device, library, slots
        self._engine = self._load(library, folder)
        self.contract.check(*_tensors(library, self._engine), entry.spec.file)
        self._addresses = self._allocate()
        size = self._engine.device_memory_size_v2  # what the largest profile needs
        self._shared = (device.allocate(size), size)
        self._contexts = {
            (index, 0): self._context(index, 0)
            for index, profile in enumerate(self.profiles)
            if profile.sequences <= slots
        }
        self._sizes = dict[str, int]()  # of the last call

    def call(self, arrays: Mapping[str, NDArray[Any]], block: range, **sizes: int) -> None:
        """Run a call of these sizes on `arrays`, all inputs but the caches, and wait for it.

        block: the slots that it reads and writes, as many as its batch.
        """
        self._sizes = {"batch": len(block), **sizes}
        index = choose_profile(self.profiles, **self._sizes)
        if (index, block.start) not in self._contexts:
            self._contexts[index, block.start] = self._context(index, block.start)
        context = self._contexts[index, block.start]
        for spec in self.contract.inputs:
            if not spec.is_cache:
                self._device.upload(self._addresses[spec.name], _to_device(spec, arrays[spec.name]))
        if not self.profiles[index].fixed:
            self._set_shapes(context.context, self._sizes)
        self._launch(context, self.profiles[index].fixed)
        self._device.synchronize()

    def read(self, name: str, place: int, **sizes: int) -> NDArray[Any]:
        """Return an output of the last call for the sequence at a place of its batch.

        These are its first rows where `sizes` are smaller than those of the call.
        """
        spec = next(spec for spec in self.contract.outputs if spec.name == name).with_sizes(batch=1)
        address = self._addresses[name] + place * spec.with_sizes(**self._sizes).nbytes
        (array,) = self._device.download(address, spec.with_sizes(**sizes).sizes, spec.host_dtype)
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
        """Return the address of every tensor, those of slot 0, and set up the caches."""
        device, contract = self._device, self.contract
        profiles = [profile for profile in self.profiles if profile.sequences <= self._slots]
        addresses = {name: device.allocate(n) for name, n in plan_buffers(contract, profiles).items()}
        caches = [spec.with_sizes(batch=self._slots) for spec in contract.inputs if spec.is_cache]
        shape, itemsize = (len(caches), *caches[0].sizes), np.dtype(caches[0].host_dtype).itemsize
        block = device.allocate(prod(shape) * itemsize)
        self.rows = DeviceRows(block, shape, itemsize)
        for index, (past, present) in enumerate(contract.aliases.items()):
            addresses[past] = addresses[present] = block + index * self.rows.size
        return addresses

    def _context(self, index: int, first: int) -> _Context:
        """Return a context for a profile, bound to the slots from `first` on."""
        library = self._library
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.entry.spec.flavour == "tensorrt-rtx":  # it captures what can be captured itself
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(index, self._device.stream):
            raise self._failure(f"gives no context for profile {index}; the device may lack memory")
        context.set_device_memory(*self._shared)
        behind = first * self.rows.size // self._slots
        caches = {*self.contract.aliases, *self.contract.aliases.values()}
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address + (behind if name in caches else 0))
        self._set_shapes(context, self.profiles[index].at(_LARGEST))
        return _Context(context)

    def _set_shapes(self, context: Any, sizes: dict[str, int]) -> None:
        for spec in self.contract.inputs:
            context.set_input_shape(spec.name, spec.with_sizes(**sizes).sizes)

    def _launch(self, context: _Context, fixed: bool) -> None:
        """Queue the work of a context; a fixed one is captured when it ran once, as TensorRT asks for."""

        def enqueue() -> None:
            if not context.context.execute_async_v3(self._device.stream):
                raise self._failure("failed while it ran")

        if context.run is not None:
            context.run()
            return
        enqueue()
        if fixed and self.entry.spec.flavour == "tensorrt":
            self._device.synchronize()
            context.run = self._device.capture(enqueue)

    def _failure(self, what: str) -> BackendError:
        spec = self.entry.spec
        return BackendError(f"{spec.file} {what} ({NAMES[spec.flavour]} {spec.version} says more above)")


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
