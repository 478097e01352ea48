"""Every fresh session of a bundle accepts what the first one did."""

from pathlib import Path

import pytest

from poss_export.evaluation.answers import answer
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.planning.planner import ADAPTIVE, Planning

PROMPTS = [[5, 9], [7], [8], [9], [10], [11]]


def accepted(folder: Path, planning: Planning | None) -> list[tuple[int, ...]]:
    """Return how many tokens each round emitted, of each answer of a bundle that is opened for them."""
    with open_bundle(folder, threads=1) as bundle:
        answers = [answer(bundle, ids, 40, target_only=False, planning=planning) for ids in PROMPTS]
    return [made.accept_lengths for made in answers]


@pytest.mark.parametrize("sessions", [5, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("planning", [None, ADAPTIVE])
def test_fresh_sessions_accept_alike(sessions: int, planning: Planning | None, planned_bundle: Path) -> None:
    first, *others = [accepted(planned_bundle, planning) for _ in range(sessions)]
    assert max(max(lengths) for lengths in first) > 1
    assert others == [first] * (sessions - 1)
