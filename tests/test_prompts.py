"""Prompts of a file: what a line may be, and what is refused."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from poss_export.errors import InputError
from poss_export.prompts import Prompt, as_prompts, read_prompts, with_system


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


@pytest.mark.parametrize("line", [{}, [], "text", 7, None, {"text": "a"}])
def test_a_line_without_a_prompt_is_named(line: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError, match=r"prompts.jsonl', line 2 has no prompt; expected"):
        read_prompts(path)


@pytest.mark.parametrize("turns", [[], 3, "text", None, {"a": "b"}])
def test_turns_that_are_no_list_are_named(turns: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: turns is .*; expected a list of strings"):
        read_prompts(write(tmp_path / "prompts.jsonl", {"turns": turns}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": 3}, "the prompt is 3; expected a string"),
        ({"turns": ["a", None]}, "the prompt is None; expected a string"),
        ({"prompt": "a\ud800"}, r"the prompt holds '\\ud800', half of a character"),
        ({"prompt": "a", "category": 7}, "the category is 7; expected a string"),
        ({"prompt": "a", "id": {}}, r"the id is \{\}; expected a string or a number"),
    ],
)
def test_a_value_that_is_no_text_is_named(line: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"line 1: {message}"):
        read_prompts(write(tmp_path / "prompts.jsonl", line))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\r{"prompt": "b"}', "line 1 is not JSON"),
        (b'{"prompt": "a"}{"prompt": "b"}', "line 1 is not JSON"),
        (b'{"prompt": "a"}\n{"prompt": "b"\n}', "line 2 is not JSON"),
        ('{"prompt": "é"}'.encode("latin-1"), "is not UTF-8"),
        ('{"prompt": "é"}'.encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "line 1 is not JSON .*nested"),
        (b'{"id": ' + b"9" * 5000 + b', "prompt": "a"}', "line 1 is not JSON"),
        (b"\x1f\x8b\x08\x00", "is not UTF-8"),
    ],
)
def test_what_is_no_json_lines(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_blank_lines_are_no_prompts_and_count(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"prompt": "a"}\n \r\n\n{"prompt": "b"}\n\n', encoding="utf-8")
    assert [(p.id, p.turns, p.source) for p in read_prompts(path)] == [
        ("2", ("a",), f"{str(path)!r}, line 2"),
        ("5", ("b",), f"{str(path)!r}, line 5"),
    ]
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no prompts"):
        read_prompts(path)


def test_files_that_were_joined(tmp_path: Path) -> None:
    """Each may begin with a mark of its own."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('\ufeff{"prompt": "a"}\n\ufeff{"prompt": "\ufeffb"}'.encode())
    assert read_prompts(path) == as_prompts(["a", "\ufeffb"])


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n7'), "ascii"))
    with pytest.raises(InputError, match="standard input, line 2 has no prompt"):
        read_prompts(Path("-"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('{"prompt": "ä"}'.encode()), "ascii"))
    assert read_prompts(Path("-")) == as_prompts(["ä"])


def test_bytes_of_the_command_line_that_are_no_text() -> None:
    """Python gives them as lone surrogates."""
    with pytest.raises(InputError, match=r"prompt 2: the prompt holds '\\udcff', half of a character"):
        as_prompts(["a", b"\xff".decode("utf-8", "surrogateescape")])


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """JSON may hold the other line ends of Unicode as they are; an editor may begin a file with a mark."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\r\n'.encode())
    assert read_prompts(path) == as_prompts(["a\u2028b\x85c", "d"])


def test_messages_before_the_users_last_one(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    last = {"role": "user", "content": "And?"}
    lines = (
        {"id": "a", "messages": [system, *said, last]},
        {"messages": [last]},
        {"prompt": "p", "messages": 3},
    )
    first, second, third = read_prompts(write(tmp_path / "prompts.jsonl", *lines))
    assert first == Prompt("a", ("And?",), before=(system, *said))
    assert second == Prompt("2", ("And?",))
    assert third == Prompt("3", ("p",))
    assert with_system(second, "Be brief.").before == (system,)
    assert with_system(second, "").before == ({"role": "system", "content": ""},)
    with pytest.raises(InputError, match="line 1 has a system message of its own; leave one out"):
        with_system(first, "Be long.")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], r"messages is \[\]; expected a list of objects"),
        ("text", "messages is 'text'; expected a list"),
        ([{"role": "user", "content": "a"}, "text"], "a message is 'text'; expected a role and content"),
        ([{"content": "a"}], "a message is .*; expected a role and content"),
        ([{"role": 3, "content": "a"}], "a message is .*; expected a role and content"),
        ([{"role": "assistant", "content": "a"}], "the last message is .*; expected a user's, of role and"),
        ([{"role": "user"}], "the last message is .*; expected a user's"),
        ([{"role": "user", "content": "a", "name": "Ann"}], "of role and content only, which is answered"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "the prompt is .*; expected a string",
        ),
        ([{"role": "system", "content": "\ud800"}, {"role": "user", "content": "a"}], "half of a character"),
    ],
)
def test_messages_that_are_none_are_named(messages: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", {"prompt": "fine"}, {"messages": messages})
    with pytest.raises(InputError, match=f"line 2: .*{words}"):
        read_prompts(path)


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no prompts; write some into it, or leave it out"):
        read_prompts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "missing.jsonl")
