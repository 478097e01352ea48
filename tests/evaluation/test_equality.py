"""The judge of lossless answers, as a table of cases, and where answers part."""

import numpy as np
import pytest

from poss_export.config import Precision
from poss_export.evaluation.equality import Divergence, Verdict, find_divergence, first_difference, judge
from poss_export.evaluation.laws import append
from poss_export.exactness import Exactness, floating
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sampling import Noise, Sampling, draw_gap

NOTHING = Exactness(1, chain_tie=None, tree_tie=None)
CHAINS = Exactness(4, chain_tie=0, tree_tie=None)
TREES = Exactness(4, chain_tie=0, tree_tie=0)
CLOSE_TREES = Exactness(4, chain_tie=0, tree_tie=1e-4)
CLOSE, FAR = Divergence(3, 9e-5), Divergence(3, 1.1e-4)


@pytest.mark.parametrize(
    ("exactness", "chain", "close", "far"),
    [
        (floating("fp32"), True, "near-tie", "mismatch"),
        (floating("fp32"), False, "near-tie", "mismatch"),
        # No near-tie excuses what was measured to be exact.
        (TREES, True, "mismatch", "mismatch"),
        (TREES, False, "mismatch", "mismatch"),
        (CLOSE_TREES, True, "mismatch", "mismatch"),
        (CLOSE_TREES, False, "near-tie", "mismatch"),
        (CHAINS, True, "mismatch", "mismatch"),
        (CHAINS, False, "not claimed", "not claimed"),
        (NOTHING, True, "not claimed", "not claimed"),
        (NOTHING, False, "not claimed", "not claimed"),
    ],
)
def test_the_judge(exactness: Exactness, chain: bool, close: Verdict, far: Verdict) -> None:
    assert judge(None, exactness, chain) == "equal"
    assert judge(CLOSE, exactness, chain) == close
    assert judge(FAR, exactness, chain) == far
    assert judge(Divergence(0, float("nan")), exactness, chain) == far  # what is not a number is no tie


@pytest.mark.parametrize(("precision", "step"), [("fp16", 1 / 64), ("bf16", 1 / 8)])
def test_half_precision_parts_where_its_steps_do(precision: Precision, step: float) -> None:
    for gap, verdict in ((step, "near-tie"), (3 * step, "mismatch")):
        assert judge(Divergence(3, gap), floating(precision), chain=False) == verdict


@pytest.mark.parametrize(
    ("ours", "plain", "position"),
    [
        ([1, 2], [1, 2], None),
        ([], [], None),
        ([1, 9, 3], [1, 2, 3], 1),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
    ],
)
def test_where_answers_part(ours: list[int], plain: list[int], position: int | None) -> None:
    assert first_difference(ours, plain) == first_difference(tuple(ours), plain) == position


def test_divergence_measures_the_gap(bundle: Bundle) -> None:
    prompt = [5, 9]
    bundle.target.reset()
    logits = np.sort(append(bundle.target, [*prompt, 7]).logits[-1])
    found = find_divergence(bundle.target, prompt, [7, 3, 4], [7, 3 + 1, 4])
    assert found is not None
    assert found.position == 1
    assert found.gap == pytest.approx(logits[-1] - logits[-2], rel=1e-4)
    assert judge(found, floating("fp32"), chain=False) == "mismatch"
    assert find_divergence(bundle.target, prompt, [7, 3], [7, 3]) is None
    shorter = find_divergence(bundle.target, prompt, [7], [7, 3])
    assert shorter is not None
    assert shorter.position == 1


def test_a_sampled_divergence_has_the_gap_of_the_draw(bundle: Bundle) -> None:
    prompt, sampling = [5, 9], Sampling(1.0, top_p=0.9, seed=7)
    bundle.target.reset()
    logits = append(bundle.target, [*prompt, 7]).logits[-1].copy()
    gap = draw_gap(logits, sampling, Noise(7)(3, len(logits)))  # two of the prompt, one of the answer
    found = find_divergence(bundle.target, prompt, [7, 3, 4], [7, 4, 4], sampling)
    assert found is not None
    assert found.position == 1
    assert found.gap == pytest.approx(gap, abs=1e-4)
