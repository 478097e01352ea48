"""MatMulNBits, ONNX Runtime's own multiplication by weights in blocks, as its own quantiser writes it."""

import logging
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.quantisation.rounding import BLOCK
from poss_export.quantisation.small import column_blocks

_ACCURACY = 4  # it rounds activations to INT8 itself, which is several times faster


def n_bits_node(name: str, weight: NDArray[Any], bits: int) -> tuple[onnx.NodeProto, dict[str, NDArray[Any]]]:
    """Return a MatMulNBits by a weight `[K, N]`, of some input and output, and its weight and scales by name.

    Outputs are independent, and come first in what it holds: some of them are rounded at a time.
    """
    made = [_n_bits(name, part, bits) for part in column_blocks(weight)]
    node = made[0][0]
    next(attribute for attribute in node.attribute if attribute.name == "N").i = weight.shape[1]
    return node, {name: np.concatenate([arrays[name] for _, arrays in made]) for name in made[0][1]}


def _n_bits(name: str, weight: NDArray[Any], bits: int) -> tuple[onnx.NodeProto, dict[str, NDArray[Any]]]:
    """Return the node and its arrays, made by ONNX Runtime's quantiser."""
    some = [helper.make_tensor_value_info(side, TensorProto.FLOAT, None) for side in ("x", "y")]
    matmul = helper.make_node("MatMul", ["x", name], ["y"], "matmul")
    graph = helper.make_graph(
        [matmul], name, some[:1], some[1:], [numpy_helper.from_array(np.ascontiguousarray(weight), name)]
    )
    quantizer = _n_bits_quantizer()(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)]),
        bits=bits,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=_ACCURACY,
    )
    quantizer.process()
    (made,) = quantizer.model.model.graph.node
    small, scale = (t for t in quantizer.model.model.graph.initializer if t.name in made.input)
    node = onnx.NodeProto()
    node.CopyFrom(made)  # as a part of it, it would keep all of the model in memory
    scales = numpy_helper.to_array(scale)
    # Blocks of zeros: it gives them a scale of 0.
    scales = np.where(scales == 0, np.ones_like(scales), scales)
    return node, {small.name: numpy_helper.to_array(small), scale.name: scales}


def _n_bits_quantizer() -> Any:
    """Import it, and keep it from configuring the root logger, which it does where that has no handler."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    finally:
        root.removeHandler(handler)
    return MatMulNBitsQuantizer
