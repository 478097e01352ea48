"""Passages are the target's own answers, and what is played on them is what real rounds were."""

from pathlib import Path

import numpy as np
import pytest

from poss_export.calibration.passages import Passage, answer, play, reread
from poss_export.calibration.record import Dialogue, Record
from poss_export.errors import InputError
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.tree import DraftTree
from tests.fixtures.sessions import sessions

PROMPT = [5, 17, 80, 3, 44, 9, 61]


@pytest.mark.parametrize("drafted", [True, False])
def test_an_answer_is_the_targets_own(drafted: bool, tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, drafter = sessions(bundle)
        words = " ".join(f"<{token}>" for token in PROMPT)
        expected = bundle.generate(words, raw=True, target_only=True, max_new_tokens=20).token_ids
        found = answer(target, drafter if drafted else None, PROMPT, 20)
        assert found.prompt == len(PROMPT)
        assert found.tokens[: len(PROMPT)].tolist() == PROMPT
        assert tuple(found.tokens[len(PROMPT) :][:20]) == expected
        assert len(found.features) == len(found.tokens) - 1
        target.reset()
        output = target.forward(DraftTree.chain(found.tokens[:-1]))
        np.testing.assert_allclose(found.features, output.features, rtol=1e-4, atol=1e-4)


def test_an_answer_ends_at_a_stop_token_and_with_the_cache(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        whole = answer(bundle.target, None, PROMPT, 999)
        assert len(whole.features) == bundle.target.capacity
        stop = int(whole.tokens[len(PROMPT) + 4])
        assert stop in answer(bundle.target, None, PROMPT, 999, (stop,)).tokens[-6:]
        assert len(answer(bundle.target, None, PROMPT, 999, (stop,)).tokens) <= len(PROMPT) + 5


def test_played_rounds_are_the_recorded_ones(tiny_bundle: Path, record: Record) -> None:
    """Trees, scores and paths, but for the last ones, which reach beyond what is known."""
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, drafter = sessions(bundle)
        accepted = 0
        for dialogue in record.dialogues:
            played = list(play(drafter, reread(target, whole(dialogue))))
            assert len(dialogue.rounds) - 6 <= len(played) <= len(dialogue.rounds)
            full = (done for done in dialogue.rounds if len(done.tree) == 9)  # not cut by the cache's end
            for ours, theirs in zip(played, full, strict=False):
                np.testing.assert_array_equal(ours.tree.tokens, theirs.tree.tokens)
                np.testing.assert_array_equal(ours.tree.parents, theirs.tree.parents)
                np.testing.assert_allclose(ours.tree.scores, theirs.tree.scores, rtol=1e-3, atol=1e-3)
                assert (ours.path, ours.bonus) == (theirs.path, theirs.bonus)
                accepted += ours.accepted
    assert accepted > 10  # or nothing was shown of paths


def whole(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue without the last rounds, whose trees the end of the cache has cut."""
    return Dialogue(dialogue.prompt, dialogue.rounds[:-1])


def test_without_a_drafter_rounds_are_steps() -> None:
    passage = Passage(2, np.array([4, 5, 6, 7, 8]), np.zeros((4, 3), np.float32))
    rounds = list(play(None, passage))
    assert [(done.tree.tokens.tolist(), done.path, done.bonus) for done in rounds] == [
        ([6], (0,), 7),
        ([7], (0,), 8),
    ]


def test_samples_must_fit_the_capacity(tiny_bundle: Path, record: Record) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        bundle.target.capacity = 40
        with pytest.raises(InputError, match="need a capacity of 48 tokens, the bundle's is 40"):
            reread(bundle.target, max(record.dialogues, key=lambda dialogue: dialogue.rows))
