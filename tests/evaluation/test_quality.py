"""Quality: figures by hand, equal bundles, thresholds, and texts that are too short."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from poss_export.config import Thresholds
from poss_export.errors import InputError, QualityError
from poss_export.evaluation.quality import (
    WINDOW,
    Trial,
    failures,
    judge_text,
    measure_quality,
    read_windows,
    require_quality,
)
from poss_export.manifest import read_manifest
from poss_export.runtime.bundle import Bundle, open_bundle
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


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path) -> Iterator[tuple[Bundle, Bundle]]:
    with open_bundle(tiny_bundle, threads=1) as one, open_bundle(tiny_bundle, threads=1) as two:
        yield one, two


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    ids = np.random.default_rng(1).integers(3, 96, 3 * 48 + 47)
    path.write_text(" ".join(f"<{number}>" for number in ids), encoding="utf-8")
    return path


def test_figures_by_hand() -> None:
    exact: Any = FakeTarget([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    other: Any = FakeTarget([[0.5, 0.25, 0.25], [0.4, 0.2, 0.4], [0.1, 0.2, 0.7]])
    figures = judge_text(exact, other, [np.array([0, 1, 1]), np.array([2, 0])])
    # After a token come 1 (row 0) and 1 (row 1), in the second window 0 (row 0); the last has no next.
    assert figures["reference_perplexity"] == pytest.approx((0.25 * 0.6 * 0.5) ** (-1 / 3))
    assert figures["perplexity"] == pytest.approx((0.25 * 0.2 * 0.5) ** (-1 / 3))
    second = 0.2 * np.log(0.5) + 0.6 * np.log(3) + 0.2 * np.log(0.5)
    third = 0.1 * np.log(0.5) + 0.8 * np.log(8 / 7)
    assert figures["divergence"] == pytest.approx((second + third + second) / 5, rel=1e-5)
    assert figures["tokens"] == 5
    assert figures["agreement"] == pytest.approx(3 / 5)  # row 1 differs, in both windows


def test_equal_bundles_lose_nothing(bundles: tuple[Bundle, Bundle], text: Path) -> None:
    windows = read_windows(bundles[0], text)
    told: list[str] = []
    trial = Trial(windows, ["<5> <9>", "<7>"], 24, timed=True)
    figures = measure_quality(*bundles, bundles[1], trial, told.append)
    assert figures["text"]["divergence"] == 0
    assert figures["text"]["agreement"] == 1
    assert figures["text"]["perplexity"] == figures["text"]["reference_perplexity"] > 1
    rounds = figures["rounds"]
    assert rounds["tau"] == rounds["reference_tau"] >= 1
    assert rounds["acceptance"] == rounds["reference_acceptance"]
    # A round emits the root's successor, and what it accepts.
    assert rounds["tau"] == pytest.approx(1 + sum(rounds["acceptance"]), abs=0.1)
    assert (rounds["prompts"], rounds["tokens"], rounds["equal_answers"]) == (2, 48, 2)
    for times in figures["ms"].values():
        assert times["target"].keys() == {"1", "2", "4", "8", "16", "32"}
        assert 0 < times["draft"] < times["round"]
    assert figures["bytes"]["reference"] == figures["bytes"]["quantised"]
    data = read_manifest(bundles[0].folder).files["draft.onnx.data"]
    assert figures["bytes"]["quantised"]["draft"] == data.size
    assert failures(figures, Thresholds(1.0, 1.0, 1.0)) == []
    assert told == ["reading held-out text", "answering held-out prompts", "timing"]


def test_what_was_not_asked_for_is_not_there(bundles: tuple[Bundle, Bundle], text: Path) -> None:
    trial = Trial(read_windows(bundles[0], text, 1), ["<5>"], 4, timed=False)
    figures = measure_quality(*bundles, bundles[1], trial, lambda _: None)
    assert figures.keys() == {"text", "rounds", "bytes"}
    assert figures["text"]["tokens"] == 48


GOOD = {
    "text": {"perplexity": 10.4, "reference_perplexity": 10.0, "agreement": 0.9},
    "rounds": {"tau": 1.8, "reference_tau": 2.0},
}


@pytest.mark.parametrize(
    ("thresholds", "found"),
    [
        (Thresholds(1.04, 0.9, 0.9), []),
        (Thresholds(1.03, 0.9, 0.9), ["perplexity is 10.400, allowed are 10.300 (1.03 times 10.000)"]),
        (Thresholds(1.04, 0.91, 0.9), ["agreement is 0.900, wanted are 0.91"]),
        (Thresholds(1.04, 0.9, 0.95), ["tau is 1.80, wanted are 1.90 (0.95 times 2.00)"]),
    ],
)
def test_every_threshold_has_its_sentence(thresholds: Thresholds, found: list[str]) -> None:
    assert failures(GOOD, thresholds) == found
    assert failures({**GOOD, "rounds": {}}, thresholds) == [text for text in found if "tau" not in text]
    if not found:
        require_quality(GOOD, thresholds)
        return
    with pytest.raises(QualityError, match=r"is not good enough: .*\. Leave more layers") as error:
        require_quality(GOOD, thresholds)
    assert found[0] in str(error.value)


def test_what_is_not_a_number_is_not_good() -> None:
    figures = {"text": dict.fromkeys(GOOD["text"], float("nan")), "rounds": {"tau": 1, "reference_tau": 1}}
    assert len(failures(figures, Thresholds())) == 2


def test_text_comes_in_windows(bundles: tuple[Bundle, Bundle], text: Path, tmp_path: Path) -> None:
    bundle = bundles[0]
    ids = bundle.encode(text.read_text(), raw=True)
    windows = read_windows(bundle, text)
    assert [len(window) for window in windows] == [48, 48, 48]
    assert WINDOW > 48  # the capacity is what fits
    assert np.concatenate(windows).tolist() == ids[: 3 * 48]
    assert len(read_windows(bundle, text, 2)) == 2
    short = tmp_path / "short.txt"
    short.write_text("<5> " * 47)
    with pytest.raises(InputError, match=r"short.txt' has 47 tokens; quality is measured on at least 48"):
        read_windows(bundle, short)
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read .* expected a plain text file"):
            read_windows(bundle, bad)
    short.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected a plain text file"):
        read_windows(bundle, short)
