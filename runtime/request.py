"""What can be asked of a bundle, whether for one answer or for many at once."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from poss_export.runtime.planning.planner import Planning
from poss_export.runtime.sampling import Sampling
from poss_export.text import Message


class Wanted(TypedDict, total=False):
    """How an answer is to be made, whatever prompt it follows."""

    max_new_tokens: int
    sampling: Sampling
    stop: Sequence[str]
    target_only: bool
    planning: Planning | None


class Request(Wanted, total=False):
    """That, and how a prompt is to be read: what `Bundle.stream` and `Bundle.generate` can be asked for."""

    raw: bool
    variables: Mapping[str, Any]
    control_tokens: bool


def words_of(prompt: str | Sequence[Message]) -> str:
    """Return what the user says, or the last message says."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def is_several(prompt: str | Sequence[Any]) -> bool:
    """Whether it is a list of prompts, and not what one user says, or the messages so far."""
    return not isinstance(prompt, str) and any(not isinstance(one, Mapping) for one in prompt)
