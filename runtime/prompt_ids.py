"""From what is said to the ids that an answer follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from poss_export.control_tokens import strings
from poss_export.errors import InputError, PromptError
from poss_export.prompts import half_character
from poss_export.text import Message, Text, user_says


def prompt_ids(
    text: Text,
    vocab_size: int,
    prompt: str | Sequence[Message],
    *,
    raw: bool,
    variables: Mapping[str, Any],
    control_tokens: bool,
) -> list[int]:
    """Return the ids of what the user says, or of messages, in the chat template unless `raw`.

    Raises:
        PromptError: the prompt is empty, holds an unknown token or half a character, or the template
            refuses it.
        InputError: the target has no chat template, or one that does not read a variable; messages or
            variables are given with `raw`.
    """
    if not prompt or (not isinstance(prompt, str) and not prompt[-1].get("content")):
        raise PromptError("the prompt is empty; say something to answer")
    said = prompt if isinstance(prompt, str) else [*prompt]
    if (half := half_character("".join(strings([said, dict(variables)])))) is not None:
        raise PromptError(f"the prompt holds {half!r}, half of a character; expected text in UTF-8")
    if not raw:
        messages = [user_says(said)] if isinstance(said, str) else said
        ids = text.encode_chat(messages, variables, control_tokens=control_tokens)
    elif not isinstance(said, str):
        raise InputError("messages have no plain text without the chat template; give one string")
    elif variables:
        raise InputError(
            f"variables ({', '.join(variables)}) are of the chat template, which plain text goes without: "
            "leave them out",
            options=("variables",),
        )
    else:
        ids = text.encode(said)
    # Tokenizers may know tokens that the target does not.
    if (highest := max(ids, default=0)) >= vocab_size:
        raise PromptError(
            f"the prompt holds token {highest}, the target has {vocab_size} tokens; "
            "leave that special token out of the prompt"
        )
    return ids
