"""Round a weight so that what one input loses is made up for by the inputs that come after it.

GPTQ (arXiv 2210.17323): inputs are rounded one by one, the largest first, and the error of each is spread
over those not rounded yet, as the rows that reach the weight correlate. It costs nothing when the graph runs.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from poss_export.quantisation.small import Small, column_blocks
from poss_export.quantisation.statistics import Floats

_LARGEST = 127
_DAMPING = 0.01  # of the mean square of an input, so that rows too few to tell inputs apart do no harm
_BLOCK = 32  # inputs whose errors reach the rest of the weight together


def compensate(weight: Floats, rows: Floats) -> Small:
    """Return a weight `[K, N]` in INT8, a scale for each output, rounded for inputs like `rows` `[n, K]`.

    Every row counts alike, however large it is.
    """
    size = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    order, spread = _spread(rows / np.maximum(size, np.finfo(np.float32).tiny))
    made = [_compensate(part, order, spread) for part in column_blocks(weight)]
    values, scale = zip(*made, strict=True)
    return Small(np.concatenate(values, axis=1), np.concatenate(scale))


def _compensate(
    weight: Floats, order: NDArray[np.int64], spread: Floats
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return some outputs of a weight in INT8, and their scales."""
    inputs, left = len(weight), weight[order]
    scale = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / np.float32(_LARGEST)
    values = np.empty(weight.shape, np.int8)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.empty_like(left[start:end])
        for i in range(start, end):
            values[order[i]] = whole = np.rint(left[i] / scale).clip(-_LARGEST, _LARGEST)
            errors[i - start] = (left[i] - whole * scale) / spread[i, i]
            left[i + 1 : end] -= np.outer(spread[i, i + 1 : end], errors[i - start])
        left[end:] -= spread[start:end, end:].T @ errors
    return values, scale


def _spread(rows: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the inputs in their order, and how the error of each spreads over the later ones, `[K, K]`.

    That is the upper U with U^T U = H^-1 for the second moments H. Of U^-1 U^-T = H, Cholesky's from the last
    input on, it takes a tenth of the time that inverting H does.
    """
    moments = torch.from_numpy(rows.T @ rows).double() / max(len(rows), 1)
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean().clamp(min=1e-12))
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    factor = torch.linalg.cholesky(moments[order][:, order].flip(0, 1)).flip(0, 1)
    one = torch.eye(len(order), dtype=factor.dtype)
    return order.numpy(), torch.linalg.solve_triangular(factor, one, upper=True).float().numpy()
