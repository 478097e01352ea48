"""Changes that quantising needs before it begins; each leaves what the graph computes as it is."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from poss_export.onnx_file import read_weight
from poss_export.quantisation.scratch import Keep, in_memory

COPY = "/head"  # after a table's name: the weight of a head that read it
GAIN = "/gain"  # after a weight's name: what scales its input
BY_TABLE = ("Gemm", "FusedMatMul")  # how heads multiply by a table `[N, K]` as it lies, static and shared


def untie(model: onnx.ModelProto, tables: Collection[str], keep: Keep = in_memory) -> None:
    """Give the heads that read `tables` `[N, K]` a weight `[K, N]` of their own.

    Embeddings are looked up in a table as it is, and drafters map it from the target's file. A table that
    nothing reads any more is dropped.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for table in tables:
        graph.initializer.append(keep(read_weight(tensors[table]).T, table + COPY))
    for node in graph.node:
        if node.op_type in BY_TABLE and node.input[1] in tables:
            inputs = [node.input[0], node.input[1] + COPY]
            node.CopyFrom(helper.make_node("MatMul", inputs, node.output, name=node.name))
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name not in tables]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def add_gains(model: onnx.ModelProto, weights: Collection[str]) -> None:
    """Put a gain of ones `[K]` before every MatMul by one of `weights`: a place for scales to move to.

    Features and embeddings, which heads and fusions read, are inputs or outputs of the graph and keep theirs.
    """
    graph = model.graph
    for tensor in [tensor for tensor in graph.initializer if tensor.name in weights]:
        gain = np.ones(tensor.dims[0], helper.tensor_dtype_to_np_dtype(tensor.data_type))
        graph.initializer.append(numpy_helper.from_array(gain, tensor.name + GAIN))
    nodes = list[onnx.NodeProto]()
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            scaled = node.name + GAIN
            graph.value_info.extend(_named_again(graph, node.input[0], scaled))
            nodes.append(
                helper.make_node("Mul", [node.input[0], node.input[1] + GAIN], [scaled], name=scaled)
            )
            node.input[0] = scaled
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # the field owns the old
    del graph.node[:]
    graph.node.extend(nodes)


def _named_again(graph: onnx.GraphProto, name: str, other: str) -> list[onnx.ValueInfoProto]:
    """Return what a graph tells of a tensor under another name."""
    told = [value for value in (*graph.input, *graph.value_info, *graph.output) if value.name == name]
    return [onnx.ValueInfoProto(name=other, type=value.type) for value in told[:1]]
