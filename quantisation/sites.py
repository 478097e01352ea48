"""Where a graph multiplies by a weight: the places that quantisation may change."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from poss_export.quantisation.gains import BY_TABLE, COPY

Role = Literal["head", "fusion", "layer"]


@dataclass(frozen=True)
class Site:
    """One use of a weight.

    `name` is the weight's and which of its uses this is, as "drafting.fusion.fc.weight#1". Exports of
    one model agree on it whatever their cache form and precision: what is observed in one serves the others.
    """

    name: str
    node: str
    input: str  # the activation, `[..., K]`
    output: str
    weight: str  # the initializer: `[K, N]`, or `[N, K]` if `transposed`
    transposed: bool
    role: Role


def find_sites(model: onnx.ModelProto) -> list[Site]:
    """Return the sites of a graph that this project exported, in its order; weights need not be loaded."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return list(_sites(model.graph, weights))


def _sites(graph: onnx.GraphProto, weights: set[str]) -> Iterator[Site]:
    uses = Counter[str]()
    for node in graph.node:
        if node.op_type in ("MatMul", *BY_TABLE) and node.input[1] in weights:
            weight = node.input[1]
            name = f"{weight.removesuffix(COPY)}#{uses[weight]}"
            uses[weight] += 1
            transposed = node.op_type in BY_TABLE  # only heads are
            role = _role(weight, transposed)
            yield Site(name, node.name, node.input[0], node.output[0], weight, transposed, role)


def _role(weight: str, transposed: bool) -> Role:
    if transposed or weight.endswith(COPY):
        return "head"
    return "fusion" if ".fusion." in weight else "layer"
