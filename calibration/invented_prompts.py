"""Prompts that a target invents: user turns sampled behind the opening of its chat template."""

import numpy as np

from poss_export.errors import InputError
from poss_export.progress import Progress, silent
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Stream
from poss_export.runtime.sampling import Sampling
from poss_export.text import user_says

LONGEST_TURN = 96  # tokens; longer turns are cut

_GIVE = "give prompts, or a file of them"


def invent_prompts(bundle: Bundle, count: int, seed: int, progress: Progress = silent) -> list[str]:
    """Let the target of an entered bundle speak for the user `count` times; the same seed repeats it.

    Empty turns and duplicates are dropped and tried again, twice `count` times in all. A turn takes at
    most half of what the template leaves of the capacity, so that its answer has room too.

    Raises:
        InputError: the target has no chat template, or one that leaves no room; its turns are all empty.
    """
    if not bundle.chats:
        raise InputError(
            f"target {bundle.manifest.target.name!r} has no chat template to invent prompts with: {_GIVE}",
            options=("prompts",),
        )
    opening, longest = bundle.text.encode_user_opening(), _longest_turn(bundle)
    turns: dict[str, None] = {}
    for number in np.random.default_rng(seed).integers(2**31, size=2 * count).tolist():
        stream = Stream(
            bundle.target,
            bundle.drafter,
            bundle.text,
            "",
            opening,
            max_new_tokens=longest,
            sampling=Sampling(temperature=1.0, top_p=0.95, seed=number),
        )
        turns[stream.run().text.strip()] = None
        turns.pop("", None)
        progress("inventing prompts", len(turns), count, "")
        if len(turns) == count:
            break
    if not turns:
        raise InputError(
            f"target {bundle.manifest.target.name!r} invents only empty prompts: {_GIVE}",
            options=("prompts",),
        )
    return list(turns)


def _longest_turn(bundle: Bundle) -> int:
    """Return how many tokens a user's turn may have."""
    frame, capacity = len(bundle.text.encode_chat([user_says("")])), bundle.target.capacity
    if (room := (capacity - frame) // 2) < 1:
        raise InputError(
            f"the chat template takes {frame} tokens, the bundle's capacity is {capacity}: "
            "build with a larger capacity",
            options=("capacity",),
        )
    return min(room, LONGEST_TURN)
