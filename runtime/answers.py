"""Answers of a scheduler, for a thread that waits for them."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, Unpack

from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.request import Wanted, words_of
from poss_export.runtime.scheduler import Done, Event, Failed, Piece, Scheduler
from poss_export.text import Message


def follow(scheduler: Scheduler, ids: Sequence[int], **wanted: Unpack[Wanted]) -> Generator[Piece | Done]:
    """Yield what is told of an answer, which is given up where the iteration ends early.

    Raises:
        Exception: what kept the answer from being made, or being asked for (`Scheduler.submit`).
    """
    events: SimpleQueue[Event] = SimpleQueue()
    ticket = scheduler.submit(ids, **wanted, on_event=events.put)
    try:
        while True:
            event = events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Done):
                return
    finally:
        ticket.cancel()


def answer_all(
    bundle: Bundle,
    prompts: Sequence[str | Sequence[Message]],
    *,
    raw: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
    control_tokens: bool = False,
    **wanted: Unpack[Wanted],
) -> list[Generation]:
    """Return the answer to each prompt, as many at once as the bundle can; arguments as in `Bundle.stream`.

    Raises:
        PromptError: a prompt cannot be answered; none is then.
        InputError: another value cannot be used.
    """
    reading: dict[str, Any] = {"raw": raw, "variables": variables, "control_tokens": control_tokens}
    made = answer_ids(bundle, [bundle.encode(prompt, **reading) for prompt in prompts], **wanted)
    return [replace(one, prompt=words_of(prompt)) for one, prompt in zip(made, prompts, strict=True)]


def answer_ids(bundle: Bundle, asked: Sequence[Sequence[int]], **wanted: Unpack[Wanted]) -> list[Generation]:
    """Return the answers behind ids, which have no prompts in words; as `answer_all`."""
    events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    made = dict[int, Generation]()
    with Scheduler(bundle, queue=len(asked)) as scheduler:
        for number, ids in enumerate(asked):

            def tell(event: Event, number: int = number) -> None:
                events.put((number, event))

            scheduler.submit(ids, **wanted, on_event=tell)
        while len(made) < len(asked):
            number, event = events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                made[number] = event.generation
    return [made[number] for number in range(len(asked))]
