"""Answers of a tiny bundle: in turns."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from poss_export.evaluation.answers import answer, take_turns
from poss_export.runtime.bundle import Bundle, open_bundle


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as engines:
        yield engines


def test_answers_in_turns_are_those_made_alone(bundle: Bundle) -> None:
    prompts = [[5, 9], [7]]
    ours, plain = take_turns(bundle, prompts, 12)
    for ids, mine, other in zip(prompts, ours, plain, strict=True):
        assert mine.token_ids == other.token_ids == answer(bundle, ids, 12, target_only=True).token_ids
        assert other.rounds == len(other.token_ids) - 1
