"""The target writes its own data: what is written survives a kill, holds what it should, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from poss_export.config import TargetConfig
from poss_export.errors import InputError
from poss_export.files import lock, opened
from poss_export.targets.checkpoint import Target, open_target
from poss_export.targets.decoder import Decoder
from poss_export.training.decoding import BatchDecoder
from poss_export.training.dialogue_folder import SynthesisOptions, synthesise
from poss_export.training.dialogues import Dialogues
from poss_export.training.held_apart import HeldApart
from poss_export.training.synthesis import Writer


class Talkative(Decoder):
    """A random decoder over the embedded target's vocabulary that ends its turns now and then."""

    def head(self, features: torch.Tensor) -> torch.Tensor:
        logits = super().head(features)
        logits[..., 2] += 8.0  # <|im_end|>
        return logits


@pytest.fixture(scope="module")
def talkative() -> Target:
    embedded = open_target("smollm2-135m")
    config = TargetConfig("llama", 49152, 32, 48, 1, 2, 1, 16, 1e-5, 512, tied_embeddings=True)

    class OfTalkative(Target):
        def load_decoder(self) -> Decoder:
            torch.manual_seed(0)
            decoder = Talkative(config)
            for weight in decoder.parameters():
                torch.nn.init.normal_(weight, std=0.2)
            return decoder.requires_grad_(False)

    return OfTalkative(name="talkative", config=config, text=embedded.text, weights=dict, weight_files=())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poss_export.training.synthesis.MIN_ANSWER", 1)
    monkeypatch.setattr("poss_export.training.dialogue_folder.SLOTS", {"cpu": 8})
    monkeypatch.setattr("poss_export.training.dialogue_folder.FILLS", 3)


def writer(target: Target, *seed: int) -> Writer:
    return Writer(target.load_decoder(), target.text, 8, seed, lambda: False)


def silent(activity: str, done: int, total: int, note: str) -> None:
    assert 0 <= done <= total


def test_a_part_holds_all_kinds_and_its_seed_repeats_it(talkative: Target) -> None:
    first, again, other = (writer(talkative, *seed).write(40, sampled=False) for seed in ((3,), (3,), (4,)))
    assert first is not None
    assert again is not None
    assert other is not None
    assert set(first.kinds.tolist()) == {"invented", "topic", "problem", "passage", "followed"}
    assert np.array_equal(first.ids, again.ids)
    assert not np.array_equal(first.ids, other.ids)
    sampled = writer(talkative, 3).write(40, sampled=True)
    assert sampled is not None
    assert not np.array_equal(first.ids, sampled.ids)


def test_answers_are_the_targets_own_in_every_turn(talkative: Target) -> None:
    """A followed dialogue has two answers; each is what the target says behind all that came before it."""
    dialogues, text = writer(talkative, 3).write(40, sampled=False), talkative.text
    assert dialogues is not None
    batch = writer(talkative, 0).batch
    (index, *_) = np.flatnonzero(dialogues.kinds == "followed")
    ids = dialogues.ids[dialogues.offsets[index] : dialogues.offsets[index + 1]]
    mask = dialogues.answer_mask[dialogues.offsets[index] : dialogues.offsets[index + 1]]
    starts = np.flatnonzero(np.diff(mask.astype(int)) == 1) + 1
    assert len(starts) == 2
    for start in starts.tolist():
        ((_, answer),) = batch.run(
            [ids[:start].tolist()], 256, text.config.stop_ids, lambda x: x.max(-1).indices
        )
        assert ids[start : start + len(answer)].tolist() == answer
        assert mask[start : start + len(answer)].all()


def test_a_killed_folder_goes_on_and_ends_as_one_that_was_not(
    talkative: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SynthesisOptions(answer_tokens=600, seed=2)
    card = synthesise(talkative, tmp_path / "whole", options, silent)
    parts = sorted(path.name for path in (tmp_path / "whole").glob("part-*.npz"))
    assert len(parts) >= 2

    class Killed(Exception):
        pass

    write, calls = Writer.write, []

    def kill(self: Writer, size: int, sampled: bool) -> Dialogues | None:
        calls.append(size)
        if len(calls) == 2:
            raise Killed
        return write(self, size, sampled)

    monkeypatch.setattr(Writer, "write", kill)
    with pytest.raises(Killed):
        synthesise(talkative, tmp_path / "killed", options, silent)
    assert synthesise(talkative, tmp_path / "killed", options, silent) == card
    assert len(calls) == len(parts) + 1  # the first part was not written again
    for name in parts:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert json.loads((tmp_path / "killed" / "card.json").read_text()) == card


def test_processes_begin_a_folder_together(talkative: Target, tmp_path: Path) -> None:
    """Of two that start at once, one says whose the folder is; half a file of a killed one is nobody's."""
    (tmp_path / "origin.json.partial").write_text("{")
    options, cards = SynthesisOptions(answer_tokens=300), list[dict[str, Any]]()
    with opened(tmp_path) as descriptor:
        assert lock(descriptor)
        other = Thread(
            target=lambda: cards.append(synthesise(talkative, tmp_path, options, silent)), daemon=True
        )
        other.start()
        other.join(0.5)
        assert not (tmp_path / "origin.json").exists()  # it waits
    cards.append(synthesise(talkative, tmp_path, options, silent))
    other.join(60)
    assert len(cards) == 2
    assert max(card["answer_tokens"] for card in cards) == Dialogues.load(tmp_path).answer_mask.sum() >= 300


def test_the_card_says_how_many_parts_were_sampled(
    talkative: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poss_export.training.dialogue_folder.SAMPLED_EVERY", 2)
    card = synthesise(talkative, tmp_path, SynthesisOptions(answer_tokens=600), silent)
    assert card["sampled_parts"] == card["parts"] // 2 >= 1


def test_the_card_counts_what_training_reads(talkative: Target, tmp_path: Path) -> None:
    card = synthesise(talkative, tmp_path, SynthesisOptions(answer_tokens=600), silent)
    dialogues = Dialogues.load(tmp_path)
    assert card["answer_tokens"] == dialogues.answer_mask.sum() >= 600
    assert sum(kind["dialogues"] for kind in card["kinds"].values()) == card["dialogues"] == len(dialogues)
    assert sum(kind["answer_tokens"] for kind in card["kinds"].values()) == card["answer_tokens"]


def test_a_part_that_another_process_writes_is_left_to_it(talkative: Target, tmp_path: Path) -> None:
    options = SynthesisOptions(answer_tokens=1)
    claim = tmp_path / ".claims" / "part-0000"
    synthesise(talkative, tmp_path, options, silent)
    (tmp_path / "part-0000.npz").unlink()
    with opened(claim) as descriptor:
        assert lock(descriptor)
        synthesise(talkative, tmp_path, options, silent)
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-0001.npz"]


def test_other_targets_seeds_and_files_are_refused(
    talkative: Target, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    synthesise(talkative, tmp_path / "data", SynthesisOptions(answer_tokens=1), silent)
    with pytest.raises(InputError, match="another target, other prompts or another seed"):
        synthesise(talkative, tmp_path / "data", SynthesisOptions(answer_tokens=1, seed=1), silent)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files; give a new folder"):
        synthesise(talkative, tmp_path / "other", SynthesisOptions(answer_tokens=1), silent)
    plain = open_target(str(tiny_folder("llama")))
    with pytest.raises(InputError, match="has no chat template to write dialogues with"):
        synthesise(plain, tmp_path / "plain", SynthesisOptions(answer_tokens=1), silent)
    assert not (tmp_path / "plain").exists()
    with pytest.raises(InputError, match=r"holds no part-\*.npz"):
        Dialogues.load(tmp_path / "other")


def test_given_turns_are_answered_once(talkative: Target, tmp_path: Path) -> None:
    turns = tuple(f"What is {number}?" for number in range(30))
    card = synthesise(talkative, tmp_path, SynthesisOptions(prompts=turns), silent)
    assert card["kinds"].keys() == {"given"}
    assert card["dialogues"] == 30
    assert len(list(tmp_path.glob("part-*"))) == 2  # of 24 turns each


def test_time_that_is_over_ends_a_part_early(talkative: Target, tmp_path: Path) -> None:
    card = synthesise(talkative, tmp_path, SynthesisOptions(answer_tokens=10**9, minutes=0.02), silent)
    assert card["dialogues"] > 0


def test_no_step_is_made_once_it_is_over(talkative: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer takes minutes where steps are slow, and whoever gave the time may not wait."""
    steps, step = list[int](), BatchDecoder._step

    def count(self: BatchDecoder, last: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return step(self, last)

    monkeypatch.setattr(BatchDecoder, "_step", count)
    monkeypatch.setattr(Talkative, "head", Decoder.head)  # its turns are long
    Writer(talkative.load_decoder(), talkative.text, 8, (3,), lambda: len(steps) >= 5).write(
        40, sampled=False
    )
    assert len(steps) == 5


def test_evaluation_prompts_are_held_apart(talkative: Target, tmp_path: Path) -> None:
    long = "A robe takes two bolts of blue fiber and half that much white fiber; how many bolts in total?"
    apart = HeldApart([long, "Who are you?", "..."])
    assert apart.asked("Hi! A ROBE takes two bolts of blue fiber, and half that much white: fiber. Right?")
    assert apart.asked("who are  you")
    assert not apart.asked("A robe takes two bolts of blue fiber and half of that in white.")
    turns = ("What is it?", "Tell me: who are you?", "Where is it?")
    options = SynthesisOptions(prompts=turns, held_apart=("Who are you?",))
    assert synthesise(talkative, tmp_path, options, silent)["dialogues"] == 2


def test_a_folder_gives_each_dialogue_once(talkative: Target, tmp_path: Path) -> None:
    dialogues = writer(talkative, 3).write(40, sampled=False)
    assert dialogues is not None
    dialogues.save(tmp_path / "part-0000.npz")
    once = Dialogues.load(tmp_path)
    dialogues.save(tmp_path / "part-0001.npz")
    assert np.array_equal(Dialogues.load(tmp_path).ids, once.ids)
    assert len(Dialogues.load(tmp_path / "part-0001.npz")) == len(dialogues)
