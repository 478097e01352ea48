"""Activations as fixed-point numbers of several 8-bit digits, which one product of integers multiplies.

x = sum_j step_j digit_j, each digit an 8-bit integer. The digits of all rows are stacked,
`[digits, rows, K]`, and multiplied by the INT8 weight at once: the kernel's time hardly depends on its rows,
so weights are read once however fine an activation is. Steps are fixed and sums of integers exact: a row
depends on no other.
"""

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.config import Scheme
from poss_export.quantisation.sites import Site

DIGITS: dict[Scheme, int] = {"w8a8": 1, "w8a16": 2, "w8a24": 3, "w8a32": 4}
SCHEMES: dict[int, Scheme] = {digits: scheme for scheme, digits in DIGITS.items()}
SEVERAL = frozenset(scheme for scheme, digits in DIGITS.items() if digits > 1)
WIDE = 90.0  # how many times its spread a range may reach before it takes a digit more

ZERO = "zero.w8a8"  # the zero point of a digit
FIRST_AXIS = "first_axis"

_LARGEST = 127  # of a digit
# A step is so many of the next. (x + m) - m rounds x to a multiple of a power of two, and leaves up to 64 + 1
# of the next steps; only the last digit may use its whole range, because nothing is rounded behind it.
_BASE, _LAST_BASE = 128, 254
_ROUNDER = 1.5 * 2.0**23  # steps: a float32 of this size has no fraction
_NO_ROUNDER = 1e30  # rounds everything to 0
_ANY_ROWS = 1 << 30  # of a block of DequantizeLinear: all rows of a digit


def steps(limit: float, digits: int) -> list[float]:
    """Return what one unit of each digit is worth, for activations up to `limit`; the first is coarsest."""
    first = limit / _LARGEST
    if digits == 1:
        return [first]
    found = [2.0 ** math.ceil(math.log2(first))]
    while len(found) < digits - 1:
        found.append(found[-1] / _BASE)
    return [*found, found[-1] / _LAST_BASE]


def digits_for(scheme: Scheme, limit: float, spread: float) -> Scheme:
    """Return the scheme for activations up to `limit` whose typical row has the root mean square `spread`.

    One digit more than asked for each time that the range outgrows what the digits below it resolve.
    """
    digits = DIGITS[scheme]
    while digits < max(SCHEMES) and limit > WIDE * spread * _LAST_BASE ** (digits - DIGITS[scheme]):
        digits += 1
    return SCHEMES[digits]


def stack(x: str, limit: float, digits: int, name: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Return nodes that make the digits of `x`, and their tensors.

    `x` is `[1, rows, K]` or `[rows, K]`; `name`, the digits, `[digits, rows, K]` in bytes about 128. A digit
    but the first is of what the steps of the one before leave; what lies beyond `limit` is clipped.
    """
    units = steps(limit, digits)
    rounders = np.array([_NO_ROUNDER, *(_ROUNDER * unit for unit in units[:-1])], np.float32)
    above, rounded, rest, rounder, unit, zero = (
        f"{name}.{part}" for part in ("above", "rounded", "rest", "rounder", "unit", "zero")
    )
    tensors = [
        numpy_helper.from_array(rounders.reshape(-1, 1, 1), rounder),
        numpy_helper.from_array(np.array(units, np.float32), unit),
        numpy_helper.from_array(np.full(digits, 128, np.uint8), zero),
    ]
    nodes = [
        helper.make_node("Add", [x, rounder], [above], above),
        helper.make_node("Sub", [above, rounder], [rounded], rounded),
        helper.make_node("Sub", [x, rounded], [rest], rest),
        helper.make_node("QuantizeLinear", [rest, unit, zero], [name], name, axis=0),
    ]
    return nodes, tensors


def product(site: Site, stacked: str, weight: str, count: int, rank: int) -> list[onnx.NodeProto]:
    """Return nodes that multiply digits by the INT8 weight of a site, and add up what the digits give.

    They read `{site.name}.scales`, `[count, 1, N]`, of each digit and output, and the scalar `zero.w8a8`.
    """
    whole, parts, total = (f"{site.output}.{part}" for part in ("whole", "parts", "total"))
    each = [f"{parts}.{digit}" for digit in range(count)]
    last = total if rank == 2 else site.output
    nodes = [
        helper.make_node("MatMulInteger", [stacked, weight, ZERO], [whole], whole),
        helper.make_node(
            "DequantizeLinear", [whole, f"{site.name}.scales"], [parts], parts, axis=1, block_size=_ANY_ROWS
        ),
        helper.make_node("Split", [parts], each, f"{parts}.split", axis=0, num_outputs=count),
        helper.make_node("Sum", each, [last], total),
    ]
    if rank == 2:
        nodes.append(helper.make_node("Squeeze", [total, FIRST_AXIS], [site.output], f"{total}.rows"))
    return nodes


def one_sequence(graph: onnx.GraphProto) -> None:
    """Say that a graph takes one sequence: its digits are stacked where others would have sequences."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = 1


def rounded(values: NDArray[np.float32], limit: float, digits: int) -> NDArray[np.float32]:
    """Return activations as the digits of a graph hold them."""
    total, known = np.zeros_like(values), np.zeros_like(values)
    for unit in np.array(steps(limit, digits), np.float32):
        total += np.rint((values - known) / unit).clip(-128, 127) * unit
        known = np.rint(values / unit) * unit
    return total


def ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the number of dimensions of each tensor that a graph tells of."""
    told = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in told}
