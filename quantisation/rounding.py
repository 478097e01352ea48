"""What a scheme does to numbers, in numpy: to judge a decision before a graph is made of it."""

import ml_dtypes
import numpy as np

from poss_export.config import Scheme
from poss_export.quantisation.digits import DIGITS, SEVERAL, rounded
from poss_export.quantisation.observers import min_max
from poss_export.quantisation.statistics import Floats, Statistics

BLOCK = 32  # rows of a weight that share a scale where only weights are quantised
BYTES: dict[Scheme, float] = {
    **dict.fromkeys(DIGITS, 1.0),
    "fp8": 1,
    "int8": 1.125,
    "int4": 0.625,
}  # a weight, its scales included
OUTPUTS = 2048  # of a weight that are looked at, at most, spread evenly: a head has tens of thousands
# Of a weight's small form, in the schemes that round activations.
LARGEST: dict[Scheme, float] = {**dict.fromkeys(DIGITS, 127.0), "fp8": 448.0}


def output_error(scheme: Scheme, weight: Floats, statistics: Statistics) -> float:
    """Return the squared error of x W relative to its size, the mean over the rows of `statistics`."""
    weight = weight[:, :: -(-weight.shape[1] // OUTPUTS)]
    rows = np.concatenate((statistics.rows, statistics.extremes))
    exact = rows @ weight
    small = round_rows(scheme, rows, min_max(statistics)) @ round_weight(scheme, weight)
    sizes = np.square(exact).sum(axis=1)
    errors = np.square(small - exact).sum(axis=1)
    return float(np.mean(errors / np.maximum(sizes, np.finfo(np.float32).tiny)))


def round_rows(scheme: Scheme, rows: Floats, limit: float) -> Floats:
    """Return activations `[n, K]` as a graph would see them whose range reaches `limit`."""
    if scheme in SEVERAL:
        return rounded(rows, limit, DIGITS[scheme])
    return _round(scheme, rows, np.float32(limit)) if scheme in LARGEST else rows


def round_weight(scheme: Scheme, weight: Floats) -> Floats:
    """Return a weight `[K, N]` after rounding: a scale for each column, or for each `BLOCK` of one."""
    if scheme in LARGEST:
        return _round(scheme, weight, np.abs(weight).max(axis=0))
    levels = 127 if scheme == "int8" else 7
    inputs, outputs = weight.shape
    blocks = np.zeros((-(-inputs // BLOCK), BLOCK, outputs), np.float32)
    blocks.reshape(-1, outputs)[:inputs] = weight
    step = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / levels
    found: Floats = (np.rint(blocks / step) * step).reshape(-1, outputs)[:inputs]
    return found


def _round(scheme: Scheme, values: Floats, limit: Floats | np.float32) -> Floats:
    largest = LARGEST[scheme]
    step = np.maximum(limit, np.finfo(np.float32).tiny) / np.float32(largest)
    scaled = np.clip(values / step, -largest, largest)
    whole = scaled.astype(ml_dtypes.float8_e4m3fn) if scheme == "fp8" else np.rint(scaled)
    found: Floats = whole.astype(np.float32) * step
    return found
