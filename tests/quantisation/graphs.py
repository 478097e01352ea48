"""Small graphs, real ones with weights in memory, and calls of them in ONNX Runtime on one thread."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROWS, CAPACITY = 5, 48  # tokens of a call, tokens of a cache

Floats = NDArray[np.float32]
Feed = dict[str, NDArray[Any]]


def random(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def session(model: onnx.ModelProto, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of files that are for this machine only
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: onnx.ModelProto, names: Sequence[str], **feed: NDArray[Any]) -> list[Floats]:
    """Return tensors of a graph, inner ones too."""
    known = {info.name for info in model.graph.output}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted({*names} - known))
    return [np.asarray(value, np.float32) for value in session(whole).run(names, feed)]


def make_feed(model: onnx.ModelProto, rows: int = ROWS, seed: int = 0) -> Feed:
    """Return what a target or draft graph reads in a first call of so many rows."""
    order, weights = np.arange(rows)[None], {tensor.name for tensor in model.graph.initializer}
    given = {
        "input_ids": (order * (2 * seed + 1) + 3) % 96,
        "position_ids": order,
        "logits_rows": order,
        "tree_mask": np.tril(np.ones((1, rows, rows), bool)),
        "past_length": np.array([0]),
        "row_count": np.array([rows]),
    }
    feed = Feed()
    for spec in (spec for spec in model.graph.input if spec.name not in weights):
        kind, sizes = spec.type.tensor_type, {"batch": 1, "capacity": CAPACITY}
        shape = [dim.dim_value or sizes.get(dim.dim_param, rows) for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        empty = spec.name.startswith("past_key_values")
        values = np.zeros(shape) if empty else random(*shape, seed=seed + len(spec.name))
        feed[spec.name] = given.get(spec.name, values.astype(dtype))
    return feed


def call(model: onnx.ModelProto, names: Sequence[str]) -> list[Floats]:
    """Return tensors of a target or draft graph, inner ones too, of a first call of 5 rows."""
    return run(model, names, **make_feed(model))


def small_graph(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    inputs: dict[str, Sequence[str | int]],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """Return a graph of float32 tensors; nodes get their first output's name."""
    for node in nodes:
        node.name = f"node of {node.output[0]}"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
