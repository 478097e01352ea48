"""Prompts from a file of JSON Lines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poss_export.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """What a user says, turn by turn; the answer to one turn comes before the next.

    `id` tells it from the others of its file, `category` what kind it is, where the file says so.
    """

    id: str
    turns: tuple[str, ...]
    category: str | None = None


_EXPECTED = 'has no prompt; expected {"prompt": "..."} or {"turns": ["..."]}'


def as_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Return a prompt of one turn for each text, numbered from 1."""
    return [Prompt(str(number), (text,)) for number, text in enumerate(texts, start=1)]


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompt of each line: of `prompt` or `turns`, with its `question_id` or `id`, and `category`.

    A line without an id has its number.

    Raises:
        InputError: the file cannot be read or is empty, or a line has no prompt.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = list(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected a file of JSON Lines") from error
    if not lines:
        raise InputError(f"{str(path)!r} is empty; write prompts into it, or leave it out")
    return [
        _prompt(line, number, f"{str(path)!r}, line {number}") for number, line in enumerate(lines, start=1)
    ]


def _prompt(line: str, number: int, where: str) -> Prompt:
    try:
        values = json.loads(line)
        turns = [values["prompt"]] if "prompt" in values else values["turns"]
        name = str(values.get("question_id", values.get("id", number)))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} {_EXPECTED}") from error
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where} {_EXPECTED}")
    for turn in turns:
        if not isinstance(turn, str):
            raise InputError(f"{where}: the prompt is {turn!r}; expected a string")
    return Prompt(name, tuple(turns), values.get("category"))
