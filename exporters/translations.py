"""How PyTorch operations become ONNX nodes where the stock translation does worse."""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.values import Opset

from poss_export.targets.ops import OPSET

_op = Opset("", OPSET)


def _linear_node(x: Any, weight: Any, bias: Any = None) -> Any:
    # The stock translation transposes the weight, and folding that would store a tied table twice.
    return _op.Gemm(x, weight, bias, transB=1)


def _floor_divide_node(dividend: Any, divisor: Any) -> Any:
    # One node, and exact, for indices; the stock translation takes seven to be right below zero too.
    return _op.Div(dividend, divisor)


# For `custom_translation_table`; linear layers have two-dimensional inputs, as in Decoder.head.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.linear.default: _linear_node,
    torch.ops.aten.floor_divide.default: _floor_divide_node,
}
