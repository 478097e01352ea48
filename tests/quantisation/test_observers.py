"""Ranges of known distributions: what each observer covers, and what it cuts off."""

import numpy as np
import pytest

from poss_export.config import Observer
from poss_export.quantisation.observers import (
    HEADROOM,
    OBSERVERS,
    PERCENTILE,
    entropy,
    min_max,
    mse,
    percentile,
)
from poss_export.quantisation.statistics import Floats, Statistics
from tests.fixtures.graphs import random

OUTLIER = 300.0


def statistics(rows: Floats) -> Statistics:
    return Statistics(np.abs(rows).max(axis=0), rows, rows[:1])


@pytest.fixture(scope="module")
def normal() -> Statistics:
    """512 rows of 64 normal numbers, one of which is far out."""
    rows = random(512, 64, seed=3)
    rows[100, 7] = -OUTLIER
    return statistics(rows)


def squared_error(rows: Floats, limit: float) -> float:
    """By definition: 255 levels, symmetric."""
    levels = np.linspace(-limit, limit, 255)
    nearest = levels[np.abs(rows.reshape(-1, 1) - levels).argmin(axis=1)]
    return float(np.square(nearest - rows.ravel()).mean())


def test_min_max_cuts_nothing_off(normal: Statistics) -> None:
    assert min_max(normal) == HEADROOM * OUTLIER
    all_rows = Statistics(np.array([2.0, 5.0], np.float32), normal.rows, normal.rows)
    assert min_max(all_rows) == HEADROOM * 5


def test_the_percentile_is_one(normal: Statistics) -> None:
    limit = percentile(normal)
    values = np.sort(np.abs(normal.rows).ravel())
    assert (values <= limit).mean() == pytest.approx(PERCENTILE / 100, abs=1 / len(values))
    assert limit < 5 < OUTLIER


def test_entropy_cuts_an_outlier_off(normal: Statistics) -> None:
    # The histogram's bins are as wide as half a deviation here: 0.6 to 3 deviations at least are kept.
    assert np.percentile(np.abs(normal.rows), 99) < entropy(normal) < OUTLIER / 2


def test_mse_is_the_best_of_its_neighbours(normal: Statistics) -> None:
    rows = normal.rows.copy()
    rows[100, 7] = -30  # it costs something to cut off, but less than coarse steps for all others
    limit = mse(statistics(rows))
    assert 5 < limit < 30
    neighbours = [squared_error(rows, limit * factor) for factor in (0.7, 0.85, 1.15)]
    assert squared_error(rows, limit) < min(*neighbours, squared_error(rows, 30.0))


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_is_uniform_is_covered(name: Observer) -> None:
    """Without an outlier nothing is won by cutting much off."""
    rows = np.random.default_rng(1).uniform(-1, 1, (512, 16)).astype(np.float32)
    most = HEADROOM if name == "min-max" else 1
    assert 0.9 * most < OBSERVERS[name](statistics(rows)) <= most
