"""Prompts from a file of JSON Lines."""

import json
from pathlib import Path

from poss_export.errors import InputError


def read_prompts(path: Path) -> list[str]:
    """Return the prompt of each line: `prompt`, or the first of `turns`.

    Raises:
        InputError: the file cannot be read, or a line has no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected a file of JSON Lines") from error
    return [_prompt(line, f"{str(path)!r}, line {number}") for number, line in enumerate(lines, start=1)]


def _prompt(line: str, where: str) -> str:
    try:
        values = json.loads(line)
        prompt = values["prompt"] if "prompt" in values else values["turns"][0]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f'{where} has no prompt; expected {{"prompt": "..."}} or {{"turns": ["..."]}}'
        ) from error
    if not isinstance(prompt, str):
        raise InputError(f"{where}: the prompt is {prompt!r}; expected a string")
    return prompt
