"""Heads read a table that lies as embeddings do, and often is their table: quantising needs a copy."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

COPY = "/head"  # after the table's name
_GAIN = "/gain"  # after the copy's name


def untie(model: onnx.ModelProto, tables: Collection[str]) -> None:
    """Give the heads that read `tables` `[N, K]` a weight `[K, N]` of their own, behind a gain of ones `[K]`.

    The gain is where scale migration can put its scales: what a head reads, the features, is an output of the
    graph and must not change. A table that nothing reads any more is dropped.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for table in tables:
        weight = numpy_helper.to_array(tensors[table])
        copy = np.ascontiguousarray(weight.T)
        gain = np.ones(copy.shape[0], copy.dtype)
        graph.initializer.append(numpy_helper.from_array(copy, table + COPY))
        graph.initializer.append(numpy_helper.from_array(gain, table + COPY + _GAIN))
    nodes = []
    for node in graph.node:
        if node.op_type == "Gemm" and node.input[1] in tables:
            x, weight_name = node.input[0], node.input[1] + COPY
            scaled = f"{node.name}{_GAIN}"
            nodes.append(helper.make_node("Mul", [x, weight_name + _GAIN], [scaled], name=scaled))
            node = helper.make_node("MatMul", [scaled, weight_name], node.output, name=node.name)
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name not in tables]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
