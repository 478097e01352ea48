import numpy as np

from poss_export.runtime.planning.planner import Plan
from poss_export.runtime.round import Round
from poss_export.runtime.summary import IN_VAIN, TimedRound, summarise
from poss_export.runtime.tree import DraftTree

TREE = DraftTree.with_root(1, [2, 3, 4], [0, 0, 1], np.zeros(3))
CHAIN = DraftTree.chain([1, 2, 3])


def made(tree: DraftTree, path: tuple[int, ...], drafted: bool = True, taken: int = 9) -> TimedRound:
    return TimedRound(Round(tree, path, 5), Plan(drafted, 1.5, 10.0), min(taken, len(path)), 0.02)


def test_rounds_are_counted_by_what_they_were() -> None:
    rounds = [
        made(DraftTree.with_root(1), (0,), drafted=False),
        made(CHAIN, (0, 1), drafted=False),
        made(CHAIN, (0, 1, 2)),
        made(TREE, (0, 1, 3)),
        made(TREE, (0, 1, 3), taken=1),  # the answer ended with the first of three
    ]
    found = summarise(rounds)
    assert found.rounds == {"plain": 1, "lookup": 1, "chain": 1, "tree": 2}
    assert found.num_draft_tokens == 2 + 2 + 3 + 3
    assert found.num_accepted_draft_tokens == 1 + 2 + 2 + 1
    assert found.draft_acceptance_rate == 0.6
    assert found.acceptance_histogram == (1, 2, 2)
    assert found.mean_width == 3.0
    assert found.expected_seconds == 0.05


def test_drafts_in_vain_are_told_when_they_are_no_chance() -> None:
    rounds = [made(TREE, (0,))] * IN_VAIN
    assert not summarise(rounds[1:]).drafts_in_vain
    assert summarise(rounds).drafts_in_vain
    assert not summarise([*rounds, made(CHAIN, (0, 1))]).drafts_in_vain
    assert summarise([*rounds, made(CHAIN, (0, 1), drafted=False)]).drafts_in_vain  # that was looked up


def test_an_answer_of_the_prompts_token_alone_has_no_rounds() -> None:
    found = summarise([])
    assert (found.rounds, found.acceptance_histogram, found.expected_seconds) == ({}, (), None)
