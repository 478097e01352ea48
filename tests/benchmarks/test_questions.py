"""Benchmark prompts: what each kind of file yields."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import questions
from poss_export.errors import InputError
from poss_export.prompts import Prompt
from poss_export.text import Text, TextConfig

TOKENIZER = {
    "version": "1.0",
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {
        "type": "WordLevel",
        "vocab": {"<u>": 0, "user": 1, "a": 2, "b": 3, "c": 4},
        "unk_token": "<u>",
    },
}
TEXT = Text(
    json.dumps(TOKENIZER),
    TextConfig(stop_ids=(0,), chat_template="{{ messages[0].role }} {{ messages[0].content }}"),
)


def test_lines_with_a_prompt_and_lines_with_turns(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a b"}\n{"turns": ["c", "a"], "category": "x"}\n')
    found = questions.load(TEXT, [file], None)
    assert [q.ids for q in found] == [[1, 2, 3], [1, 4]]
    assert [q.place for q in found] == ["q.jsonl:1", "q.jsonl:2"]


def test_a_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a"}\n{"answer": "b"}\n')
    with pytest.raises(InputError, match="line 2"):
        questions.load(TEXT, [file], None)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("")
    with pytest.raises(InputError, match=r"q\.jsonl' holds no prompts"):
        questions.load(TEXT, [file], None)


def test_damaged_dialogues_are_named(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    file.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"d\.npz"):
        questions.load(TEXT, [file], None)


def test_only_held_out_dialogues_are_asked(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    np.savez(
        file,
        ids=np.array([10, 11, 12, 20, 21, 22, 23, 30], np.uint16),
        answer_mask=np.array([0, 1, 1, 0, 0, 1, 0, 0], np.uint8),
        offsets=np.array([0, 3, 7, 8]),
        validation=np.array([False, True, False]),
    )
    (question,) = questions.load(TEXT, [file], None)
    assert question.ids == [20, 21]
    assert question.place == "d.npz:1"


def test_questions_at_one_place_are_refused(tmp_path: Path) -> None:
    """What is found of a question is kept by its place: two at one place would hide each other."""
    files = [tmp_path / folder / "q.jsonl" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text('{"id": 2, "prompt": "a"}\n')
    with pytest.raises(
        InputError, match=r"1 questions stand at one place with another, the first at q.jsonl:2"
    ):
        questions.load(TEXT, files, None)
    files[0].write_text('{"id": 2, "prompt": "a"}\n{"prompt": "b"}\n')  # the second has its number
    with pytest.raises(InputError, match=r"the first at q\.jsonl:2"):
        questions.load(TEXT, files[:1], None)


def test_a_limit_spreads_evenly(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("first.jsonl", "second.jsonl")]
    for file in files:
        file.write_text('{"prompt": "a"}\n' * 10)
    found = questions.load(TEXT, files, 4)
    assert [q.place for q in found] == ["first.jsonl:1", "first.jsonl:6", "second.jsonl:1", "second.jsonl:6"]


def test_the_demo_prompts_are_readable() -> None:
    assert len(questions.load(TEXT, [questions.DEMO], None)) == 8


def test_every_turn_stands_behind_the_answers_before_it() -> None:
    text = Text(
        json.dumps(TOKENIZER),
        TextConfig(
            stop_ids=(0,), chat_template="{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        ),
    )
    asked = [
        questions.Question("q", Prompt("1", ("a", "b", "c")), [1, 2]),
        questions.Question("q", Prompt("2", ("b",)), [1, 3]),
    ]
    found = list(questions.every_turn(asked, text, lambda ids: [4] * (len(ids) // 2)))
    user, assistant = 1, 0  # no word of the tokenizer's
    second = [user, 2, assistant, 4, user, 3]
    third = [*second, assistant, 4, 4, 4, user, 4]
    assert [question.ids for question in found] == [[1, 2], second, third, [1, 3]]
    assert [question.place for question in found] == ["q:1", "q:1, turn 2", "q:1, turn 3", "q:2"]


def test_there_is_a_prompt_of_every_kind() -> None:
    found = questions.load(TEXT, [questions.DEMO.with_name("kinds.jsonl")], None)
    kinds = [question.kind for question in found]
    assert len(set(kinds)) == len(kinds) == 8
    assert [len(question.prompt.turns) for question in found if question.kind == "dialogue"] == [4]
