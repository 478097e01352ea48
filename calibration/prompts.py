"""Prompts that a target invents: user turns sampled behind the opening of its chat template."""

import numpy as np

from poss_export.errors import InputError
from poss_export.progress import Progress, silent
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Stream
from poss_export.runtime.sampling import Sampling

LONGEST_TURN = 96  # tokens; longer turns are cut


def invent_prompts(bundle: Bundle, count: int, seed: int, progress: Progress = silent) -> list[str]:
    """Let the target of an entered bundle speak for the user `count` times; the same seed repeats it.

    Empty turns and duplicates are dropped and tried again, twice `count` times in all. A turn takes at
    most half of what the template leaves of the capacity, so that its answer has room too.

    Raises:
        InputError: the target has no chat template, or its turns are all empty.
    """
    if bundle.manifest.text.chat_template is None:
        raise InputError(
            f"target {bundle.manifest.target.name!r} has no chat template to invent prompts with: "
            "give prompts, or a file of them",
            options=("prompts",),
        )
    opening = bundle.text.encode_user_opening()
    frame = len(bundle.text.encode_chat([{"role": "user", "content": ""}]))
    if (room := (bundle.target.capacity - frame) // 2) < 1:
        raise InputError(
            f"the chat template takes {frame} tokens, the bundle's capacity is {bundle.target.capacity}: "
            "build with a larger capacity",
            options=("capacity",),
        )
    turns: dict[str, None] = {}
    for number in np.random.default_rng(seed).integers(2**31, size=2 * count).tolist():
        stream = Stream(
            bundle.target,
            bundle.drafter,
            bundle.text,
            "",
            opening,
            max_new_tokens=min(room, LONGEST_TURN),
            sampling=Sampling(temperature=1.0, top_p=0.95, seed=number),
        )
        turns[stream.run().text.strip()] = None
        turns.pop("", None)
        progress("inventing prompts", len(turns), count, "")
        if len(turns) == count:
            return list(turns)
    if not turns:
        raise InputError(
            f"target {bundle.manifest.target.name!r} invents only empty prompts: "
            "give prompts, or a file of them",
            options=("prompts",),
        )
    return list(turns)
