"""An ONNX file and its weights: written one after the other and hashed on the way, mapped one by one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from poss_export.progress import Progress

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


_EXTERNAL = 1024  # bytes: smaller weights of a graph that is written once more stay in its own file
_PAGE = 4096  # bytes
_BLOCK = 1 << 24  # bytes that are copied at a time
_VALUES = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")


def save_model(model: "ir.Model", path: Path, *, least: int, page: int, progress: Progress) -> str:
    """Write `path`, and the weights of `model`, each made when its turn comes, to `path` + ".data".

    Equal models give equal files. In the end the weights of `model` are those of the file.

    Args:
        model: the model.
        path: the .onnx file to write.
        least: bytes of a weight that stays in the graph's own file, at most.
        page: of so many bytes; every weight begins on one.
        progress: told of the megabytes that are written.

    Returns:
        The hash of the weights' file.
    """
    import onnx_ir as ir

    data = path.with_name(f"{path.name}.data")
    weights = [value for value in model.graph.initializers.values() if value.const_value is not None]
    weights = [value for value in weights if _tensor(value).nbytes > least]
    total = sum(_tensor(value).nbytes for value in weights)
    with data.open("wb") as file:
        sink = _Sink(file)
        for value in weights:
            tensor = _tensor(value)
            sink.write(bytes(-sink.size % page))
            place = ir.ExternalTensor(
                data.name,
                sink.size,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=str(value.name),
                base_dir=path.parent,
            )
            tensor.tofile(sink)
            value.const_value = place
            progress(f"writing {data.name}", sink.size // 10**6, total // 10**6, "MB")
    ir.save(model, path)
    return sink.digest.hexdigest()


def _tensor(value: "ir.Value") -> Any:  # the protocol of tensors does not promise to write them
    return value.const_value


class _Sink:
    """A file that is hashed as it grows."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        flat = np.frombuffer(data, np.uint8).data  # hashlib takes one dimension
        self.file.write(flat)
        self.digest.update(flat)
        self.size += len(flat)
        return len(flat)


def open_model(path: Path) -> "onnx.ModelProto":
    """Return a graph whose large weights stay in their file, from which `read_weight` maps them."""
    import onnx

    model, folder = onnx.load(path, load_external_data=False), path.parent.absolute()
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(folder / entry.value)
    return model


def save_opened(model: "onnx.ModelProto", path: Path) -> None:
    """Write a graph whose weights `read_weight` reads to `path`, and its weights to `path` + ".data".

    Each is copied from where it lies, and begins on a page. Equal models give equal files.
    """
    written = type(model)()
    written.CopyFrom(model)
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for tensor in written.graph.initializer:
            if (size := _size(tensor)) <= _EXTERNAL:
                _fill(tensor, b"".join(_stored(tensor)))
                continue
            file.write(bytes(-file.tell() % _PAGE))
            start = file.tell()
            for block in _stored(tensor):
                file.write(block)
            point_to(tensor, data.name, start, size)
    path.write_bytes(written.SerializeToString())


def point_to(tensor: "onnx.TensorProto", location: str, offset: int, length: int) -> None:
    """Let a tensor have its values in a file, and none in memory."""
    _fill(tensor, None)
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))


def _fill(tensor: "onnx.TensorProto", raw: bytes | None) -> None:
    """Give a tensor its values in memory, or take them from it."""
    for field in (*_VALUES, "external_data", "data_location"):
        tensor.ClearField(field)
    if raw is not None:
        tensor.raw_data = raw


def _size(tensor: "onnx.TensorProto") -> int:
    """Return the bytes of a tensor's values."""
    places = {entry.key: entry.value for entry in tensor.external_data}
    return int(places["length"]) if places else sum(map(len, _stored(tensor)))


def _stored(tensor: "onnx.TensorProto") -> Iterator[bytes]:
    """Yield the bytes of a tensor's values, in blocks."""
    import onnx

    places = {entry.key: entry.value for entry in tensor.external_data}
    if not places:
        raw = tensor.HasField("raw_data")
        yield tensor.raw_data if raw else onnx.numpy_helper.from_array(read_weight(tensor)).raw_data
        return
    left = int(places["length"])
    with Path(places["location"]).open("rb") as file:
        file.seek(int(places.get("offset", 0)))
        while left:
            block = file.read(min(left, _BLOCK))
            left -= len(block)
            yield block


def read_weight(tensor: "onnx.TensorProto") -> NDArray[Any]:
    """Return a weight, in memory or mapped from the file that it names with its folder; not to be changed."""
    import onnx

    if not tensor.external_data:
        return onnx.numpy_helper.to_array(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.asarray(map_weight(tensor, Path())).view(dtype)


def map_weight(tensor: "onnx.TensorProto", folder: Path) -> NDArray[Any]:
    """Map a weight that lies in a file beside its graph, in `folder`; of bfloat16 its bits."""
    import onnx

    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits = np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype
    return np.memmap(folder / place["location"], bits, "r", int(place.get("offset", 0)), tuple(tensor.dims))
