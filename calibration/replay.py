"""Replay: the recorded rounds once more, on any precision of their target and drafter, for what is fed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.calibration.record import Dialogue, Record
from poss_export.contract import PAST
from poss_export.engine_spec import GraphName
from poss_export.errors import InputError
from poss_export.runtime.loop import PREFILL_CHUNK, read
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtTargetSession

Feed = Mapping[str, NDArray[Any]]  # every input of a graph, by name


def replay(
    record: Record, target: OrtTargetSession, drafter: OrtDraftSession | None, limit: int | None = None
) -> Iterator[tuple[GraphName, Feed]]:
    """Run entered sessions through the first `limit` dialogues; yield what each call was fed.

    The calls are those of the loop: the prompt in chunks, then each round's proposal and verification. The
    recorded trees and paths are taken whatever these sessions would say, and the drafter reads the features
    that this target computes. Without a drafter only the target's calls come.

    A feed is a view of the session's own buffers and valid until the next item; cache rows behind its
    `past_length` are provisional. Leave the sessions alone until the last item.

    Raises:
        InputError: a dialogue does not fit the capacity.
    """
    dialogues = record.dialogues[:limit]
    if (rows := max((dialogue.rows for dialogue in dialogues), default=0)) > target.capacity:
        raise InputError(
            f"the samples need a capacity of {rows} tokens, the bundle's is {target.capacity}: "
            "record them with this bundle, or build with a larger capacity",
            options=("capacity",),
        )
    for dialogue in dialogues:
        yield from _replay_dialogue(dialogue, target, drafter)


def _replay_dialogue(
    dialogue: Dialogue, target: OrtTargetSession, drafter: OrtDraftSession | None
) -> Iterator[tuple[GraphName, Feed]]:
    """Yield the calls of `runtime.loop.speculate`, whose letters these are; its choices are recorded here."""
    for session in (target, drafter):
        if session is not None:
            session.reset()
    prompt = dialogue.prompt
    for start, output in read(target, prompt, chunk=PREFILL_CHUNK):
        yield "target", target.last_feed()
        f = output.features
        end = start + len(f)
        if drafter is not None and end < len(prompt):
            drafter.propose(prompt[start + 1 : end + 1], f)
            yield "draft", drafter.last_feed()
    t = prompt[start + 1 :]  # without the root, which the round's tree begins with
    for done in dialogue.rounds:
        if drafter is not None:
            drafter.propose(np.append(t, done.tree.tokens[0]), f)
            yield "draft", drafter.last_feed()
        output = target.forward(done.tree)
        yield "target", target.last_feed()
        target.commit(done.path)
        t, f = done.tokens[:-1], output.features[list(done.path)]


def check_feeds(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Yield feeds that a graph can be calibrated with; caches are looked at up to `past_length`.

    Raises:
        InputError: there is no feed, or one holds a value that is not finite.
    """
    number = 0
    for number, feed in enumerate(feeds, start=1):
        for name, values in feed.items():
            if name.startswith(f"{PAST}.") and "past_length" in feed:
                values = values[..., : int(feed["past_length"].max()), :]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(
                    f"sample {number}: {name} holds NaN or infinity, expected finite values: "
                    "leave the sample out, or record samples again"
                )
        yield feed
    if number == 0:
        raise InputError(
            "no samples: the feeds ended before the first one; an iterator can be read only once, so give "
            "a list, or a new iterator each time"
        )
