"""Batched decoding equals plain decoding; dialogues and draft vocabularies hold what they should."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from poss_export.errors import InputError
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend
from poss_export.training.decoding import BatchDecoder, _ended
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import BATCH_TOKENS
from poss_export.training.synthesis import greedy
from poss_export.training.vocabulary import check_size, choose_vocabulary, coverage


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gemma3", "windows", "granite"])
def test_batched_decoding_equals_plain_decoding(
    tiny_folder: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 20)  # of prompts that are read together
    decoder = open_target(str(tiny_folder(name))).load_decoder()
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


def test_dialogues_survive_the_disk(tmp_path: Path) -> None:
    pairs = [([1, 2], [5] * 20), ([3], [4] * 12), ([6, 6], [7] * 30)]
    dialogues = Dialogues.from_answers(pairs, holdout=0.5)
    assert [int(dialogues.ids[end - 1]) for end in dialogues.offsets[1:]] == [5, 4, 7]
    assert dialogues.answer_mask.sum() == 62
    dialogues.save(tmp_path / "d.npz")
    loaded = Dialogues.load(tmp_path / "d.npz") + dialogues
    assert np.array_equal(loaded.ids, np.tile(dialogues.ids, 2))
    assert np.array_equal(loaded.lengths, np.tile(dialogues.lengths, 2))
    (tmp_path / "e.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="not a dialogues file"):
        Dialogues.load(tmp_path / "e.npz")


@pytest.mark.parametrize("count", range(1, 49))
def test_an_answer_goes_on_where_it_has_not_said_its_last_tokens_before(count: int) -> None:
    assert not _ended(list(range(count)), 100, ())


def test_an_answer_ends_where_it_says_again_what_it_said() -> None:
    said = list(range(40))
    assert not _ended(said, 100, ())
    assert not _ended([*said, *said[:16]], 100, ())
    assert _ended([*said, *said[:24]], 100, ())
    assert _ended([5] * 32, 100, ())


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
