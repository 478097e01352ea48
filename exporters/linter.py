"""Does a graph keep the rules of TensorRT's parser? Asked of the file alone, no TensorRT needed.

Every check below takes a `_Graph` and a node and yields what is wrong as ("rule", "what was found").
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from poss_export.errors import BackendError, InputError
from poss_export.exporters.rules import (
    CACHE_DTYPES,
    OPERATORS,
    OPSETS,
    QUANTISED,
    RULES,
    TOPK_MOST,
    WEIGHTS_ONLY,
)

Found = Iterator[tuple[str, str]]
Shape = list[int | str]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Violation:
    """A node that breaks a rule: which, what was found there, and what to do."""

    node: str
    operator: str
    rule: str
    detail: str

    def __str__(self) -> str:
        """Return all of it in a line."""
        rule = RULES[self.rule]
        broken = f"{self.operator} {self.node!r} breaks rule {self.rule} ({rule.demand})"
        return f"{broken}: {self.detail}; {rule.remedy}"


def lint(path: Path, devices: Sequence[str] = ()) -> list[Violation]:
    """Return every violation in the ONNX file at `path`; its weights are not read.

    Args:
        path: the file.
        devices: compute capabilities that it shall run on, as "8.9"; none: any.

    Raises:
        InputError: there is no such file, or it is no ONNX model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("it has no nodes")
    except Exception as error:  # protobuf's own error is no subclass of a named one
        raise InputError(f"{str(path)!r} cannot be read as ONNX ({error}); give an .onnx file") from error
    return lint_model(model, devices)


def require_clean(path: Path, devices: Sequence[str] = ()) -> None:
    """Raise BackendError that names the first violation in the ONNX file at `path`; as `lint`."""
    if violations := lint(path, devices):
        more = f"; a lint names {len(violations) - 1} more" if violations[1:] else ""
        message = f"TensorRT would refuse {path.name}: {violations[0]}{more}"
        raise BackendError(message, options=("lint",) if more else ())


def lint_model(model: onnx.ModelProto, devices: Sequence[str] = ()) -> list[Violation]:
    """Return every violation in `model`, in graph order; `devices` as of `lint`."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    found = []
    if not OPSETS[0] <= opset <= OPSETS[1]:
        found.append(Violation(model.graph.name, "graph", "opset", f"opset {opset}"))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    with contextlib.suppress(
        onnx.shape_inference.InferenceError
    ):  # an unknown operator is a violation itself
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return found + list(_lint_graph(_Graph(model.graph, devices)))


class _Graph:
    """What checks ask about the tensors of a graph; `outer` is the graph that a branch belongs to."""

    def __init__(self, proto: onnx.GraphProto, devices: Sequence[str], outer: "_Graph | None" = None) -> None:
        self.proto, self.devices, self.outer = proto, devices, outer
        described = [*proto.input, *proto.output, *proto.value_info]
        self.types = {info.name: info.type.tensor_type for info in described}
        self.inputs = {info.name for info in proto.input}
        self.outputs = {info.name for info in proto.output}
        self.constants = {tensor.name: tensor for tensor in proto.initializer}
        for node in proto.node:
            if node.op_type == "Constant":
                name = node.output[0]
                self.constants.update((name, a.t) for a in node.attribute if a.name == "value")

    def shape(self, name: str) -> Shape | None:
        """Return the dimensions of a tensor, open ones as names, or None where they are unknown."""
        if name in self.constants:
            return list(self.constants[name].dims)
        if name in self.types and self.types[name].HasField("shape"):
            dims = self.types[name].shape.dim
            return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
        return self.outer.shape(name) if self.outer else None

    def dtype(self, name: str) -> str | None:
        """Return the name of a tensor's type, as "float16", or None where it is unknown."""
        code = 0
        if name in self.constants:
            code = self.constants[name].data_type
        elif name in self.types:
            code = self.types[name].elem_type
        elif self.outer:
            return self.outer.dtype(name)
        return onnx.helper.tensor_dtype_to_np_dtype(code).name if code else None

    def values(self, name: str) -> NDArray[np.generic] | None:
        """Return a constant's values, or None where it is no constant or lies in another file."""
        tensor = self.constants.get(name)
        if tensor is None:
            return self.outer.values(name) if self.outer else None
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        array: NDArray[np.generic] = onnx.numpy_helper.to_array(tensor)
        return array


def _lint_graph(graph: _Graph) -> Iterator[Violation]:
    for node in graph.proto.node:
        for check in (_known, *_CHECKS.get(node.op_type, ())):
            for rule, detail in check(graph, node):
                yield Violation(node.name or node.output[0], node.op_type, rule, detail)
        for attribute in node.attribute:
            for branch in [attribute.g, *attribute.graphs]:
                yield from _lint_graph(_Graph(branch, graph.devices, graph))


def _known(graph: _Graph, node: onnx.NodeProto) -> Found:
    if node.domain not in ("", "ai.onnx"):
        yield "domain", f"domain {node.domain}"
    elif node.op_type not in OPERATORS:
        yield "operator", "the parser does not know it"


def _attention(graph: _Graph, node: onnx.NodeProto) -> Found:
    inputs = [*node.input, "", "", "", ""]
    for name in filter(None, inputs[:4]):
        shape = graph.shape(name)
        if shape is not None and len(shape) != 4:
            yield "attention-rank", f"{name!r} has shape {shape}"
    if extra := [name for name in node.output[1:] if name]:
        yield "attention-outputs", f"also {extra}"
    if not inputs[3]:
        yield "attention-mask", "no mask"
    elif _attribute(node, "is_causal", 0):
        yield "attention-mask", "is_causal beside a mask"
    if extra := [name for name in inputs[4:] if name]:
        yield "attention-inputs", f"also {extra}"
    if _attribute(node, "softcap", 0.0):
        yield "attention-softcap", f"softcap {_attribute(node, 'softcap', 0.0)}"
    if graph.outer:
        yield "attention-branch", f"in the branch {graph.proto.name!r}"


def _tensor_scatter(graph: _Graph, node: onnx.NodeProto) -> Found:
    cache = node.input[0]
    shape, dtype = graph.shape(cache), graph.dtype(cache)
    if shape is not None and (len(shape) != 4 or not all(isinstance(dim, int) for dim in shape[1:])):
        yield "cache-capacity", f"{cache!r} has shape {shape}"
    axis, mode = _attribute(node, "axis", -2), _attribute(node, "mode", b"linear")
    if axis not in (-2, 2) or mode != b"linear":
        yield "cache-mode", f"axis {axis}, mode {mode.decode()}"
    if dtype is not None and dtype not in CACHE_DTYPES:
        yield "cache-dtype", f"{cache!r} is {dtype}"
    if cache not in graph.inputs:
        yield "cache-alias", f"{cache!r} is no graph input"
    if node.output[0] not in graph.outputs:
        yield "cache-alias", f"{node.output[0]!r} is no graph output"


def _rotary(graph: _Graph, node: onnx.NodeProto) -> Found:
    if len(node.input) > 3 and (dtype := graph.dtype(node.input[3])) not in (None, "int64"):
        yield "positions", f"{node.input[3]!r} is {dtype}"


def _top_k(graph: _Graph, node: onnx.NodeProto) -> Found:
    k = graph.values(node.input[1]) if len(node.input) > 1 else np.array(_attribute(node, "k", 0))
    if k is not None and k.item() > TOPK_MOST:
        yield "topk", f"k is {k.item()}"


def _scatter(graph: _Graph, node: onnx.NodeProto) -> Found:
    if (reduction := _attribute(node, "reduction", b"none")) != b"none":
        yield "scatter", f"reduction {reduction.decode()}"


def _zero_point(graph: _Graph, node: onnx.NodeProto) -> Found:
    if len(node.input) < 3 or not node.input[2]:
        return
    zero_point = graph.values(node.input[2])
    if zero_point is None:
        yield "zero-point", f"{node.input[2]!r} is not constant"
    elif zero_point.astype(np.float32).any():
        yield "zero-point", f"{node.input[2]!r} is not 0"


def _quantised_type(graph: _Graph, node: onnx.NodeProto) -> Found:
    dtype = _small_type(graph, node)
    if dtype is None:
        return
    if dtype not in QUANTISED:
        yield "quantised-type", f"{dtype}"
    elif node.op_type == "QuantizeLinear" and dtype in WEIGHTS_ONLY:
        yield "quantised-type", f"an activation becomes {dtype}"
    elif lacking := [name for name in graph.devices if _version(name) < _version(QUANTISED[dtype])]:
        yield "device", f"{dtype} needs {QUANTISED[dtype]}, the engine shall run on {', '.join(lacking)}"


def _small_type(graph: _Graph, node: onnx.NodeProto) -> str | None:
    if node.op_type == "DequantizeLinear":
        return graph.dtype(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        return graph.dtype(node.input[2])
    code = _attribute(node, "output_dtype", onnx.TensorProto.UINT8) or onnx.TensorProto.UINT8
    return onnx.helper.tensor_dtype_to_np_dtype(code).name


def _scales(graph: _Graph, node: onnx.NodeProto) -> Found:
    scale = graph.values(node.input[1])
    if scale is not None and not (scale.astype(np.float32) > 0).all():
        yield "scale", f"{node.input[1]!r} has others"
    shape, block = graph.shape(node.input[0]), _attribute(node, "block_size", 0)
    if shape is not None and block:
        size = shape[_attribute(node, "axis", 1)]
        if isinstance(size, int) and size % block:
            yield "blocks", f"{size} in blocks of {block}"


def _version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))


_Check = Callable[[_Graph, onnx.NodeProto], Found]
_CHECKS: dict[str, Sequence[_Check]] = {
    "Attention": [_attention],
    "TensorScatter": [_tensor_scatter],
    "RotaryEmbedding": [_rotary],
    "TopK": [_top_k],
    "ScatterND": [_scatter],
    "QuantizeLinear": [_zero_point, _quantised_type, _scales],
    "DequantizeLinear": [_zero_point, _quantised_type, _scales],
}


def _attribute(node: onnx.NodeProto, name: str, default: Value) -> Value:
    found = next((a for a in node.attribute if a.name == name), None)
    value: Value = default if found is None else onnx.helper.get_attribute_value(found)
    return value
