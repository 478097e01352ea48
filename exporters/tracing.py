"""From a PyTorch module to an ONNX file of a contract: the same steps for every graph."""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from poss_export.config import Precision
from poss_export.contract import FLOAT, GraphContract, TensorSpec
from poss_export.exporters.translations import TRANSLATIONS
from poss_export.onnx_file import save_model
from poss_export.progress import Progress
from poss_export.targets.ops import OPSET
from poss_export.targets.weights import Weight

if TYPE_CHECKING:
    import onnx_ir as ir

# Sizes while tracing: distinct and above 1, so that no dimension is taken for another or for a constant.
_TRACED_SIZES = {"batch": 2, "seq": 3, "rows": 4, "capacity": 8}
_SMALL = 256  # bytes of a weight that stays in the graph's own file


def export_graph(
    module: nn.Module,
    contract: GraphContract,
    path: Path,
    static: Mapping[str, int],
    *,
    precision: Precision,
    weights: Mapping[str, Weight],
    progress: Progress,
) -> str:
    """Trace `module` and write `path`, its weights beside it in one file, `path` + ".data".

    Args:
        module: takes the contract's inputs as positional tensors, returns its outputs in order. It is traced
            by shapes: no weight needs a value.
        contract: dimensions that it names stay dynamic.
        path: the .onnx file to write.
        static: named dimensions that get a fixed size after all.
        precision: type of the graph's floats.
        weights: the module's, by their names in its state dict; each is read once, when it is written.
        progress: told of the bytes that are written.

    Returns:
        The hash of the weights' file.
    """
    dtype = getattr(torch, FLOAT[precision])
    mode = FakeTensorMode()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every optional package it lacks
    with torch.no_grad(), warnings.catch_warnings(), mode:
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # torch warns of its own code,
        warnings.filterwarnings("ignore", ".*axis name.*")  # and of every dimension that two inputs share
        program = torch.onnx.export(
            _without_values(module, dtype).eval(),
            tuple(_example(spec, static) for spec in contract.inputs),
            dynamic_shapes=(tuple(_dynamic_axes(spec, static) for spec in contract.inputs),),
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            optimize=False,  # it looks at values
            verbose=False,
        )
    assert program is not None
    for name, value in program.model.graph.initializers.items():
        if name in weights:
            value.const_value = _deferred(value, weights[name])
    program.optimize()
    _join_products(program.model)
    return save_model(program.model, path, least=_SMALL, page=1, progress=progress)


def _without_values(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of `module` whose tensors have shapes only, floats of a type; within a fake mode."""
    fakes = dict[int, Tensor]()  # deepcopy asks here first, so that no tensor is copied
    for tensor in (*module.parameters(), *module.buffers()):
        fake = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        fakes[id(tensor)] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake
    return copy.deepcopy(module, fakes)


def _deferred(value: "ir.Value", weight: Weight) -> "ir.LazyTensor":
    """Return a weight as ONNX sees it, which is read whenever it is looked at."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype

    traced = value.const_value
    assert traced is not None
    dtype = to_torch_dtype(traced.dtype)

    def read() -> ir.TensorProtocol:
        return TorchTensor(weight.read(dtype), name=value.name)

    return ir.LazyTensor(read, traced.dtype, ir.Shape(traced.shape.numpy()), name=value.name)


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
    return torch.empty(shape, dtype=getattr(torch, spec.dtype))
