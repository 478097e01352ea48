from pathlib import Path

import pytest

from poss_export.errors import PromptError
from poss_export.runtime.answers import follow
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.scheduler import Done, Piece, Scheduler
from poss_export.text import user_says

SAMPLING = Sampling(1.0, seed=3)


def test_a_list_of_prompts(chat_bundle: Path) -> None:
    with open_bundle(chat_bundle, threads=1) as bundle:
        prompts = ["<5> <9>", "<7>", "<11> <12>"]
        alone = [bundle.generate(prompt, max_new_tokens=9, sampling=SAMPLING) for prompt in prompts]
        answers = bundle.generate(prompts, max_new_tokens=9, sampling=SAMPLING)
        assert [a.token_ids for a in answers] == [a.token_ids for a in alone]
        assert [a.prompt for a in answers] == prompts
        messages = [[user_says(prompt)] for prompt in prompts]
        dialogues = bundle.generate(messages, max_new_tokens=9, sampling=SAMPLING)
        assert [a.token_ids for a in dialogues] == [a.token_ids for a in alone]
        (one,) = bundle.generate(["<5> <9>"], max_new_tokens=9, sampling=SAMPLING, target_only=True)
        assert one.token_ids == alone[0].token_ids
        assert one.rounds == 8


def test_one_of_the_prompts_cannot_be_answered(chat_bundle: Path) -> None:
    with open_bundle(chat_bundle, threads=1) as bundle:
        for bad in ("", "<5> " * 60):
            with pytest.raises(PromptError):
                bundle.generate(["<5>", bad, "<7>"], max_new_tokens=9)
        assert bundle.generate("<5>", max_new_tokens=3).tokens == 3


def test_following_an_answer(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle, Scheduler(bundle, queue=1) as scheduler:
        *pieces, end = follow(scheduler, [5, 9], max_new_tokens=9)
        assert isinstance(end, Done)
        assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == end.generation.text
        for _ in range(3):
            events = follow(scheduler, [5, 9], max_new_tokens=40)
            next(events)
            events.close()
        *_, again = follow(scheduler, [5, 9], max_new_tokens=9)
        assert isinstance(again, Done)
        assert again.generation.text == end.generation.text
