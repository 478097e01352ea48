"""Windows of a text, and the logits of a tiny bundle."""

from pathlib import Path

import numpy as np

from benchmarks.scorers import bundle_logits, predictions, windows
from benchmarks.workers import Setup


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
