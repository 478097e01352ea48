"""Real rounds are noted as they went, of every turn; what cannot be recorded is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.calibration.record import Record
from poss_export.calibration.recording import open_to_record, record_prompts, record_rounds
from poss_export.errors import BackendError, InputError
from poss_export.manifest import read_manifest
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import open_bundle
from poss_export.text import Text, user_says

PROMPT = [5, 17, 80, 3, 44, 9, 61]


def test_a_record_holds_the_answers(record: Record, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert manifest.drafter is not None
    assert (record.target_sha256, record.drafter_sha256) == (manifest.target.sha256, manifest.drafter.sha256)
    assert (record.tree, record.precision) == (manifest.drafter.tree, "fp32")
    assert record.versions.keys() == {"poss-export", "python", "onnxruntime", "numpy"}
    accepted = [item.path for item in record.rounds if len(item.path) > 1]
    assert (0, 2) in accepted  # or the tests of replay would never move a cache row
    with open_bundle(tiny_bundle, threads=1) as bundle:
        for dialogue in record.dialogues[:4]:
            prompt = " ".join(f"<{i}>" for i in dialogue.prompt)
            answer = bundle.generate(prompt, raw=True, target_only=True, max_new_tokens=99).token_ids
            emitted = [int(dialogue.rounds[0].tree.tokens[0])]
            for item, following in zip(dialogue.rounds, [*dialogue.rounds[1:], None], strict=True):
                emitted += item.tree.tokens[list(item.path[1:])].tolist()
                emitted += [int(following.tree.tokens[0])] if following else []
            assert emitted == list(answer[: len(emitted)])
            assert len(emitted) >= len(answer) - 1


def test_answers_end_at_their_length(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        made = record_rounds(bundle, [PROMPT, PROMPT], 6)
        assert [1 + sum(len(r.path) for r in d.rounds) for d in made.dialogues] == [6, 6]
        assert made.tokens == 12
        assert made.tau == pytest.approx(10 / len(made.rounds))
        assert record_rounds(bundle, [PROMPT], 1).tau == 0.0  # prefill gives the only token


def test_a_stop_token_ends_an_answer(record: Record, tiny_bundle: Path) -> None:
    stop = int(record.dialogues[0].rounds[3].tree.tokens[0])
    with open_bundle(tiny_bundle, threads=1) as bundle:
        text = replace(bundle.manifest.text, stop_ids=(stop,))
        bundle.text = Text(bundle.text.tokenizer_json, text)
        (dialogue,) = record_rounds(bundle, [record.dialogues[0].prompt.tolist()], 99).dialogues
    roots = [int(item.tree.tokens[0]) for item in record.dialogues[0].rounds]
    assert len(dialogue.rounds) == roots.index(stop)


def test_every_turn_is_a_dialogue(chat_bundle: Path) -> None:
    """Its prompt is all that was said before, answers and template included."""
    prompts = [Prompt("a", ("<5> <6>", "<7>")), Prompt("b", ("<9>",))]
    told = list[tuple[Any, ...]]()
    with open_bundle(chat_bundle, threads=1) as bundle:
        made = record_prompts(bundle, prompts, 6, progress=lambda *now: told.append(now[:3]))
        one, two = bundle.converse(prompts[0], max_new_tokens=6)
        behind = [user_says("<5> <6>"), {"role": "assistant", "content": one.text}, user_says("<7>")]
        expected = [bundle.encode("<5> <6>"), bundle.encode(behind), bundle.encode("<9>")]
    assert [dialogue.prompt.tolist() for dialogue in made.dialogues] == expected
    for dialogue, answer in zip(made.dialogues, (one, two), strict=False):
        emitted = [dialogue.rounds[0].tree.tokens[0], *np.concatenate([r.tokens for r in dialogue.rounds])]
        assert tuple(emitted[:6]) == answer.token_ids
    assert told == [("recording", 1, 2), ("recording", 2, 2)]


def test_without_a_drafter_trees_are_roots(changed: Callable[..., Path]) -> None:
    with open_bundle(changed(drafter=None), threads=1) as bundle:
        made = record_rounds(bundle, [PROMPT], 5)
        assert (made.drafter_name, made.drafter_sha256, made.tree) == (None, None, None)
        assert [(item.tree.tokens.size, item.path) for item in made.rounds] == [(1, (0,))] * 4


def test_what_cannot_be_recorded_is_refused(tiny_bundle: Path, changed: Callable[..., Path]) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        for prompts, length, message in (
            ([], 5, "no prompts to record"),
            ([PROMPT, []], 5, "the prompt is empty"),
            ([PROMPT, [1] * 49], 5, "the prompt has 49 tokens, the bundle's capacity is 48"),
            ([PROMPT], 0, "max_new_tokens is 0; it must be at least 1"),
        ):
            with pytest.raises(InputError, match=message):
                record_rounds(bundle, prompts, length)
        assert bundle.target.length() == 0  # all prompts are checked before the first is read
    with pytest.raises(BackendError, match="is in bf16, which ONNX Runtime does not run here"):
        open_to_record(changed(precision="bf16"))
