"""From a PyTorch module to an ONNX file of a contract: the same steps for every graph."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from poss_export.contract import GraphContract, TensorSpec
from poss_export.exporters.translations import TRANSLATIONS
from poss_export.targets.ops import OPSET

if TYPE_CHECKING:
    import onnx_ir as ir

# Sizes while tracing: distinct and above 1, so that no dimension is taken for another or for a constant.
_TRACED_SIZES = {"batch": 2, "seq": 3, "rows": 4, "capacity": 8}


def export_graph(module: nn.Module, contract: GraphContract, path: Path, static: Mapping[str, int]) -> None:
    """Trace `module` and write `path`, its weights beside it in one file, `path` + ".data".

    Args:
        module: takes the contract's inputs as positional tensors, returns its outputs in order.
        contract: dimensions that it names stay dynamic.
        path: the .onnx file to write; weights are written from where they are, without a copy.
        static: named dimensions that get a fixed size after all.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every optional package it lacks
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # torch warns of its own code,
        warnings.filterwarnings("ignore", ".*axis name.*")  # and of every dimension that two inputs share
        program = torch.onnx.export(
            module.eval(),
            tuple(_example(spec, static) for spec in contract.inputs),
            dynamic_shapes=(tuple(_dynamic_axes(spec, static) for spec in contract.inputs),),
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    _join_products(program.model)
    program.save(path, external_data=True)
    # The exporter's rewrite rules remember their last graph, and would keep its weights alive with it.
    for weight in program.model.graph.initializers.values():
        weight.const_value = None


def _join_products(model: "ir.Model") -> None:
    """Let attention read query, key and value as the one product that they are, where nothing is in between.

    The operator takes that apart itself, which saves a copy of each; PyTorch's side has the three.
    """
    for node in model.graph:
        if node.op_type != "GroupQueryAttention":
            continue
        three = node.inputs[:3]
        split = three[0].producer() if three[0] is not None else None
        if split is not None and split.op_type == "Split" and split.outputs == three:
            for number, value in enumerate((split.inputs[0], None, None)):
                node.replace_input_with(number, value)
            if not any(output.uses() for output in split.outputs):
                model.graph.remove(split)


def _dynamic_axes(spec: TensorSpec, static: Mapping[str, int]) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str) and dim not in static}


def _example(spec: TensorSpec, static: Mapping[str, int]) -> Tensor:
    sizes = {**_TRACED_SIZES, **static}
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
    # Tracing looks at shapes only, and memory that nobody touches costs nothing.
    return torch.empty(shape, dtype=getattr(torch, spec.dtype))
