"""Rewrite a graph so that it multiplies by small weights.

| scheme | weights | activations |
| --- | --- | --- |
| w8a8 | INT8, a scale for each output | INT8, a fixed scale for each tensor |
| w8a16, w8a24, w8a32 | likewise | two to four INT8 digits, likewise (`digits.py`) |
| fp8 | float8 E4M3, likewise | float8 E4M3, likewise |
| int8, int4 | blocks of 32 inputs, a scale for each block and output | as they are |

Nodes are either the standard QuantizeLinear and DequantizeLinear before a MatMul, or ONNX Runtime's own
operators. docs/decisions/0012-inserted-nodes.md says which of them its library writes, and why not all.

K inputs and N outputs of a weight, `[K, N]`; a head's table is `[N, K]`.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from poss_export.config import Scheme
from poss_export.errors import InputError
from poss_export.onnx_file import read_weight
from poss_export.quantisation.digits import (
    DIGITS,
    FIRST_AXIS,
    SEVERAL,
    ZERO,
    one_sequence,
    product,
    ranks,
    stack,
    steps,
)
from poss_export.quantisation.n_bits import n_bits_node
from poss_export.quantisation.rounding import BLOCK
from poss_export.quantisation.scratch import Keep, in_memory
from poss_export.quantisation.sites import Site, find_sites
from poss_export.quantisation.small import TYPES, Small, above_zero, round_weight

# Operators of ONNX Runtime wherever it has some, for its CPU; or standard ones only, for TensorRT.
Form = Literal["qoperator", "qdq"]

_ZERO = np.array(128, np.uint8)  # activations are bytes about it, which is fastest

_BITS: dict[Scheme, int] = {"int8": 8, "int4": 4}  # of weights in blocks; activations stay as they are


def quantise(
    model: onnx.ModelProto,
    schemes: Mapping[str, Scheme],
    limits: Mapping[str, float],
    form: Form,
    small: Mapping[str, Small] | None = None,
    keep: Keep = in_memory,
) -> None:
    """Quantise weights of `model`, in place.

    A quantised head gets its own copy of the table, transposed: embeddings are looked up in the table as it
    is. Float weights that nothing reads any more are dropped.

    Args:
        model: as this project exported it; each weight is read when it is rounded.
        schemes: of each weight to quantise, by its name, as in `Site.weight`; all uses of it follow.
        limits: largest magnitude of each activation that is rounded, by its name, as in `Site.input`; what
            lies beyond is clipped.
        form: "qoperator" for a graph that ONNX Runtime runs on a CPU, "qdq" for TensorRT.
        small: INT8 forms of weights that were chosen before, by weight; others are rounded to the nearest.
        keep: has the new weights.

    Raises:
        InputError: a weight is not multiplied by in this graph, or TensorRT has no such blocks or digits; a
            largest magnitude is missing or is no positive number.
    """
    sites = {site.output: site for site in find_sites(model)}
    writer = _Writer(model.graph, form, small or {}, keep)
    _check(schemes, list(sites.values()), limits, writer)
    for node in model.graph.node:
        site = sites.get(node.output[0])
        if site is None or site.weight not in schemes:
            writer.nodes.append(node)
        else:
            assert not any(node.input[2:]), "heads have no bias (targets/decoder.py)"
            writer.write(node.name, site, schemes[site.weight], limits)
    writer.finish(schemes)
    if not SEVERAL.isdisjoint(schemes.values()):
        one_sequence(model.graph)
    if form == "qoperator" and all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _check(
    schemes: Mapping[str, Scheme], sites: Sequence[Site], limits: Mapping[str, float], writer: "_Writer"
) -> None:
    known = {site.weight for site in sites}
    for weight in (weight for weight in schemes if weight not in known):
        raise InputError(
            f"this graph does not multiply by {weight!r}: quantise weights that find_sites names"
        )
    for site in sites:
        scheme = schemes.get(site.weight)
        if scheme is not None and scheme not in _BITS:
            _check_range(site, limits.get(site.input))
            if scheme in SEVERAL and not (writer.form == "qoperator" and writer.in_floats(site)):
                raise InputError(
                    f"weight {site.weight!r}: activations of several digits are for float32 graphs that ONNX "
                    "Runtime runs; elsewhere choose w8a8"
                )
        elif scheme is not None and writer.form == "qdq":
            _check_blocks(site, scheme, writer.shape(site)[0])


def _check_range(site: Site, largest: float | None) -> None:
    if largest is None or not (isfinite(largest) and largest > 0):
        raise InputError(
            f"largest magnitude of activation {site.input!r} is {largest}, expected a positive number: "
            f"calibrate it, or leave weight {site.weight!r} as it is"
        )


def _check_blocks(site: Site, scheme: Scheme, inputs: int) -> None:
    if scheme == "int8":
        raise InputError(
            f"weight {site.weight!r}: INT8 weights beside float activations are for ONNX Runtime only; "
            "for TensorRT choose int4 or w8a8"
        )
    if inputs % BLOCK:
        raise InputError(
            f"weight {site.weight!r} has {inputs} inputs, no multiple of {BLOCK}: TensorRT cannot divide "
            "them into blocks; leave it as it is, or choose w8a8"
        )


class _Writer:
    """Collects the nodes of the new graph, in order, and its new weights; tensors are rounded once."""

    def __init__(self, graph: onnx.GraphProto, form: Form, small: Mapping[str, Small], keep: Keep) -> None:
        self.graph, self.form, self.small, self.keep = graph, form, small, keep
        self.ranks = ranks(graph)
        self.floats = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = list[onnx.NodeProto]()
        self.added = dict[str, TensorProto]()
        self.written = set[str]()  # tensors that a node in `nodes` gives
        self.blocks = dict[str, onnx.NodeProto]()  # weight: a MatMulNBits that reads it

    def shape(self, site: Site) -> tuple[int, int]:
        """Return K and N of a site's weight."""
        rows, columns = self.floats[site.weight].dims
        return (columns, rows) if site.transposed else (rows, columns)

    def in_floats(self, site: Site) -> bool:
        """Return whether a site computes in float32, which is all that some operators take."""
        return int(self.floats[site.weight].data_type) == TensorProto.FLOAT

    def write(self, name: str, site: Site, scheme: Scheme, limits: Mapping[str, float]) -> None:
        """Add what replaces the node of a site, under its name."""
        if scheme in _BITS and self.form == "qoperator":
            node = self._n_bits(site, scheme)
        elif scheme in SEVERAL:
            node = self._in_digits(site, scheme, limits[site.input])
        elif scheme == "w8a8" and self.form == "qoperator" and self.in_floats(site):
            node = self._in_integers(site, limits[site.input])
        elif scheme in _BITS:
            node = helper.make_node("MatMul", [site.input, self._weight(site, scheme)], [site.output])
        else:
            inputs = [self._activation(site, scheme, limits[site.input]), self._weight(site, scheme)]
            node = helper.make_node("MatMul", inputs, [site.output])
        node.name = name
        self.nodes.append(node)

    def finish(self, quantised: Mapping[str, Scheme]) -> None:
        """Put the new graph in the place of the old one; our graphs have no branches to look into."""
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for name, tensor in self.floats.items() if name in read or name not in quantised]
        _replace(self.graph.node, self.nodes)
        _replace(self.graph.initializer, [*kept, *self.added.values()])

    def _in_integers(self, site: Site, largest: float) -> onnx.NodeProto:
        """Return the MatMulIntegerToFloat of a site.

        ONNX Runtime makes it of QuantizeLinear and DequantizeLinear too, but not where weights share an
        activation, nor where one comes out of another MatMul. It is fastest with activations of 0 to 255.
        """
        x, x_scale, x_zero = self._quantised(site, "w8a8", largest, _ZERO)
        weight, scale = self._small(site, "w8a8")
        inputs = [x, weight, x_scale, scale, x_zero]
        return helper.make_node("MatMulIntegerToFloat", inputs, [site.output], domain="com.microsoft")

    def _in_digits(self, site: Site, scheme: Scheme, largest: float) -> onnx.NodeProto:
        """Return the last of the nodes that multiply a site's digits; the others are written."""
        count, stacked = DIGITS[scheme], f"{site.input}.{scheme}"
        if stacked not in self.written:
            self.written.add(stacked)
            nodes, tensors = stack(site.input, largest, count, stacked)
            self.nodes += nodes
            self.added.update((tensor.name, tensor) for tensor in tensors)
        weight, scale = self._small(site, scheme)
        units = np.array(steps(largest, count), np.float32)[:, None, None]
        scales = above_zero(units * read_weight(self.added[scale]), TensorProto.FLOAT)
        self._add(f"{site.name}.scales", scales)
        self._add(ZERO, _ZERO)
        if (rank := self.ranks[site.input]) == 2:
            self._add(FIRST_AXIS, np.zeros(1, np.int64))
        *nodes, last = product(site, stacked, weight, count, rank)
        self.nodes += nodes
        return last

    def _activation(self, site: Site, scheme: Scheme, largest: float) -> str:
        """Return the rounded form of a site's input."""
        result = f"{site.input}.{scheme}.rounded"
        if result not in self.written:
            self.written.add(result)
            # A zero point, though 0: without one ONNX Runtime never multiplies in integers.
            inputs = self._quantised(site, scheme, largest, np.zeros((), TYPES[scheme].dtype))
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [result], result))
        return result

    def _quantised(self, site: Site, scheme: Scheme, largest: float, zero: NDArray[Any]) -> list[str]:
        """Return the small form of a site's input, its scale and its zero point."""
        small, dtype = f"{site.input}.{scheme}", self.floats[site.weight].data_type
        scale = self._add(f"{small}.scale", above_zero(np.array(largest / TYPES[scheme].highest), dtype))
        names = [scale, self._add(f"zero.{scheme}", zero)]
        if small not in self.written:
            self.written.add(small)
            self.nodes.append(helper.make_node("QuantizeLinear", [site.input, *names], [small], small))
        return [small, *names]

    def _weight(self, site: Site, scheme: Scheme) -> str:
        """Return the rounded form of a weight, `[K, N]`."""
        result = f"{site.weight}.{scheme}.rounded"
        if result not in self.written:
            self.written.add(result)
            layout: dict[str, Any] = {"axis": 0, "block_size": BLOCK} if scheme in _BITS else {"axis": 1}
            inputs = self._small(site, scheme)
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [result], result, **layout))
        return result

    def _small(self, site: Site, scheme: Scheme) -> list[str]:
        """Return the small form of a weight, `[K, N]`, and its scales, `[N]`, in blocks `[K / 32, N]`."""
        names = [f"{site.weight}.{scheme}", f"{site.weight}.{scheme}.scale"]
        if names[0] not in self.added:
            dtype = self.floats[site.weight].data_type
            if (chosen := self.small.get(site.weight)) is not None:
                small, scale = chosen.values, above_zero(chosen.scale, dtype)
            elif scheme in _BITS:
                small, scale = round_weight(self._array(site), TYPES[scheme], BLOCK, dtype)
            else:
                small, (scale,) = round_weight(self._array(site), TYPES[scheme], self.shape(site)[0], dtype)
            self._add(names[0], small)
            self._add(names[1], scale)
        return names

    def _n_bits(self, site: Site, scheme: Scheme) -> onnx.NodeProto:
        """Return the MatMulNBits of a site."""
        if site.weight not in self.blocks:
            self.blocks[site.weight], arrays = n_bits_node(site.weight, self._array(site), _BITS[scheme])
            for name, array in arrays.items():
                self._add(name, array)
        node = onnx.NodeProto()
        node.CopyFrom(self.blocks[site.weight])
        node.input[0], node.output[0] = site.input, site.output
        return node

    def _array(self, site: Site) -> NDArray[Any]:
        array = read_weight(self.floats[site.weight])
        return array.T if site.transposed else array

    def _add(self, name: str, array: NDArray[Any]) -> str:
        self.added[name] = self.keep(array, name)
        return name


def _replace(field: Any, values: Sequence[Any]) -> None:
    """Fill a repeated field anew."""
    values = list(values)
    del field[:]
    field.extend(values)
