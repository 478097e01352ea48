"""Quality from arrays made by hand, and the logits of a tiny bundle."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import bundle_logits, judge, log_probabilities, predictions, windows
from benchmarks.workers import Setup


def test_quality_of_predictions_made_by_hand() -> None:
    p = [np.log(np.array(rows, np.float32)) for rows in ([[0.6, 0.4], [0.9, 0.1]], [[0.5, 0.5]])]
    q = [np.log(np.array(rows, np.float32)) for rows in ([[0.3, 0.7], [0.8, 0.2]], [[0.5, 0.5]])]
    found = judge([[0, 1, 0], [1, 1]], p, q)
    assert found.perplexity == pytest.approx((0.7 * 0.8 * 0.5) ** (-1 / 3))
    divergences = [
        0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7),
        0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2),
        0.0,
    ]
    assert found.kl == pytest.approx(sum(divergences) / 3, rel=1e-5)
    assert found.agreement == pytest.approx(2 / 3)


def test_a_model_agrees_with_itself() -> None:
    p = [log_probabilities(np.random.default_rng(0).normal(0, 9, (7, 50)).astype(np.float32))]
    found = judge([list(range(8))], p, p)
    assert (found.kl, found.agreement) == (0.0, 1.0)


def test_large_logits_have_finite_logarithms() -> None:
    found = log_probabilities(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))
    assert found[0].tolist() == pytest.approx([-math.log(1 + math.exp(-1)), -1.313262, -20000.3], rel=1e-5)


def test_windows_leave_out_a_single_token() -> None:
    assert windows(range(5), 2) == [[0, 1], [2, 3]]
    assert windows(range(6), 4) == [[0, 1, 2, 3], [4, 5]]
    assert windows(range(3), 4) == [[0, 1, 2]]


def test_the_last_prediction_of_a_window_has_no_token_to_meet() -> None:
    (found,) = predictions(lambda ids: np.zeros((len(ids), 4), np.float32), [[1, 2, 3]])
    assert found.shape == (2, 4)


def test_predictions_of_a_bundle_do_not_hang_on_earlier_windows(tiny_bundle: Path) -> None:
    scorer = bundle_logits(Setup(tiny_bundle, (2,), 48, 1))
    first = scorer([5, 6, 7]).copy()
    assert not np.allclose(scorer([8, 9, 10]), first)
    assert np.array_equal(scorer([5, 6, 7]), first)
