"""Targets invent prompts in the user's place, where they have a chat template."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.calibration.invented_prompts import invent_prompts
from poss_export.errors import InputError
from poss_export.manifest import read_manifest
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.tree import DraftTree
from tests.fixtures.sessions import sessions


def test_targets_invent_prompts(chat_bundle: Path) -> None:
    with open_bundle(chat_bundle, threads=1) as bundle:
        prompts = invent_prompts(bundle, 6, 0)
        assert prompts == invent_prompts(bundle, 6, 0) != invent_prompts(bundle, 6, 1)
        assert len(set(prompts)) == 6
        assert all(0 < len(bundle.encode(prompt)) <= 3 + 22 for prompt in prompts)  # half of 48 - 3
        assert bundle.text.encode_user_opening() == [1]


def test_prompts_are_invented_in_the_user_s_place(chat_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the opening of a user's turn, not of the assistant's answer."""
    with open_bundle(chat_bundle, threads=1) as bundle:
        target, _ = sessions(bundle)
        forward, seen = target.forward, list[list[int]]()

        def watch(tree: DraftTree, *others: Any, **named: Any) -> Any:
            seen.append(tree.tokens.tolist())
            return forward(tree, *others, **named)

        monkeypatch.setattr(target, "forward", watch)
        invent_prompts(bundle, 1, 0)
    assert seen[0] == [1]


def test_inventing_needs_a_chat_template(tiny_bundle: Path, changed: Callable[..., Path]) -> None:
    with (
        open_bundle(tiny_bundle, threads=1) as bundle,
        pytest.raises(InputError, match="has no chat template to invent prompts with: give prompts"),
    ):
        invent_prompts(bundle, 4, 0)
    text = replace(read_manifest(tiny_bundle).text, chat_template="<1> " * 47)
    with (
        open_bundle(changed(text=text), threads=1) as bundle,
        pytest.raises(InputError, match="changes what the user says; give prompts"),
    ):
        invent_prompts(bundle, 4, 0)
