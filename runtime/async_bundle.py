"""A bundle for asyncio: many answers at once, while the event loop does other things.

async with AsyncBundle(open_bundle("smollm2")) as bundle:
    async for piece in bundle.stream("Why is the sky blue?", max_new_tokens=64):
        print(piece, end="")
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Self, Unpack

from poss_export.errors import BusyError
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.request import Request, Wanted, words_of
from poss_export.runtime.scheduler import Done, Event, Failed, Piece, Scheduler, Ticket
from poss_export.text import Message


class Answers:
    """Several answers of a scheduler, told of in one asynchronous stream."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Begin with none; an event loop must be running."""
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._events = asyncio.Queue[tuple[int, Event]]()
        self._tickets: list[Ticket] = []

    def submit(self, ids: Sequence[int], **wanted: Unpack[Wanted]) -> None:
        """Ask for one more; arguments and errors as in `Scheduler.submit`."""
        tell = partial(self._tell, len(self._tickets))
        self._tickets.append(self._scheduler.submit(ids, **wanted, on_event=tell))

    def __len__(self) -> int:
        """How many were asked for."""
        return len(self._tickets)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece | Done]]:
        """Yield what is told of which answer, counted from 0, until all are done.

        Raises:
            Exception: what kept an answer from being made.
        """
        left = len(self._tickets)
        while left:
            number, event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            left -= isinstance(event, Done)
            yield number, event

    def cancel(self, why: Exception | None = None) -> None:
        """Make no more of any answer; whoever waits for one gets the error `why`."""
        for ticket in self._tickets:
            ticket.cancel()
        self._events.put_nowait((0, Failed(why or BusyError("the answer was cancelled"))))

    def _tell(self, number: int, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))


class AsyncStream:
    """An answer in the making: iterate for its text in pieces; then `result` is there.

    It is asked for when the iteration begins, and given up where the iteration ends early.
    """

    result: Generation

    def __init__(self, ask: Callable[[], Awaitable[Answers]], prompt: str | Sequence[Message]) -> None:
        """Keep how it is asked for, and the prompt."""
        self._ask, self._prompt = ask, prompt

    async def __aiter__(self) -> AsyncGenerator[str]:
        """Yield the text in pieces; errors as in `Bundle.stream`, and BusyError where the queue is full."""
        answers = await self._ask()
        try:
            async for _, event in answers:
                if isinstance(event, Piece):
                    yield event.text
                else:
                    self.result = replace(event.generation, prompt=words_of(self._prompt))
        finally:
            answers.cancel()

    async def run(self) -> Generation:
        """Return the whole answer."""
        async for _ in self:
            pass
        return self.result


class AsyncBundle:
    """Enter it to load the engines of a bundle; many tasks of one event loop may use it."""

    def __init__(self, bundle: Bundle, *, queue: int = 64) -> None:
        """Prepare a bundle that is not entered; all its slots are used, errors are as in `Scheduler`."""
        self._bundle, self._scheduler = bundle, Scheduler(bundle, queue=queue)
        self._entered = ExitStack()

    async def __aenter__(self) -> Self:
        """Load the engines; errors as in `Bundle`."""
        with ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, self._bundle)
            await asyncio.to_thread(stack.enter_context, self._scheduler)
            self._entered = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        """End the answers that are being made, and free the engines."""
        await asyncio.to_thread(self._entered.close)

    def stream(self, prompt: str | Sequence[Message], **request: Unpack[Request]) -> AsyncStream:
        """Return the answer as a stream of text; arguments as in `Bundle.stream`."""
        return AsyncStream(partial(self._ask, prompt, **request), prompt)

    async def generate(self, prompt: str | Sequence[Message], **request: Unpack[Request]) -> Generation:
        """Return the whole answer; arguments as in `Bundle.stream`, errors as in `AsyncStream`."""
        return await self.stream(prompt, **request).run()

    async def _ask(
        self,
        prompt: str | Sequence[Message],
        raw: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
        control_tokens: bool = False,
        **wanted: Unpack[Wanted],
    ) -> Answers:
        encode = partial(self._bundle.encode, raw=raw, variables=variables, control_tokens=control_tokens)
        ids = await asyncio.to_thread(encode, prompt)  # long prompts take a while
        answers = Answers(self._scheduler)
        answers.submit(ids, **wanted)
        return answers
