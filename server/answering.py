"""The answers to one request: told of whole or in a stream, and given up where nobody waits for them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request

from poss_export.runtime.async_bundle import Answers
from poss_export.runtime.generation import Generation
from poss_export.runtime.scheduler import Done, Piece
from poss_export.server.errors import ApiError
from poss_export.server.forms import Form, usage_of
from poss_export.server.metrics import Watch
from poss_export.server.replies import END, event


class Job:
    """The answers to one request, asked for already; then iterate over `stream`, or await `whole`."""

    def __init__(
        self,
        http: Request,
        form: Form,
        answers: Answers,
        watch: Watch,
        *,
        prompt_tokens: int,
        seconds: float,
        told: Callable[[Exception], ApiError],
    ) -> None:
        """Look after them from now on: a client that goes away ends them, and so do `seconds`.

        told: what a client is told of an error.
        """
        self._form, self._answers, self._watch = form, answers, watch
        self._prompt_tokens, self._told = prompt_tokens, told
        self._made: dict[int, Generation] = {}
        late = ApiError(504, f"the answer took longer than {seconds:g} s, which is the limit", code="timeout")
        self._timer = asyncio.get_running_loop().call_later(seconds, answers.cancel, late)
        # Not left to the response, which may never be begun.
        self._gone = asyncio.create_task(_cancel_when_gone(http, answers))

    async def whole(self) -> dict[str, Any]:
        """Return the response's body when all answers are done.

        Raises:
            ApiError: what the client is told instead.
        """
        try:
            async for _ in self._told_of():
                pass
        except Exception as error:
            raise self._told(error) from error
        return self._form.whole([self._made[number] for number in sorted(self._made)], self._usage)

    async def stream(self, with_usage: bool) -> AsyncIterator[str]:
        """Yield server-sent events of what is told of the answers; an error that ends them is the last."""
        form = self._form
        try:
            for number in range(len(self._answers)):
                for chunk in form.opening(number):
                    yield event(chunk)
            async for number, told in self._told_of():
                if isinstance(told, Done):
                    yield event(form.closing(number, told.generation))
                else:
                    yield event(form.piece(number, told.text))
            if with_usage:
                yield event(form.usage(self._usage))
            yield END
        except Exception as error:
            yield event(self._told(error).body)
        finally:
            self._end()

    async def _told_of(self) -> AsyncIterator[tuple[int, Piece | Done]]:
        try:
            async for number, told in self._answers:
                self._watch.tell(number, told)
                if isinstance(told, Done):
                    self._made[number] = told.generation
                yield number, told
            self._watch.end()
        finally:
            self._end()

    def _end(self) -> None:
        """Leave nothing of the request behind."""
        self._answers.cancel()
        self._timer.cancel()
        self._gone.cancel()

    @property
    def _usage(self) -> dict[str, Any]:
        return usage_of(self._prompt_tokens, [*self._made.values()])


async def _cancel_when_gone(http: Request, answers: Answers) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    answers.cancel(ApiError(499, "the client went away"))
