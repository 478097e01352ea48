"""Prompts from a file of JSON Lines."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeVar

from poss_export.control_tokens import strings
from poss_export.errors import InputError, PromptError
from poss_export.files import parse_json
from poss_export.text import Message

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Prompt:
    """What a user says, turn by turn; the answer to one turn comes before the next.

    `before` are messages in front of the first turn, such as a system message.
    `id` tells it from the others of its file, `category` what kind it is, where the file says so; `source` is
    where it stands, for messages.
    """

    id: str
    turns: tuple[str, ...]
    category: str | None = None
    source: str | None = field(default=None, compare=False)
    before: tuple[Message, ...] = ()


STANDARD_INPUT = Path("-")
_EXPECTED = (
    'has no prompt; expected {"prompt": "..."}, {"turns": ["..."]} '
    'or {"messages": [{"role": "user", "content": "..."}]}'
)


def as_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Return a prompt of one turn for each text, numbered from 1.

    Raises:
        InputError: a text is none.
    """
    several = len(texts) > 1
    return [
        Prompt(
            str(number), (_text(text, f"prompt {number}"),), source=f"prompt {number}" if several else None
        )
        for number, text in enumerate(texts, start=1)
    ]


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompt of each line: of `prompt`, `turns` or `messages`, the first that is there.

    A line may have a `question_id` or `id`, and a `category`. The last message is the user's, to be answered.
    A line without an id has its number; blank lines hold none. "-" is standard input.

    Raises:
        InputError: the file cannot be read or holds no prompts, or a line has none.
    """
    name = "standard input" if path == STANDARD_INPUT else repr(str(path))
    prompts = [
        _prompt(line, number, f"{name}, line {number}") for number, line in _lines(path, name) if line.strip()
    ]
    if not prompts:
        raise InputError(f"{name} holds no prompts; write some into it, or leave it out")
    return prompts


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines; only a line feed ends one."""
    if path == STANDARD_INPUT and sys.stdin is None:
        raise InputError(f"{name} is closed; name a file of prompts, or give some to it")
    try:
        content = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error}): save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({error}); expected a file of JSON Lines") from error
    for number, line in enumerate(lines, start=1):
        yield number, line.removeprefix("\ufeff")  # files that were joined have one each


def _prompt(line: str, number: int, where: str) -> Prompt:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); expected one object a line") from error
    if not isinstance(values, dict) or not values.keys() & {"prompt", "turns", "messages"}:
        raise InputError(f"{where} {_EXPECTED}")
    before, turns = _said(values, where)
    name = values.get("question_id", values.get("id"))
    if not isinstance(name, str | int | float | None):
        raise InputError(f"{where}: the id is {shortened(name)}; expected a string or a number")
    category = values.get("category")
    if not isinstance(category, str | None):
        raise InputError(f"{where}: the category is {shortened(category)}; expected a string")
    return Prompt(
        str(number if name is None else name),
        tuple(_text(turn, where) for turn in turns),
        category,
        where,
        before,
    )


def _said(values: dict[str, Any], where: str) -> tuple[tuple[Message, ...], list[Any]]:
    """Return the messages before the first turn, and the turns."""
    if "prompt" in values:
        return (), [values["prompt"]]
    if "turns" not in values:
        return _dialogue(values["messages"], where)
    turns = values["turns"]
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: turns is {shortened(turns)}; expected a list of strings")
    return (), turns


def _dialogue(messages: Any, where: str) -> tuple[tuple[Message, ...], list[Any]]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages is {shortened(messages)}; expected a list of objects")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{where}: a message is {shortened(message)}; expected a role and content")
        for text in strings(message):
            _text(text, where)
    *before, last = messages
    if last.keys() != {"role", "content"} or last["role"] != "user":
        raise InputError(
            f"{where}: the last message is {shortened(last)}; expected a user's, of role and content only, "
            "which is answered"
        )
    return tuple(before), [last["content"]]


def spread(asked: Sequence[Asked], limit: int | None) -> list[Asked]:
    """Return at most `limit` of what is asked, spread evenly; None: all."""
    if limit is None or limit >= len(asked):
        return [*asked]
    return [asked[index * len(asked) // limit] for index in range(limit)]


def with_system(prompt: Prompt, system: str) -> Prompt:
    """Return a prompt behind a system message.

    Raises:
        InputError: it has one of its own, or the message is no text.
    """
    if any(message["role"] == "system" for message in prompt.before):
        raise InputError(
            f"{prompt.source or f'prompt {prompt.id!r}'} has a system message of its own; leave one out",
            options=("system",),
        )
    message = {"role": "system", "content": _text(system, "the system message")}
    return replace(prompt, before=(message, *prompt.before))


def _text(turn: Any, where: str) -> str:
    if not isinstance(turn, str):
        raise InputError(f"{where}: the prompt is {shortened(turn)}; expected a string")
    if (half := half_character(turn)) is not None:
        raise InputError(f"{where}: the prompt holds {half!r}, half of a character; expected text in UTF-8")
    return turn


def half_character(text: str) -> str | None:
    """Return the first lone surrogate of a text, None where it is whole.

    JSON may write one, and bytes of a command line that are no UTF-8 become such; no tokenizer takes it.
    """
    return next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)


class Refused:
    """Of many prompts, those that cannot be answered; one alone is an error at once."""

    def __init__(self, asked: int) -> None:
        """Begin with none of `asked` prompts."""
        self.asked = asked
        self.errors: list[PromptError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an error of the prompt that is answered within; go on where there are others."""
        try:
            yield
        except PromptError as error:
            if self.asked == 1:
                raise
            self.errors.append(error)

    def check(self) -> None:
        """Raise InputError where any prompt was refused, with the words of each."""
        if self.errors:
            told = "\n".join(f"  {error}" for error in self.errors)
            options = tuple({option: None for error in self.errors for option in error.options})
            raise InputError(
                f"{len(self.errors)} of {self.asked} prompts were not answered:\n{told}", options=options
            )
