"""Acceptance calibration: the fit against its definition, figures by hand, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from poss_export.acceptance import AcceptanceCurves, DepthCurve, Errors
from poss_export.calibration.acceptance_fit import fit_isotonic, from_record, reliability, wilson
from poss_export.calibration.record import Record
from poss_export.errors import InputError
from poss_export.runtime.round import Round
from poss_export.runtime.tree import DraftTree
from tests.fixtures.acceptance import chains, made_record


def one_node(probability: float, accepted: bool) -> Round:
    scores = np.log([1, probability]).astype(np.float32)
    tree = DraftTree(np.array([3, 4]), np.array([0, 0]), scores)
    return Round(tree, (0, 1) if accepted else (0,), bonus=3)


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_the_isotonic_one(seed: int) -> None:
    """By its definition: the highest of the lowest means of the intervals around each point."""
    rng = np.random.default_rng(seed)
    x, y = rng.permutation(40) / 40, rng.random(40)
    knots, chances = fit_isotonic(x, y, fewest=1)
    ordered = y[np.argsort(x)]
    expected = [
        max(min(ordered[a : b + 1].mean() for b in range(i, 40)) for a in range(i + 1)) for i in range(40)
    ]
    np.testing.assert_allclose(np.unique(np.round(chances, 9)), np.unique(np.round(expected, 9)))
    assert (np.diff(knots) > 0).all()
    assert (np.diff(chances) > 0).all()


def test_pools_hold_their_means() -> None:
    x = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    knots, chances = fit_isotonic(x, np.array([0.0, 1.0, 0.0, 1.0, 1.0]), fewest=1)
    np.testing.assert_allclose(knots, [0.1, 0.25, 0.45])  # ones at the end have equal means: one pool
    np.testing.assert_allclose(chances, [0, 0.5, 1])


def test_equal_scores_have_one_chance() -> None:
    knots, chances = fit_isotonic(np.full(60, 0.5), np.arange(60) / 60)
    assert (knots.tolist(), len(chances)) == ([0.5], 1)
    assert chances[0] == pytest.approx(59 / 120)


def test_few_points_make_no_certainty() -> None:
    x = np.arange(40) / 40
    _, chances = fit_isotonic(x, (x > 0.96).astype(float))  # only the last one is accepted
    assert chances.tolist() == pytest.approx([0, 1 / 20])


def test_the_truth_is_found(fitted: AcceptanceCurves) -> None:
    assert [curve.nodes for curve in fitted.depths] == [2000, 2000]
    for p in (0.2, 0.5, 0.8):
        assert fitted.chance(1, np.log(p)) == pytest.approx(p / 2, abs=0.06)
    for p in (0.2, 0.5):
        assert fitted.chance(2, np.log(p)) == pytest.approx(p / 4, abs=0.06)
    every: list[AcceptanceCurves | DepthCurve] = [fitted, *fitted.depths]
    for figures in every:
        assert figures.after.ece < 0.03 < 0.1 < figures.before.ece
        assert figures.after.brier < figures.before.brier - 0.02


def test_a_drafter_that_is_right_stays_right() -> None:
    acceptance = from_record(chains(lambda p: p, seed=1))
    assert acceptance.before.ece < 0.02
    assert acceptance.after.ece < 0.03
    assert acceptance.after.brier == pytest.approx(acceptance.before.brier, abs=0.005)


def test_held_out_dialogues_are_not_fitted() -> None:
    """Every fourth dialogue accepts, no other does: fits on the others say 1/3 to those, and 0 to these.

    Seen dialogues would say 1/4 to all, with a Brier score of 3/16.
    """
    rounds = [[one_node(0.5, number % 4 == 0)] * 10 for number in range(16)]
    acceptance = from_record(made_record(rounds))
    assert acceptance.chance(1, np.log(0.5)) == pytest.approx(1 / 4)
    assert acceptance.before.brier == pytest.approx(1 / 4)
    assert acceptance.after.brier == pytest.approx((1 * 1 + 3 * (1 / 3) ** 2) / 4)


def test_figures_by_hand() -> None:
    rounds = [[one_node(0.2, True)] * 5 + [one_node(0.8, True)] * 5 for _ in range(8)]
    (curve,) = from_record(made_record(rounds)).depths
    assert [item.count for item in curve.bins] == [20] * 4
    assert [item.predicted for item in curve.bins] == pytest.approx([0.2, 0.2, 0.8, 0.8])
    assert [item.accepted for item in curve.bins] == [1.0] * 4
    assert curve.before.ece == pytest.approx((0.8 + 0.2) / 2)
    assert curve.before.brier == pytest.approx((0.64 + 0.04) / 2)
    assert curve.after == Errors(0.0, 0.0)


def test_intervals_are_wilson_s() -> None:
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    for count in range(1, 300):  # plots need shares within their intervals, also at 0 and 1
        for successes in (0, count // 3, count):
            low, high = wilson(successes, count)
            assert 0 <= low <= successes / count <= high <= 1
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_bins_have_equal_counts_and_not_too_few() -> None:
    predicted = np.random.default_rng(0).random(205)
    bins = reliability(predicted, np.round(predicted))
    assert [item.count for item in bins] == [21] * 5 + [20] * 5
    assert [item.predicted for item in bins] == sorted(item.predicted for item in bins)
    assert [item.count for item in reliability(predicted[:59], np.round(predicted[:59]))] == [30, 29]
    assert [item.count for item in reliability(predicted[:3], np.round(predicted[:3]))] == [3]


def test_a_real_record_is_fitted(record: Record) -> None:
    acceptance = from_record(record)
    assert (acceptance.target_sha256, acceptance.drafter_sha256) == (record.target_sha256, "0" * 64)
    assert (acceptance.tree, acceptance.record_sha256) == (record.tree, record.sha256)
    assert (acceptance.dialogues, acceptance.rounds) == (19, len(record.rounds))
    assert sum(curve.nodes for curve in acceptance.depths) == sum(len(r.tree) - 1 for r in record.rounds)
    accepted = sum(item.accepted * item.count for item in acceptance.depths[0].bins)
    assert accepted == pytest.approx(sum(len(item.path) > 1 for item in record.rounds))


def test_records_without_drafts_are_refused(record: Record) -> None:
    with pytest.raises(InputError, match="recorded without a drafter"):
        from_record(replace(record, drafter_name=None, drafter_sha256=None, tree=None))
    with pytest.raises(InputError, match=r"fitted to 7 dialogues and .* rounds, expected at least 8 and 64"):
        from_record(replace(record, dialogues=record.dialogues[:7]))
