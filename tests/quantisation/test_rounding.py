"""Rounded numbers against ONNX Runtime's own operators, and blocks against a computation by hand."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from poss_export.config import Scheme
from poss_export.quantisation.observers import HEADROOM
from poss_export.quantisation.rounding import BLOCK, output_error, round_rows, round_weight
from poss_export.quantisation.statistics import Floats, Statistics
from tests.fixtures.graphs import random, run, small_graph

TYPES = {"w8a8": (TensorProto.INT8, 127), "fp8": (TensorProto.FLOAT8E4M3FN, 448)}


def in_onnx_runtime(scheme: str, values: Floats, scale: Floats) -> Floats:
    """Quantise and dequantise; a scale for each column, or one."""
    code, _ = TYPES[scheme]
    zero = np.zeros(scale.shape, helper.tensor_dtype_to_np_dtype(code))
    axis: dict[str, Any] = {"axis": 1} if scale.shape else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["small"], **axis),
        helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["y"], **axis),
    ]
    model = small_graph(nodes, {"scale": scale, "zero": zero}, {"x": ["n", values.shape[1]]}, ["y"])
    (y,) = run(model, ["y"], x=values)
    return y


@pytest.mark.parametrize("scheme", TYPES)
def test_weights_are_rounded_as_onnx_runtime_does(scheme: Any) -> None:
    weight = random(40, 12, seed=1) * np.geomspace(0.01, 10, 12, dtype=np.float32)
    scale = np.abs(weight).max(axis=0) / np.float32(TYPES[scheme][1])
    np.testing.assert_array_equal(round_weight(scheme, weight), in_onnx_runtime(scheme, weight, scale))


@pytest.mark.parametrize("scheme", TYPES)
def test_activations_are_rounded_and_cut_off_as_onnx_runtime_does(scheme: Any) -> None:
    rows, limit = random(200, 12, seed=2), 1.5
    scale = np.array(np.float32(limit) / np.float32(TYPES[scheme][1]))
    expected = np.clip(in_onnx_runtime(scheme, rows, scale), -limit, limit)  # INT8 has -128 too, in some
    rounded = round_rows(scheme, rows, limit)
    np.testing.assert_allclose(rounded, expected, rtol=1e-6)
    assert np.abs(rounded).max() == pytest.approx(limit)


@pytest.mark.parametrize(("scheme", "levels"), [("int8", 127), ("int4", 7)])
def test_blocks_by_hand(scheme: Any, levels: int) -> None:
    weight = np.zeros((BLOCK + 8, 2), np.float32)  # the second block is not full
    weight[:, 0] = np.linspace(-1, 1, BLOCK + 8)
    weight[BLOCK:, 1] = 0.1 * levels * np.array([1, 0.5, -1, 0, 2 / levels, 1 / levels, -3 / levels, 0])
    expected = weight.copy()
    for first in (0, BLOCK):
        block = weight[first : first + BLOCK, 0]
        step = np.abs(block).max() / levels
        expected[first : first + BLOCK, 0] = np.round(block / step) * step
    expected[BLOCK + 1, 1] = 0.1 * np.rint(levels / 2)  # half a level: the only one that is none
    np.testing.assert_allclose(round_weight(scheme, weight), expected, atol=1e-6)
    assert round_rows(scheme, weight, 0.001) is weight  # activations stay as they are


@pytest.mark.parametrize("scheme", ["w8a8", "fp8", "int8", "int4"])
def test_what_can_be_stored_costs_nothing(scheme: Any) -> None:
    largest = {"w8a8": 127, "fp8": 448, "int8": 127, "int4": 7}[scheme]  # it is in every column
    levels = np.array([-7, -3, -1, 0, 1, 2, 4, 7], np.float32) * np.float32(largest / 7)
    levels = round_weight(scheme, levels[:, None])[:, 0]
    weight = np.stack([np.roll(levels, i) for i in range(8)])
    rows = np.stack([np.roll(levels, 3 * i) for i in range(5)])
    exact = Statistics(np.abs(rows).max(axis=0) / HEADROOM, rows, rows[:1])
    assert output_error(scheme, weight, exact) == pytest.approx(0, abs=1e-12)
    assert output_error(scheme, weight + random(8, 8, seed=1), exact) > 1e-7


def test_the_error_is_relative_to_each_output() -> None:
    weight = np.eye(4, dtype=np.float32)
    rows = np.array([[1, 0, 0, 0], [0, 0.3, 0, 0]], np.float32)  # the second is rounded: 38.1 of 127
    statistics = Statistics(np.abs(rows).max(axis=0) / HEADROOM, rows[:1], rows[1:])
    expected = ((38 / 127 - 0.3) / 0.3) ** 2 / 2
    assert output_error("w8a8", weight, statistics) == pytest.approx(expected, rel=1e-3)


def test_zeros_stay_zeros() -> None:
    nothing = np.zeros((40, 3), np.float32)
    schemes: tuple[Scheme, ...] = ("w8a8", "fp8", "int8", "int4")
    for scheme in schemes:
        np.testing.assert_array_equal(round_weight(scheme, nothing), nothing)
        assert output_error(scheme, nothing, Statistics(nothing[:, 0], nothing.T, nothing.T)) == 0
