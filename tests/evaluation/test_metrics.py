"""Every metric by hand."""

import pytest

from poss_export.evaluation import metrics
from tests.fixtures.answers import made

ANSWERS = [made(9, rounds=2), made(3, rounds=2), made(1, rounds=0)]


def test_tau_is_pooled_over_rounds_and_over_answers() -> None:
    assert metrics.pooled_tau(ANSWERS) == pytest.approx((8 + 2) / 4)
    assert metrics.mean_tau(ANSWERS) == pytest.approx((4 + 1) / 2)
    assert (metrics.pooled_tau(ANSWERS[2:]), metrics.mean_tau(ANSWERS[2:])) == (0, None)


def test_one_answer_has_its_own_tau() -> None:
    for answer in ANSWERS:
        assert metrics.pooled_tau([answer]) == answer.tau


def test_acceptance_is_of_all_rounds_and_alpha_of_those_that_came_so_far() -> None:
    answers = [made(9, (3, 1), rounds=4), made(9, (1, 1, 1), rounds=5)]
    assert metrics.rounds_by_depth(answers) == [9, 4, 2, 1]
    assert metrics.rounds_by_depth(answers, 1) == [9, 4]
    assert metrics.acceptance(answers) == pytest.approx([4 / 9, 2 / 9, 1 / 9])
    assert metrics.alpha(answers, 3) == pytest.approx([4 / 9, 2 / 4, 1 / 2])


def test_a_depth_that_no_round_reached() -> None:
    answers = [made(4, (1,))]
    assert metrics.alpha(answers, 3) == [0.5, 0.0, None]
    assert metrics.acceptance(answers, 3) == [0.5, 0.0, 0.0]
    assert metrics.acceptance([made(1)]) == []


def test_speed_with_and_without_prefill() -> None:
    answers = [made(9, seconds=2.0), made(3, seconds=3.0)]
    assert metrics.tokens_per_second(answers) == pytest.approx(12 / 5)
    assert metrics.decode_speed(answers) == pytest.approx((8 + 2) / (1 + 2))
    assert metrics.prefill_speed(answers, 30) == pytest.approx(30 / 2)


def test_parts_of_a_round() -> None:
    parts = metrics.round_parts([made(9, rounds=4, seconds=2.0), made(3, rounds=1, seconds=3.0)])
    assert parts == pytest.approx({"draft": 100.0, "target": 200.0, "round": 600.0, "outside": 300.0})
