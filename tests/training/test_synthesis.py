"""The target writes its own data: batched decoding equals plain decoding, and what is written survives."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from poss_export.config import TargetConfig
from poss_export.errors import InputError
from poss_export.targets.checkpoint import Target, open_target
from poss_export.targets.decoder import Decoder, causal_attend
from poss_export.training import run
from poss_export.training.decoding import BatchDecoder
from poss_export.training.dialogues import Dialogues
from poss_export.training.options import TrainOptions
from poss_export.training.run import train
from poss_export.training.synthesis import (
    answer_prompts,
    chat_prompts,
    greedy,
    invent_turns,
    join_dialogues,
)
from poss_export.training.vocabulary import check_size, choose_vocabulary, coverage


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


def test_batched_decoding_equals_plain_decoding(tiny_folder: Callable[[str], Path]) -> None:
    decoder = open_target(str(tiny_folder("qwen2"))).load_decoder()
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 90, n).tolist() for n in (3, 9, 1, 5, 12, 4, 7)]
    answers = dict(BatchDecoder(decoder, slots=3, capacity=40).run(prompts, 10, stop_ids=(), choose=greedy))
    assert sorted(answers) == list(range(7))
    for index, prompt in enumerate(prompts):
        ids = list(prompt)
        for token in answers[index]:
            attend = causal_attend(decoder.config, len(ids), torch.float32)
            assert token == int(decoder.head(decoder.hidden(torch.tensor([ids]), attend))[0, -1].argmax())
            ids.append(token)


def test_decoding_stops_at_stop_ids_and_leaves_out_prompts_without_room(
    tiny_folder: Callable[[str], Path],
) -> None:
    decoder = open_target(str(tiny_folder("llama"))).load_decoder()
    batch = BatchDecoder(decoder, slots=2, capacity=16)
    (whole,) = (tokens for _, tokens in batch.run([[5, 6, 7]], 8, (), greedy))
    (stopped,) = (tokens for _, tokens in batch.run([[5, 6, 7]], 8, (whole[2],), greedy))
    assert stopped == whole[: whole.index(whole[2]) + 1]
    assert list(batch.run([[3] * 9], 8, (), greedy)) == []


def test_invented_turns_are_distinct_and_repeatable(talkative: Target) -> None:
    decoder = talkative.load_decoder()
    turns = invent_turns(decoder, talkative.text, 30, seed=3)
    assert len(turns) >= 10
    assert len(set(turns)) == len(turns)
    assert turns == invent_turns(decoder, talkative.text, 30, seed=3)
    assert turns != invent_turns(decoder, talkative.text, 30, seed=4)


def test_a_killed_synthesis_keeps_its_answers(
    talkative: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poss_export.training.synthesis.MIN_ANSWER", 1)
    options = TrainOptions(preset="eagle", invent=30, budget=200, draft_vocab_size=64)
    train(talkative, options, tmp_path / "whole", lambda *_: None)

    def kill(activity: str, done: int, total: int, note: str) -> None:
        if activity == "answers" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(talkative, options, tmp_path / "killed", kill)
    work = tmp_path / "killed" / ".training"
    with (work / "answers.jsonl").open("a") as file:
        file.write('{"prompt": 7, "ans')  # the kill came while a line was written
    first = (work / "answers.jsonl").read_text().splitlines()[:5]
    turns = json.loads((work / "turns.json").read_text())
    asked: list[int] = []

    def count(decoder: Decoder, prompts: list[list[int]], stops: tuple[int, ...]) -> Iterator[object]:
        asked.append(len(prompts))
        return answer_prompts(decoder, prompts, stops)

    monkeypatch.setattr(run, "answer_prompts", count)
    train(talkative, options, tmp_path / "killed", lambda *_: None)
    assert asked == [len(turns) - len(first)]
    assert not work.exists()  # only a finished run lets go of it
    for made in ("dialogues.npz", "model.safetensors"):
        whole, resumed = ((tmp_path / name / made).read_bytes() for name in ("whole", "killed"))
        assert whole == resumed


def test_dialogues_join_answers_in_prompt_order_and_survive_the_disk(
    talkative: Target, tmp_path: Path
) -> None:
    prompts = chat_prompts(talkative.text, ["a", "b", "c", "d"])
    answers = {3: [7] * 30, 0: [5] * 20, 2: [6] * 3, 1: [4] * 12}
    dialogues = join_dialogues(prompts, answers)
    assert len(dialogues) == 3  # prompt 2's answer is too short
    assert [int(dialogues.ids[end - 1]) for end in dialogues.offsets[1:]] == [5, 4, 7]
    assert dialogues.answer_mask.sum() == 62
    dialogues.save(tmp_path / "d.npz")
    loaded = Dialogues.load(tmp_path / "d.npz") + dialogues
    assert np.array_equal(loaded.ids, np.tile(dialogues.ids, 2))
    assert np.array_equal(loaded.lengths, np.tile(dialogues.lengths, 2))
    with pytest.raises(InputError, match="gave 1 answers of at least 12 tokens"):
        join_dialogues(prompts, {0: [5] * 20})
    (tmp_path / "e.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="not a dialogues file"):
        Dialogues.load(tmp_path / "e.npz")


def test_vocabulary_holds_frequent_ids_and_never_reads_held_out_dialogues() -> None:
    pairs = [([1, 2], [500, 501, 502] * 10), ([1, 2], [700, 701, 702] * 10)]
    dialogues = Dialogues.from_answers(pairs, holdout=0.5)  # the second one is held out
    chosen = choose_vocabulary(dialogues, 1000, 50)
    assert len(chosen) == 50
    assert np.all(np.diff(chosen) > 0)
    assert {1, 2, 500, 501, 502} <= set(chosen.tolist())
    assert not {700, 701, 702} & set(chosen.tolist())
    assert coverage(dialogues, chosen) == 0.0
    assert choose_vocabulary(dialogues, 1000, 1000).tolist() == list(range(1000))
    with pytest.raises(InputError, match="draft vocabulary of 1001 ids: expected 1 to 1000"):
        check_size(1001, 1000)
