from itertools import pairwise

import pytest

from poss_export.runtime.planning.habit import Habit


def rounds(worth: float, count: int, otherwise: float = 1.0, habit: Habit | None = None) -> list[bool]:
    """Return in which rounds was drafted, where each draft is worth the same."""
    habit, drafted = habit or Habit(), []
    for _ in range(count):
        drafted.append(habit.drafts(otherwise))
        if drafted[-1]:
            habit.drafted(worth, otherwise)
        else:
            habit.skipped()
    return drafted


def test_what_pays_is_kept() -> None:
    assert all(rounds(1.3, 100))


def test_without_hope_the_first_trial_decides() -> None:
    habit = Habit(hopes=False)
    assert habit.tries
    assert all(rounds(1.3, 50, habit=habit))
    assert rounds(0.8, 33, habit=Habit(hopes=False)) == [True, *[False] * 32]


def test_what_does_not_pay_is_left_and_tried_ever_more_seldom() -> None:
    drafted = rounds(0.8, 400)
    first = drafted.index(False)
    assert first < 8
    trials = [number for number in range(first, 400) if drafted[number]]
    assert [b - a for a, b in pairwise([first - 1, *trials])] == [17, 33, 65, 129, 129]


def test_the_first_trial_that_pays_ends_that() -> None:
    habit = Habit()
    rounds(0.8, 400, habit=habit)
    drafted = rounds(1.3, 160, habit=habit)
    assert all(drafted[drafted.index(True) :])


@pytest.mark.parametrize("worth", [0.98, 1.02])
def test_small_changes_change_nothing(worth: float) -> None:
    """What is left or taken up again must differ from a plain step by more than noise."""
    habit = Habit()
    assert all(rounds(worth, 50, habit=habit))
    rounds(0.5, 20, habit=habit)
    assert sum(rounds(worth, 100, habit=habit)) < 5


def test_what_is_rarely_worth_it_beside_a_lookup_is_still_tried() -> None:
    """However good lookups are, drafting may have become better."""
    drafted = rounds(1.1, 400, otherwise=1.7)
    assert 2 < sum(drafted) < 10


def test_a_round_that_is_worth_more_without_is_made_without() -> None:
    habit = Habit()
    habit.drafted(1.3, 1.0)
    assert not habit.drafts(2.0)
    assert habit.drafts(1.0)
