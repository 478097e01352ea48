"""What quantising costs, as the build measures it: nothing between equal bundles."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from poss_export.config import Thresholds
from poss_export.evaluation.quality import Trial, judge_rounds, measure_quality
from poss_export.evaluation.text_quality import read_windows
from poss_export.evaluation.thresholds import failures
from poss_export.manifest import read_manifest
from poss_export.prompts import Prompt, as_prompts
from poss_export.runtime.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path) -> Iterator[tuple[Bundle, Bundle]]:
    with open_bundle(tiny_bundle, threads=1) as one, open_bundle(tiny_bundle, threads=1) as two:
        yield one, two


def test_equal_bundles_lose_nothing(bundles: tuple[Bundle, Bundle], text: Path) -> None:
    windows = read_windows(bundles[0].text, 48, text)
    told: list[str] = []
    trial = Trial(windows, as_prompts(["<5> <9>", "<7>"]), 24, timed=True)
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


def test_every_turn_counts(chat_bundle: Path) -> None:
    with open_bundle(chat_bundle, threads=1) as bundle:
        rounds = judge_rounds(bundle, bundle, Trial((), [Prompt("p", ("<5>", "<7>"))], 4, timed=False))
    assert (rounds["prompts"], rounds["equal_answers"], rounds["tokens"]) == (2, 2, 8)


def test_what_was_not_asked_for_is_not_there(bundles: tuple[Bundle, Bundle], text: Path) -> None:
    trial = Trial(read_windows(bundles[0].text, 48, text, 1), as_prompts(["<5>"]), 4, timed=False)
    figures = measure_quality(*bundles, bundles[1], trial, lambda _: None)
    assert figures.keys() == {"text", "rounds", "bytes"}
    assert figures["text"]["tokens"] == 48
