"""Plans over fake sessions: whatever is chosen, the output is the target's own; and what is chosen pays."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from poss_export.acceptance import AcceptanceCurves
from poss_export.costs import Costs
from poss_export.runtime.loop import speculate
from poss_export.runtime.planning.candidates import Candidates
from poss_export.runtime.planning.chances import Calibration, DraftChances
from poss_export.runtime.planning.habit import Habit
from poss_export.runtime.planning.lookup import Lookup
from poss_export.runtime.planning.planner import (
    ADAPTIVE,
    AdaptivePlanner,
    Asked,
    Plan,
    Planning,
    _choose,
    propose_together,
)
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.verify import verifier

VOCAB = 5
WIDTHS = (1, 2, 4, 8, 16)
FLAT = Costs({}, (64,), WIDTHS, ((10.0, 10.5, 11.0, 12.0, 14.0),), (1,), (2.0,))
STEEP = replace(FLAT, rounds=((10.0, 20.0, 40.0, 80.0, 160.0),))
# Without one of them, and with all.
PLANNINGS = [ADAPTIVE, *(replace(ADAPTIVE, **{field.name: False}) for field in fields(Planning))]

Made = list[tuple[Round, Plan | None]]


@pytest.fixture
def calibration(fitted: AcceptanceCurves) -> Calibration:
    return Calibration(fitted)


def table(seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 1.2, (VOCAB, VOCAB, VOCAB)).astype(np.float32)


def rounds_of(target: Any, drafter: Any, planner: AdaptivePlanner, sampling: Sampling = GREEDY) -> Made:
    sequence = Sequence(np.array([1, 2, 3]), verifier(sampling), planner=planner)
    return [(done, planner.plan) for done in speculate(target, drafter, sequence, chunk=4)]


def tokens_of(made: Made) -> list[int]:
    return list(chain.from_iterable(done.tokens.tolist() for done, _ in made))


def plain(fake_target: Any, seed: int, sampling: Sampling = GREEDY, rows: int = 60) -> list[int]:
    sequence = Sequence(np.array([1, 2, 3]), verifier(sampling))
    rounds: Iterator[Round] = speculate(fake_target(table(seed), rows), None, sequence, chunk=4)
    return list(chain.from_iterable(done.tokens.tolist() for done in rounds))


@pytest.mark.parametrize("planning", PLANNINGS)
@pytest.mark.parametrize("chains", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=1)], ids=["greedy", "sampled"])
def test_whatever_is_planned_the_tokens_are_the_targets_own(
    fake_target: Any,
    fake_drafter: Any,
    trees: Any,
    calibration: Calibration,
    planning: Planning,
    chains: bool,
    sampling: Sampling,
) -> None:
    """To the last row of the cache; the fake drafter checks that it is shown each row once, in order."""
    for seed in range(6):
        for costs in (FLAT, STEEP):
            planner = AdaptivePlanner(
                costs, DraftChances(calibration), Lookup(), chains=chains, planning=planning
            )
            drafter = fake_drafter(trees(VOCAB, 9, seed), 60)
            made = rounds_of(fake_target(table(seed), 60), drafter, planner, sampling)
            assert tokens_of(made) == plain(fake_target, seed, sampling)
            if chains:
                assert all(done.tree.is_chain for done, _ in made)


def know(answer: list[int], target: Any, depth: int) -> Callable[[], tuple[list[int], list[int]]]:
    """Return a drafter's trees that are the answer itself, in chains of `depth`."""

    def grow() -> tuple[list[int], list[int]]:
        known = answer[target.length() - 2 :][:depth]
        return known + [0] * (depth - len(known)), list(range(depth))

    return grow


def test_a_bundle_without_a_drafter_speculates_by_lookup(fake_target: Any) -> None:
    planner = AdaptivePlanner(FLAT, None, Lookup())
    made = rounds_of(fake_target(table(3), 60), None, planner)
    assert tokens_of(made) == plain(fake_target, 3)
    assert not any(plan.drafted for _, plan in made if plan)
    assert len(made) < 30  # 58 tokens: a table of the last two repeats itself


def test_nothing_is_verified_that_costs_more_than_it_gives(
    fake_target: Any, fake_drafter: Any, trees: Any, calibration: Calibration
) -> None:
    planner = AdaptivePlanner(STEEP, DraftChances(calibration), Lookup(), planning=Planning(lookup=False))
    made = rounds_of(fake_target(table(1), 60), fake_drafter(trees(VOCAB, 9, 1), 60), planner)
    assert all(len(done.tree) == 1 for done, _ in made)
    assert sum(plan.drafted for _, plan in made if plan) < 12  # drafts were given up, but for trials


def test_a_good_drafter_is_used_and_its_trees_are_wide_where_rows_are_cheap(
    fake_target: Any, fake_drafter: Any, calibration: Calibration
) -> None:
    answer = plain(fake_target, 2)
    target = fake_target(table(2), 60)
    planner = AdaptivePlanner(FLAT, DraftChances(calibration), Lookup(), planning=Planning(lookup=False))
    made = rounds_of(target, fake_drafter(know(answer, target, 4), 60), planner)
    assert tokens_of(made) == answer
    assert all(plan.drafted for _, plan in made[1:] if plan)
    assert max(len(done.tree) for done, _ in made) == 5


def test_plans_repeat(fake_target: Any, fake_drafter: Any, trees: Any, calibration: Calibration) -> None:
    def run() -> list[tuple[list[int], Plan | None]]:
        planner = AdaptivePlanner(FLAT, DraftChances(calibration), Lookup())
        made = rounds_of(fake_target(table(4), 60), fake_drafter(trees(VOCAB, 9, 4), 60), planner)
        return [(done.tree.tokens.tolist(), plan) for done, plan in made]

    assert run() == run()


def test_a_plan_says_what_it_costs(
    fake_target: Any, fake_drafter: Any, trees: Any, calibration: Calibration
) -> None:
    planner = AdaptivePlanner(FLAT, DraftChances(calibration), Lookup())
    made = rounds_of(fake_target(table(5), 60), fake_drafter(trees(VOCAB, 9, 5), 60), planner)
    for done, plan in made[1:]:
        assert plan is not None
        assert plan.milliseconds == FLAT.by_width(0)[len(done.tree)] + 2.0 * plan.drafted
        assert 1.0 <= plan.tokens <= len(done.tree)


@pytest.mark.parametrize(("fills_up", "nodes"), [(False, [[0, 1, 2], [0]]), (True, [[0, 1], [0, 1]])])
def test_where_all_are_filled_up_to_the_widest_each_takes_as_many(
    fills_up: bool, nodes: list[list[int]]
) -> None:
    planner: Any = SimpleNamespace(order=lambda found: range(len(found)), planning=ADAPTIVE)
    found = []
    for chances in ([0.9, 0.8], [0.5, 0.1]):
        found.append(Candidates(3))
        found[-1].graft(0, [1, 2], [1.0, 1.0])
        found[-1].chances[1:] = chances
    asked = [Asked(cast(Sequence, None), planner, None, 9)] * 2
    chosen = _choose(asked, found, [0, 0, 10, 13, 16, 19, 22], fills_up=fills_up)
    assert chosen.nodes == nodes
    assert chosen.milliseconds == 16
    assert chosen.tokens == pytest.approx(3.7 if not fills_up else 3.4)


def test_a_trial_drafts_for_one_and_judges_for_all() -> None:
    """For the one that has least to catch up on; where it pays, all are drafted for from then on."""

    def drafted(*_: Any) -> Candidates:
        found = Candidates(3)
        found.graft(0, [1], [0.9])
        return found

    planner: Any = SimpleNamespace(
        looked_up=lambda one: Candidates(one.root),
        drafted=drafted,
        order=lambda found: range(len(found)),
        can_draft=True,
        planning=ADAPTIVE,
    )
    calls = list[list[int]]()

    def propose_all(rows: list[int]) -> list[int]:
        calls.append(rows)
        return rows

    drafter: Any = SimpleNamespace(propose_all=propose_all)
    asked = []
    for rows in (9, 2, 30):
        one: Any = SimpleNamespace(root=3, unread_rows=rows, last_unread=lambda _, rows=rows: rows)
        asked.append(Asked(one, planner, drafter, 9))
    habit, costs = Habit(hopes=False), [0.0, *np.linspace(10, 11, 8).tolist()]
    trees = propose_together(asked, costs, lambda _: 0.1, habit)
    assert [len(tree) for tree in trees] == [1, 2, 1]
    propose_together(asked, costs, lambda _: 0.1, habit)
    assert calls == [[2], [9, 2, 30]]


@pytest.mark.parametrize("claimed", [0.3, 0.9])
def test_a_drafter_that_lies_costs_little(
    fake_target: Any, fake_drafter: Any, calibration: Calibration, claimed: float
) -> None:
    """Its tokens are never right, whatever it and its calibration say: found out within some rounds."""
    calibration.table = [[1.0] * 257, *[[claimed**depth] * 257 for depth in range(1, 5)]]
    costs = Costs({}, (64,), (1, 8, 16), ((30.0, 43.0, 52.0),), (1,), (7.0,))
    planner = AdaptivePlanner(costs, DraftChances(calibration), Lookup(), planning=Planning(lookup=False))
    answer, target = plain(fake_target, 6, rows=260), fake_target(table(6), 260)

    def grow() -> tuple[list[int], list[int]]:
        right = answer[min(target.length() - 2, len(answer) - 1)]
        return [(right + 1) % VOCAB] * 4, list(range(4))

    made = rounds_of(target, fake_drafter(grow, 260), planner)
    spent = sum(plan.milliseconds for _, plan in made[1:] if plan)
    assert tokens_of(made) == answer
    assert 30.0 * (len(answer) - 1) / spent > 0.95
