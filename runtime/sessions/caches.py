"""The caches of a session: one block of memory, on the host or on a CUDA device.

The block is [tensors, slots, kv_heads, capacity, head_dim]. An engine reads its past and writes its present
in the same slice of it, so that accepting a path only moves its rows together.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.sessions.cuda import call as _call_driver

if TYPE_CHECKING:
    from onnxruntime import IOBinding


class Rows(Protocol):
    """The rows of a session's caches, of all tensors at once; a slot holds those of one sequence."""

    def move(self, slot: int, sources: NDArray[np.int64], to: int) -> None:
        """Copy the rows `sources`, ascending and none below `to`, to the rows from `to` on."""

    def clear(self, slot: int, rows: int) -> None:
        """Zero the first `rows` rows: a NaN left behind would reach later answers through the mask."""


class Caches(Rows, Protocol):
    """Zeroed memory, one slice for each cache tensor of a graph and slot."""

    def bind(self, io: "IOBinding", past: Sequence[str], present: Sequence[str], slots: range) -> None:
        """Make slice i of these slots, neighbours, both the input past[i] and the output present[i]."""


class HostCaches:
    """Caches in host memory; pages that no row has touched cost nothing."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Allocate a block of this shape."""
        from onnxruntime import OrtValue

        self.block: NDArray[Any] = np.zeros(shape, dtype)

        @cache
        def values(slots: range) -> list[OrtValue]:
            """Return tensors that share the block's memory."""
            parts = self.block[:, slots.start : slots.stop]
            return [OrtValue.ortvalue_from_numpy(part) for part in parts]

        self._values = values

    def bind(self, io: "IOBinding", past: Sequence[str], present: Sequence[str], slots: range) -> None:
        """Make slice i of the slots both the input past[i] and the output present[i]."""
        for value, name_in, name_out in zip(self._values(slots), past, present, strict=True):
            io.bind_ortvalue_input(name_in, value)
            io.bind_ortvalue_output(name_out, value)

    def move(self, slot: int, sources: NDArray[np.int64], to: int) -> None:
        """Copy the rows `sources`, ascending and none below `to`, to the rows from `to` on."""
        rows = self.block[:, slot]
        rows[..., to : to + len(sources), :] = rows[..., sources, :]

    def clear(self, slot: int, rows: int) -> None:
        """Zero the first `rows` rows."""
        self.block[:, slot, :, :rows] = 0


class DeviceRows:
    """Cache rows on a CUDA device, moved by the driver: they never visit the host.

    To the driver the block is a matrix with a row for each tensor, slot and head; a cache row of all of them
    is one column, `_width` bytes wide. A slot's part of it is whole where there is one slot, else a piece of
    each tensor.
    """

    def __init__(self, address: int, shape: tuple[int, ...], itemsize: int) -> None:
        """Take the block of this shape at `address` and zero it."""
        self._address = address
        self._width = shape[-1] * itemsize
        self._pitch, (tensors, self._slots, heads) = shape[-2] * self._width, shape[:3]
        self.size = self._pitch * self._slots * heads  # bytes of a tensor
        # The pieces of slot 0, each so many matrix rows high.
        self._pieces = [self.size * tensor for tensor in range(tensors)] if self._slots > 1 else [0]
        self._height = heads if self._slots > 1 else tensors * heads
        for slot in range(self._slots):
            self.clear(slot, shape[-2])

    def _addresses(self, slot: int) -> list[int]:
        """Return where the pieces of a slot begin."""
        return [self._address + piece + slot * self._height * self._pitch for piece in self._pieces]

    def move(self, slot: int, sources: NDArray[np.int64], to: int) -> None:
        """Copy the rows `sources`, ascending and none below `to`, to the rows from `to` on."""
        for row, source in enumerate(sources.tolist(), start=to):
            for address in self._addresses(slot):
                old, new = ((address, self._pitch, n * self._width) for n in (source, row))
                _copy(old, new, self._width, self._height)
        _call_driver("cuCtxSynchronize")  # the engine's own stream does not wait for these copies

    def clear(self, slot: int, rows: int) -> None:
        """Zero the first `rows` rows."""
        for address in self._addresses(slot):
            _call_driver(
                "cuMemsetD2D8_v2",
                ctypes.c_uint64(address),
                ctypes.c_size_t(self._pitch),
                ctypes.c_ubyte(0),
                ctypes.c_size_t(rows * self._width),
                ctypes.c_size_t(self._height),
            )
        _call_driver("cuCtxSynchronize")

    def copy_to(self, other: "DeviceRows", slot: int, rows: int) -> None:
        """Copy the first `rows` rows of a slot to caches of another capacity."""
        for ours, theirs in zip(self._addresses(slot), other._addresses(slot), strict=True):
            old, new = (ours, self._pitch, 0), (theirs, other._pitch, 0)
            _copy(old, new, rows * self._width, self._height)
        _call_driver("cuCtxSynchronize")


class CudaCaches(DeviceRows):
    """Caches on CUDA device 0, in memory of ONNX Runtime."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Allocate a block of this shape and zero it."""
        from onnxruntime import OrtValue

        self._shape, self._type = shape, np.dtype(dtype).type
        self._value = OrtValue.ortvalue_from_shape_and_type(shape, self._type, "cuda", 0)
        super().__init__(self._value.data_ptr(), shape, np.dtype(dtype).itemsize)

    def bind(self, io: "IOBinding", past: Sequence[str], present: Sequence[str], slots: range) -> None:
        """Make slice i of the slots both the input past[i] and the output present[i]."""
        shape = (len(slots), *self._shape[2:])
        first = self._address + slots.start * (self.size // self._slots)
        for i, (name_in, name_out) in enumerate(zip(past, present, strict=True)):
            place = ("cuda", 0, self._type, shape, first + i * self.size)
            io.bind_input(name_in, *place)
            io.bind_output(name_out, *place)


_DEVICE = 2  # CU_MEMORYTYPE_DEVICE

_Place = tuple[int, int, int]  # address and pitch of a matrix, and a column of it, in bytes


def _copy(source: _Place, to: _Place, width: int, height: int) -> None:
    """Copy a column, `width` bytes wide, of matrices on the device."""
    copy = _Copy2D(
        srcMemoryType=_DEVICE,
        srcDevice=source[0],
        srcPitch=source[1],
        srcXInBytes=source[2],
        dstMemoryType=_DEVICE,
        dstDevice=to[0],
        dstPitch=to[1],
        dstXInBytes=to[2],
        WidthInBytes=width,
        Height=height,
    )
    _call_driver("cuMemcpy2D_v2", ctypes.byref(copy))


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of the CUDA driver API."""

    _fields_ = (
        ("srcXInBytes", ctypes.c_size_t),
        ("srcY", ctypes.c_size_t),
        ("srcMemoryType", ctypes.c_int),
        ("srcHost", ctypes.c_void_p),
        ("srcDevice", ctypes.c_uint64),
        ("srcArray", ctypes.c_void_p),
        ("srcPitch", ctypes.c_size_t),
        ("dstXInBytes", ctypes.c_size_t),
        ("dstY", ctypes.c_size_t),
        ("dstMemoryType", ctypes.c_int),
        ("dstHost", ctypes.c_void_p),
        ("dstDevice", ctypes.c_uint64),
        ("dstArray", ctypes.c_void_p),
        ("dstPitch", ctypes.c_size_t),
        ("WidthInBytes", ctypes.c_size_t),
        ("Height", ctypes.c_size_t),
    )
