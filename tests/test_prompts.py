"""Prompts of a file: what a line may be, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from poss_export.errors import InputError
from poss_export.prompts import Prompt, as_prompts, read_prompts


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_lines_of_the_field_s_formats(tmp_path: Path) -> None:
    lines = (
        {"prompt": "one"},
        {"question_id": 81, "category": "writing", "turns": ["first", "second"], "reference": ["no"]},
        {"id": "mine", "turns": ["only"]},
    )
    assert read_prompts(write(tmp_path / "prompts.jsonl", *lines)) == [
        Prompt("1", ("one",)),
        Prompt("81", ("first", "second"), "writing"),
        Prompt("mine", ("only",)),
    ]


def test_texts_are_prompts_of_one_turn() -> None:
    assert as_prompts(["a", "b"]) == [Prompt("1", ("a",)), Prompt("2", ("b",))]


@pytest.mark.parametrize("line", [{}, {"turns": []}, {"turns": 3}, {"turns": "text"}, [], "text", 7])
def test_a_line_without_a_prompt_is_named(line: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError, match=r"prompts.jsonl', line 2 has no prompt; expected"):
        read_prompts(path)


@pytest.mark.parametrize("line", [{"prompt": 3}, {"turns": ["a", None]}])
def test_a_turn_that_is_no_text_is_named(line: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: the prompt is (3|None); expected a string"):
        read_prompts(write(tmp_path / "prompts.jsonl", line))


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """JSON may hold the other line ends of Unicode as they are; an editor may begin a file with a mark."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\r\n'.encode())
    assert read_prompts(path) == as_prompts(["a\u2028b\x85c", "d"])


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty; write prompts into it, or leave it out"):
        read_prompts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "missing.jsonl")
