"""A file for the weights that are made while a graph is rewritten, so that they are in no memory."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.onnx_file import point_to

Keep = Callable[[NDArray[Any], str], TensorProto]  # an array and its name, as a graph holds it

in_memory: Keep = numpy_helper.from_array
_LEAST = 1 << 16  # bytes: smaller ones stay in memory
_BLOCK = 1 << 24  # values that are written at a time


class Scratch:
    """Keeps weights in a file of its own, which is there until it is left."""

    def __init__(self, folder: Path) -> None:
        """Prepare a file in `folder`."""
        self._folder = folder

    def __enter__(self) -> Self:
        """Make the file."""
        self._file = tempfile.NamedTemporaryFile(dir=self._folder, buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file."""
        self._file.close()

    def keep(self, array: NDArray[Any], name: str) -> TensorProto:
        """Return an array as a weight that `read_weight` maps; it is written in blocks of rows."""
        if array.nbytes < _LEAST:
            return numpy_helper.from_array(array, name)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        start = self._file.tell()
        if array.dtype.name in ("int4", "uint4"):
            self._file.write(numpy_helper.from_array(array).raw_data)  # two share a byte
        else:
            step = max(1, _BLOCK // max(1, array[0].size))
            for first in range(0, len(array), step):
                self._file.write(array[first : first + step].tobytes())
        end = self._file.tell()
        self._file.write(bytes(-end % 4096))  # the next one begins on a page
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
        point_to(tensor, self._file.name, start, end - start)
        return tensor
