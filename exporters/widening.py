"""A bfloat16 graph as a float32 graph with the same weights, which ONNX Runtime can run on a CPU.

Widening is exact, so such a graph shows that structure and stored weights are right. It does not show the
rounding of results between nodes: that happens on the device only.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from poss_export.exporters.embedding import find_embedding
from poss_export.manifest import DRAFT_GRAPH, DRAFT_IDS, TARGET_GRAPH, TOKENIZER, Manifest


@contextmanager
def runnable_on_cpu(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """Give a bundle that ONNX Runtime runs on a CPU: this one, or for bfloat16 a widened copy."""
    if manifest.precision != "bf16":
        yield folder, manifest
        return
    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy = Path(name)
        for graph in (TARGET_GRAPH, DRAFT_GRAPH)[: 1 if manifest.drafter is None else 2]:
            widen(folder / graph, copy / graph)
        for name in (TOKENIZER, *(() if manifest.drafter is None else (DRAFT_IDS,))):
            (copy / name).write_bytes((folder / name).read_bytes())
        target = replace(manifest.target, embedding=find_embedding(copy / TARGET_GRAPH))
        yield copy, replace(manifest, precision="fp32", target=target)


def widen(path: Path, to: Path) -> None:
    """Write the graph at `path` to `to` with float32 in place of bfloat16, its weights beside it."""
    model = onnx.load(path)
    widen_loaded(model)
    onnx.save_model(model, to, save_as_external_data=True, location=f"{to.name}.data")


def widen_loaded(model: onnx.ModelProto) -> None:
    """Let everything that is bfloat16 be float32, but for weights that are not loaded."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16 and not tensor.external_data:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def widened(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Return bfloat16 numbers, of which numpy knows the bits, as float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16  # in place: a table is large
    return wide.view(np.float32)
