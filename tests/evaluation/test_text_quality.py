"""Quality on a text: figures by hand, logarithms of large logits, and texts that are too short."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from poss_export.errors import InputError
from poss_export.evaluation.text_quality import (
    WINDOW,
    divergence,
    judge,
    judge_text,
    log_softmax,
    read_windows,
)
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.tree import DraftTree


class FakeTarget:
    """Says the same probabilities in every window, row by row."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        self.logits = np.log(np.array(probabilities, np.float32)) + 3  # any constant

    def reset(self) -> None:
        self.fresh = True

    def forward(self, tree: DraftTree, rows: Any = None) -> Any:
        assert self.fresh
        assert tree.is_chain
        assert rows is None
        self.fresh = False
        return SimpleNamespace(logits=self.logits[: len(tree)])


def test_figures_by_hand() -> None:
    exact: Any = FakeTarget([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    other: Any = FakeTarget([[0.5, 0.25, 0.25], [0.4, 0.2, 0.4], [0.1, 0.2, 0.7]])
    found = judge_text(exact, other, [np.array([0, 1, 1]), np.array([2, 0])])
    # After a token come 1 (row 0) and 1 (row 1), in the second window 0 (row 0); the last has no next.
    assert found.reference_perplexity == pytest.approx((0.25 * 0.6 * 0.5) ** (-1 / 3))
    assert found.perplexity == pytest.approx((0.25 * 0.2 * 0.5) ** (-1 / 3))
    second = 0.2 * np.log(0.5) + 0.6 * np.log(3) + 0.2 * np.log(0.5)
    third = 0.1 * np.log(0.5) + 0.8 * np.log(8 / 7)
    assert found.divergence == pytest.approx((second + third + second) / 5, rel=1e-5)
    assert found.tokens == 5
    assert found.agreement == pytest.approx(3 / 5)  # row 1 differs, in both windows


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
    assert found.divergence == pytest.approx(sum(divergences) / 3, rel=1e-5)
    assert found.agreement == pytest.approx(2 / 3)


def test_a_model_agrees_with_itself() -> None:
    p = [log_softmax(np.random.default_rng(0).normal(0, 9, (7, 50)).astype(np.float32))]
    found = judge([list(range(8))], p, p)
    assert (found.divergence, found.agreement) == (0.0, 1.0)


def test_large_logits_have_finite_logarithms() -> None:
    found = log_softmax(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))
    assert found[0].tolist() == pytest.approx([-math.log(1 + math.exp(-1)), -1.313262, -20000.3], rel=1e-5)


def test_divergence_by_hand() -> None:
    exact, other = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)) / 2
    values = [array.astype(np.float32) for array in (exact, other)]
    assert divergence(*values) == pytest.approx(expected, rel=1e-5)
    assert divergence(values[0], values[0]) == 0
    logits = np.random.default_rng(1).normal(0, 50, (3, 7)).astype(np.float32)
    np.testing.assert_allclose(np.exp(log_softmax(logits)).sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(log_softmax(logits + 100), log_softmax(logits), atol=1e-4)


def test_text_comes_in_windows(bundle: Bundle, text: Path, tmp_path: Path) -> None:
    ids, source = bundle.encode(text.read_text(), raw=True), (bundle.text, 48)
    windows = read_windows(*source, text)
    assert [len(window) for window in windows] == [48, 48, 48]
    assert WINDOW > 48  # the capacity is what fits
    assert np.concatenate(windows).tolist() == ids[: 3 * 48]
    assert len(read_windows(*source, text, 2)) == 2
    short = tmp_path / "short.txt"
    short.write_text("<5> " * 47)
    with pytest.raises(InputError, match=r"short.txt' has 47 tokens; quality is measured on at least 48"):
        read_windows(*source, short)
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read .* expected a plain text file"):
            read_windows(*source, bad)
    short.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected a plain text file"):
        read_windows(*source, short)
