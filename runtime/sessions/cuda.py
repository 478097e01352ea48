"""The CUDA driver, by ctypes: the few calls that sessions need, no other library.

Every function raises BackendError with one message where there is no driver or no GPU.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: what a thread gets that has not asked for the device yet


def call(function: str, *arguments: Any) -> None:
    """Call the driver's `function`; raises BackendError where it fails.

    Sessions are loaded in one thread and used in others, such as a scheduler's, none of which has a context.
    """
    status = getattr(_library(), function)(*arguments)
    if status == _NO_CONTEXT:
        _use_device()
        status = getattr(_library(), function)(*arguments)
    if status:
        raise BackendError(f"the CUDA driver's {function} failed with status {status}; see nvidia-smi")


def has_driver() -> bool:
    """Whether the CUDA driver is installed."""
    try:
        _library()
    except BackendError:
        return False
    return True


def device_capability() -> str:
    """Return the compute capability of device 0, as "8.9"."""
    call("cuInit", 0)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, 0)
        numbers.append(str(number.value))
    return ".".join(numbers)


def device_name() -> str:
    """Return the name of device 0."""
    call("cuInit", 0)
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", name, len(name), 0)
    return name.value.decode()


class Device:
    """CUDA device 0: memory that lives until it is left, and one stream that everything is ordered on."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._addresses: list[int] = []

    def __enter__(self) -> Self:
        """Make the device's context current on this thread, and a stream."""
        _use_device()
        stream = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self._stream = stream
        return self

    def __exit__(self, *error: object) -> None:
        """Free everything."""
        for address in self._addresses:
            call("cuMemFree_v2", ctypes.c_uint64(address))
        self._addresses.clear()
        call("cuStreamDestroy_v2", self._stream)
        call("cuDevicePrimaryCtxRelease_v2", 0)

    @property
    def stream(self) -> int:
        """The stream's handle, as engine libraries take it."""
        return self._stream.value or 0

    def allocate(self, size: int) -> int:
        """Return the address of `size` new bytes."""
        address = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._addresses.append(address.value)
        return address.value

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device; it may be changed when this returns."""
        call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def download(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Return a copy of what is on the device, after all that was queued before."""
        array = np.empty(shape, dtype)
        call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait for everything that was queued."""
        call("cuStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Return what queues, in one launch, the work that `enqueue` queues; nothing runs yet."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            enqueue()
        finally:
            call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        call("cuGraphDestroy", graph)
        return lambda: call("cuGraphLaunch", executable, self._stream)


def _use_device() -> None:
    """Make device 0's primary context, the one that engines use, current on this thread."""
    call("cuInit", 0)
    context = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)


def _library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError(
            "no CUDA driver on this machine (libcuda.so.1): TensorRT engines run on an NVIDIA GPU; "
            "use the ONNX Runtime backend here"
        ) from error
