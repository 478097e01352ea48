"""MatMulNBits, ONNX Runtime's own multiplication by weights in blocks, as its own quantiser writes it."""

import logging
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.quantisation.rounding import BLOCK

_ACCURACY = 4  # it rounds activations to INT8 itself, which is several times faster


def n_bits_node(name: str, weight: NDArray[Any], bits: int) -> tuple[onnx.NodeProto, list[TensorProto]]:
    """Return a MatMulNBits by a weight `[K, N]`, of some input and output, and its tensors."""
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
    (node,) = quantizer.model.model.graph.node
    small, scale = (t for t in quantizer.model.model.graph.initializer if t.name in node.input)
    scales = numpy_helper.to_array(scale)
    # Blocks of zeros: it gives them a scale of 0.
    scale = numpy_helper.from_array(np.where(scales == 0, np.ones_like(scales), scales), scale.name)
    return node, [small, scale]


def _n_bits_quantizer() -> Any:
    """Import it, and keep it from configuring the root logger, which it does where that has no handler."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    finally:
        root.removeHandler(handler)
    return MatMulNBitsQuantizer
