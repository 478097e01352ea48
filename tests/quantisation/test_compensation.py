"""Compensated rounding against rounding to the nearest, on rows whose inputs correlate."""

import numpy as np
import pytest

from poss_export.quantisation.compensation import compensate
from poss_export.quantisation.rounding import round_weight
from tests.fixtures.graphs import Floats, random


def lost(rows: Floats, weight: Floats, small: Floats) -> float:
    return float(np.square(rows @ (small - weight)).mean() / np.square(rows @ weight).mean())


def correlated(count: int, inputs: int, seed: int) -> Floats:
    return random(count, 8, seed=seed) @ random(8, inputs, seed=1) + 0.1 * random(
        count, inputs, seed=seed + 1
    )


@pytest.mark.parametrize(("count", "inputs"), [(400, 100), (40, 100)])
def test_less_is_lost_than_by_the_nearest(count: int, inputs: int) -> None:
    """On rows that it did not see; also where there are fewer rows than inputs."""
    weight, rows, others = random(inputs, 30, seed=0), *(correlated(n, inputs, n) for n in (count, 500))
    small = compensate(weight, rows)
    assert lost(others, weight, small.values * small.scale) < 0.5 * lost(
        others, weight, round_weight("w8a8", weight)
    )


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = random(16, 20, seed=0)
    small = compensate(weight, np.eye(16, dtype=np.float32))
    np.testing.assert_allclose(small.values * small.scale, round_weight("w8a8", weight), rtol=1e-6)


def test_large_rows_count_like_others() -> None:
    weight, rows = random(32, 8, seed=0), correlated(64, 32, 5)
    factors = np.geomspace(1e-3, 1e3, 64, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(compensate(weight, rows).values, compensate(weight, rows * factors).values)


def test_weights_and_rows_of_zeros() -> None:
    small = compensate(np.zeros((4, 3), np.float32), np.zeros((2, 4), np.float32))
    assert not small.values.any()
    assert np.isfinite(small.scale).all()
