"""Tables that a graph must hold as they are: parity sees their rows as far as its few tokens reach."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poss_export.config import Precision, RopeConfig
from poss_export.contract import FLOAT
from poss_export.targets.rope import rope_tables

if TYPE_CHECKING:
    from onnx import TensorProto

Tables = Mapping[str, Tensor]


def rotary(
    ropes: Sequence[RopeConfig], head_dim: int, positions: int, precision: Precision
) -> dict[str, Tensor]:
    """Return the rotary tables `[positions, head_dim / 2]` of a graph in this precision, by name."""
    dtype: torch.dtype = getattr(torch, FLOAT[precision])
    return {
        words + name: table.to(dtype)
        for words, rope in zip(("", "windowed layers' "), ropes, strict=False)
        for name, table in zip(("cosines", "sines"), rope_tables(rope, head_dim, positions), strict=True)
    }


def missing_tables(graph: Path, tables: Tables) -> list[str]:
    """Return the names of the tables that no tensor of an ONNX file begins with, bit for bit."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    missing = dict(tables)
    for stored in model.graph.initializer:
        for name in [name for name, table in missing.items() if _may_be(stored, table)]:
            if _begins_with(_values(stored, graph.parent), missing[name]):
                del missing[name]
    return list(missing)


def _may_be(stored: "TensorProto", table: Tensor) -> bool:
    rows, *rest = table.shape
    return len(stored.dims) == table.dim() and stored.dims[0] >= rows and [*stored.dims[1:]] == rest


def _values(stored: "TensorProto", folder: Path) -> NDArray[Any]:
    import onnx

    return onnx.numpy_helper.to_array(stored, str(folder))


def _begins_with(values: NDArray[Any], table: Tensor) -> bool:
    found = np.ascontiguousarray(values[: len(table)])
    wanted = table.contiguous().view(torch.uint8).numpy()  # bytes: numpy has no bfloat16
    return found.nbytes == wanted.nbytes and bool((found.view(np.uint8) == wanted).all())
