"""From a request's fields to answers asked of the scheduler."""

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from weakref import WeakSet

from starlette.requests import Request
from starlette.responses import Response

from poss_export.errors import BusyError, InputError, PromptError
from poss_export.runtime.async_bundle import Answers
from poss_export.runtime.scheduler import Scheduler
from poss_export.server.answering import Job
from poss_export.server.errors import ApiError, api_error
from poss_export.server.forms import Form
from poss_export.server.metrics import Metrics, Watch
from poss_export.server.replies import Json, stream_reply
from poss_export.server.requests import ChatRequest, CompletionRequest
from poss_export.server.settings import Settings

_LONGEST_WAIT = 60  # seconds that a refused client is told to wait at most


class Service:
    """Answers the requests of one server."""

    def __init__(self, scheduler: Scheduler, settings: Settings, metrics: Metrics) -> None:
        """Keep the parts; the scheduler is entered."""
        self._scheduler, self._settings, self._metrics = scheduler, settings, metrics
        self._bundle = scheduler.bundle
        self._asked = WeakSet[Answers]()  # that may be in the making
        self.created = int(time.time())
        self._fingerprint = f"fp_{self._bundle.manifest.graph_sha256('target')[:12]}"

    async def chat(self, asked: ChatRequest, http: Request) -> Response:
        """Answer a dialogue.

        Raises:
            ApiError: what the client is told instead.
        """
        watch = Watch(self._metrics)
        self._check(asked, prompts=1)
        if not self._bundle.chats:
            message = "this model has no chat template; send text to /v1/completions"
            raise ApiError(400, message, param="messages")
        messages = [message.message for message in asked.messages]
        encode = partial(self._bundle.encode, messages, variables=asked.variables)
        try:
            ids = await asyncio.to_thread(encode)  # long ones take a while
        except InputError as error:
            raise self._told(asked, error) from error
        return await self._answer([ids], asked, http, watch)

    async def complete(self, asked: CompletionRequest, http: Request) -> Response:
        """Continue prompts as they are; errors as in `chat`."""
        watch = Watch(self._metrics)
        self._check(asked, prompts=len(asked.prompts))
        encode = partial(self._bundle.encode, raw=True)
        try:
            prompts = [
                await asyncio.to_thread(encode, prompt) if isinstance(prompt, str) else self._known(prompt)
                for prompt in asked.prompts
            ]
        except InputError as error:
            raise self._told(asked, error) from error
        return await self._answer(prompts, asked, http, watch)

    def end(self) -> None:
        """Give up all answers: their clients are told that the server shuts down."""
        for answers in [*self._asked]:
            answers.cancel(_shutting_down())

    def check_model(self, name: str) -> None:
        """Raise ApiError where the name is not that of the model."""
        if name != self._settings.model:
            message = f"there is no model {name!r}; this server has {self._settings.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _answer(
        self,
        prompts: Sequence[Sequence[int]],
        asked: ChatRequest | CompletionRequest,
        http: Request,
        watch: Watch,
    ) -> Response:
        self._check_lengths(prompts, asked)
        answers = Answers(self._scheduler)
        try:
            for number in range(len(prompts) * asked.choices):
                answers.submit(
                    prompts[number // asked.choices],
                    max_new_tokens=asked.new_tokens or self._most_new_tokens,
                    sampling=asked.sampling(number),
                    stop=asked.stops,
                )
        except Exception as error:
            answers.cancel()
            raise self._told(asked, error) from error
        self._asked.add(answers)
        prompt_tokens = sum(map(len, prompts))
        self._metrics.prompt_tokens.inc(prompt_tokens)
        job = Job(
            http,
            Form(asked.kind, self._settings.model, self._fingerprint),
            answers,
            watch,
            prompt_tokens=prompt_tokens,
            seconds=self._settings.limits.seconds,
            told=partial(self._told, asked),
        )
        if asked.stream:
            return stream_reply(job.stream(asked.includes_usage))
        return Json(await job.whole())

    def _check(self, asked: ChatRequest | CompletionRequest, prompts: int) -> None:
        """Refuse what needs no look at the prompts, which take a while to read."""
        self.check_model(asked.model)
        if self._scheduler.waiting >= self._scheduler.queue:
            raise self._told(asked, BusyError("the queue is full; ask again later"))
        most = min(self._settings.limits.choices, self._scheduler.queue)
        if (choices := prompts * asked.choices) > most:
            raise ApiError(400, f"{choices} answers are asked for, the limit is {most}", param="n")
        limit = self._settings.limits.new_tokens
        if limit is not None and (asked.new_tokens or 0) > limit:
            message = f"an answer of {asked.new_tokens} tokens is asked for, the limit is {limit}"
            raise ApiError(400, message, param=asked.length_field)

    def _check_lengths(
        self, prompts: Sequence[Sequence[int]], asked: ChatRequest | CompletionRequest
    ) -> None:
        limit = self._settings.limits.prompt_tokens
        longest = max(map(len, prompts))
        if limit is not None and longest > limit:
            raise ApiError(
                400,
                f"the prompt has {longest} tokens, the limit is {limit}",
                param=asked.prompt_field,
                code="context_length_exceeded",
            )

    @property
    def _most_new_tokens(self) -> int:
        return self._settings.limits.new_tokens or self._bundle.manifest.capacity

    def _known(self, prompt: list[int]) -> list[int]:
        """Return a prompt of ids that are all the model's."""
        tokens = self._bundle.manifest.target.config.vocab_size
        if (highest := max(prompt)) >= tokens:
            raise PromptError(f"the prompt holds token {highest}, the model has {tokens}")
        return prompt

    def _told(self, asked: ChatRequest | CompletionRequest, error: Exception) -> ApiError:
        """Return what the client is told of an error."""
        if isinstance(error, BusyError):
            if not self._scheduler.accepts:
                return _shutting_down()
            seconds = min(max(math.ceil(self._metrics.typical_seconds), 1), _LONGEST_WAIT)
            return ApiError(429, str(error), code="server_busy", headers={"Retry-After": str(seconds)})
        return api_error(error, asked.prompt_field)


def _shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
