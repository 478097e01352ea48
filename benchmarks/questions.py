"""Prompts of a benchmark, as ids, from files that no drafter was trained on."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import click
import numpy as np

from poss_export.errors import InputError
from poss_export.prompts import Prompt, read_prompts, spread
from poss_export.text import Text, user_says

DEMO = Path(__file__).parent / "prompts/demo.jsonl"


@dataclass(frozen=True)
class Question:
    """A prompt of a file, and the ids that one of its turns is asked with, chat template included."""

    file: str  # its name
    prompt: Prompt
    ids: list[int]
    turn: int = 1

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        place = f"{self.file}:{self.prompt.id}"
        return place if self.turn == 1 else f"{place}, turn {self.turn}"

    @property
    def kind(self) -> str:
        """What kind of text it asks for: its category, or its file where it has none."""
        return self.prompt.category or self.file


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose the questions: `prompts` and `limit`, for `load`."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    text = "JSON Lines of `prompt` or `turns` (the first is asked), or .npz dialogues (those held out)."
    command = click.option("--limit", type=click.IntRange(1), help="Ask so many, spread evenly.")(command)
    return click.option(
        "--prompts", type=file, multiple=True, default=(DEMO,), show_default="the demo's", help=text
    )(command)


def load(text: Text, prompts: Sequence[Path], limit: int | None) -> list[Question]:
    """Return the questions of all files, at most `limit` of them, spread evenly.

    Raises:
        InputError: a file cannot be read, a line has no prompt, two questions have one place (the name of
            the file and the prompt's id), by which figures are kept, or there are no questions at all.
    """
    found = [
        question
        for path in prompts
        for question in (_from_dialogues(path, text) if path.suffix == ".npz" else _from_lines(path, text))
    ]
    if not found:
        raise InputError(f"there are no prompts in {', '.join(map(str, prompts))}; give files that have some")
    places = Counter(question.place for question in found)
    if doubled := [place for place, count in places.items() if count > 1]:
        raise InputError(
            f"{len(doubled)} questions stand at one place with another, the first at {doubled[0]}: give each "
            "an id of its own, each file another name, and each file once"
        )
    return spread(found, limit)


def every_turn(
    asked: Iterable[Question], text: Text, answer: Callable[[list[int]], Sequence[int]]
) -> Iterator[Question]:
    """Yield each question once for every turn of its prompt.

    A later turn stands behind the earlier ones and what `answer`, from ids to ids, answers to them.
    """
    for question in asked:
        first, *later = question.prompt.turns
        messages = [user_says(first)]
        yield question
        for number, turn in enumerate(later, start=2):
            messages.append({"role": "assistant", "content": text.decode(answer(question.ids))})
            messages.append(user_says(turn))
            question = replace(question, ids=text.encode_chat(messages), turn=number)
            yield question


def _from_lines(path: Path, text: Text) -> Iterator[Question]:
    for prompt in read_prompts(path):
        yield Question(path.name, prompt, text.encode_chat([user_says(prompt.turns[0])]))


def _from_dialogues(path: Path, text: Text) -> Iterator[Question]:
    """Yield the tokens before the first answer of each dialogue that training holds out.

    Arrays: ids `[tokens]`, answer_mask `[tokens]`, offsets `[dialogues + 1]`, validation `[dialogues]`.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            ids, answer, offsets = arrays["ids"], arrays["answer_mask"], arrays["offsets"]
            held_out = np.flatnonzero(arrays["validation"])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected training dialogues") from error
    for index in held_out:
        start, end = offsets[index], offsets[index + 1]
        opening = ids[start : start + int(answer[start:end].argmax())].tolist()
        yield Question(path.name, Prompt(str(index), (text.decode(opening),)), opening)
