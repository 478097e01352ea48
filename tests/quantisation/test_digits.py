"""Activations in digits: numpy and ONNX Runtime agree, and digits are as many as a range takes."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from poss_export.quantisation.digits import WIDE, digits_for, rounded, stack, steps
from tests.fixtures.graphs import random, run

LIMIT = 3.0


def digits_of(values: Any, count: int) -> Any:
    """Return the digits that ONNX Runtime makes, as numbers about 0."""
    nodes, tensors = stack("x", LIMIT, count, "digits")
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * values.ndim)],
        [helper.make_tensor_value_info("digits", TensorProto.UINT8, [count, None, None])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.checker.check_model(model)
    return run(model, ["digits"], x=values)[0] - 128


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 300, 64), (300, 64)])
def test_digits_add_up_to_what_numpy_rounds(count: int, shape: tuple[int, ...]) -> None:
    values = random(*shape, seed=3)
    values.flat[:6] = 0, LIMIT, -LIMIT, 100, -100, 1e-12
    digits = digits_of(values, count)
    assert digits.shape == (count, *shape[-2:])
    found = sum(d * np.float32(unit) for d, unit in zip(digits, steps(LIMIT, count), strict=True))
    np.testing.assert_array_equal(found, rounded(values, LIMIT, count).reshape(found.shape))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_what_lies_within_is_off_by_half_a_step(count: int) -> None:
    values = random(2000, 8, seed=4).clip(-LIMIT, LIMIT)
    error = np.abs(rounded(values, LIMIT, count).astype(np.float64) - values)
    # A float32 of this size is no finer than 2^-23 of it.
    assert error.max() <= steps(LIMIT, count)[-1] / 2 * 1.001 + LIMIT * 2.0**-24
    assert error.max() > steps(LIMIT, count)[-1] / 4 or count == 4


@pytest.mark.parametrize("count", [2, 3, 4])
def test_values_between_two_steps_are_rounded_once(count: int) -> None:
    """Halves of a step are where the digits of one number could be rounded to different sides."""
    units = steps(LIMIT, count)
    halves = np.array([(n + 0.5) * unit for unit in units[:-1] for n in range(-40, 40)], np.float32)
    values = np.concatenate(
        (halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9)))
    )
    digits = digits_of(values[None], count)
    found = sum(d.astype(np.float64) * unit for d, unit in zip(digits, units, strict=True))
    assert np.abs(found - values).max() <= units[-1] * 0.51


def test_what_lies_beyond_is_clipped() -> None:
    values = np.array([[5 * LIMIT, -5 * LIMIT]], np.float32)
    found = rounded(values, LIMIT, 3)[0]
    reach = 127 * steps(LIMIT, 3)[0]
    assert reach <= found[0] < 1.02 * reach
    assert -1.02 * reach < found[1] <= -reach
    assert reach >= LIMIT


@pytest.mark.parametrize(
    ("scheme", "reach", "expected"),
    [
        ("w8a16", WIDE, "w8a16"),
        ("w8a16", 1.01 * WIDE, "w8a24"),
        ("w8a16", 255 * WIDE, "w8a32"),
        ("w8a24", WIDE, "w8a24"),
        ("w8a24", 2 * WIDE, "w8a32"),
        ("w8a24", 1000 * WIDE, "w8a32"),
        ("w8a32", 1000 * WIDE, "w8a32"),
    ],
)
def test_wide_ranges_take_more_digits(scheme: Any, reach: float, expected: str) -> None:
    assert digits_for(scheme, reach * 0.3, 0.3) == expected
