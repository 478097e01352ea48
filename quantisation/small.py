"""The small forms of numbers, and a weight in one of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from poss_export.config import Scheme
from poss_export.quantisation.digits import DIGITS

_VALUES = 1 << 24  # of a weight that are computed with at a time


class Type(NamedTuple):
    """A type of small numbers, and the ends of its range."""

    code: int
    lowest: int
    highest: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in numpy."""
        return helper.tensor_dtype_to_np_dtype(self.code)


TYPES: dict[Scheme, Type] = {
    **dict.fromkeys(DIGITS, Type(TensorProto.INT8, -127, 127)),
    "fp8": Type(TensorProto.FLOAT8E4M3FN, -448, 448),
    "int4": Type(TensorProto.INT4, -8, 7),
}


@dataclass(frozen=True)
class Small:
    """A weight in INT8: `values` `[K, N]` times `scale` `[N]`."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


def column_blocks(weight: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield a weight `[K, N]` in blocks of its outputs, for what is computed of each by itself."""
    step = max(1, _VALUES // len(weight))
    for first in range(0, weight.shape[1], step):
        yield weight[:, first : first + step]


def round_weight(
    weight: NDArray[Any], kind: Type, block: int, dtype: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the small form of a weight `[K, N]` and the scales `[K / block, N]` of its blocks.

    A scale reaches what is furthest from zero, measured by the end of the range on its side.
    """
    made = [_round_outputs(part, kind, block, dtype) for part in column_blocks(weight)]
    small, scales = zip(*made, strict=True)
    return np.concatenate(small, axis=1), np.concatenate(scales, axis=1)


def _round_outputs(
    weight: NDArray[Any], kind: Type, block: int, dtype: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    blocks = weight.astype(np.float32).reshape(-1, block, weight.shape[1])
    scale = above_zero(np.maximum(blocks.max(1) / kind.highest, blocks.min(1) / kind.lowest), dtype)
    # By the scale as it is stored, so that its own rounding does no harm.
    small = (blocks / scale.astype(np.float32)[:, None]).clip(kind.lowest, kind.highest)
    if kind.code != TensorProto.FLOAT8E4M3FN:
        small = np.rint(small)
    return small.astype(kind.dtype).reshape(weight.shape), scale


def above_zero(scale: NDArray[Any], dtype: int) -> NDArray[Any]:
    """Return scales in the graph's type: above zero, as engines demand, with a reciprocal in that type."""
    smallest = 2.0**-14 if dtype == TensorProto.FLOAT16 else 2.0**-126  # normal numbers
    rounded: NDArray[Any] = np.maximum(scale, smallest).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return rounded
