"""What every request passes first: is it allowed, is its body small and whole, what became of it."""

import asyncio
from collections.abc import Set

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poss_export.server.errors import ApiError
from poss_export.server.metrics import Metrics
from poss_export.server.replies import error_reply
from poss_export.server.settings import Settings

PUBLIC = frozenset({"/health", "/ready", "/metrics"})  # for what supervises the server; they tell no text
_BODY_SECONDS = 30.0  # until a body must have come
_TAKEN_SECONDS = 60.0  # until a client must have taken what is sent to it
_GONE = 499  # a status that nobody is told, for figures only
_DISCARDED = 64 << 20  # bytes of a body that is too long; who sends more is not told why it ends


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Set[str]) -> None:
        """Stand before `app`; requests are counted by `paths`, and all others together."""
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(_TAKEN_SECONDS):
                await send(message)

        try:
            request = Request(scope)
            self._check_key(request)
            body = await self._body(request, receive) if request.method == "POST" else receive
            await self._app(scope, body, sending)
        except ApiError as error:
            await error_reply(error)(scope, receive, sending)
        except TimeoutError:
            status = _GONE  # nobody reads: the connection ends, and what was asked for with it
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()

    def _check_key(self, request: Request) -> None:
        if not self._settings.keys or request.url.path in PUBLIC:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._settings.keys.admit(key.strip()):
            raise ApiError(
                401,
                "no API key that this server knows; send one as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, request: Request, receive: Receive) -> Receive:
        """Return what gives the body in one piece, and then what the connection gives."""
        limit = self._settings.limits.body
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body, length = await _read(receive, limit)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {_BODY_SECONDS:g} s") from None
        if length > limit:
            raise ApiError(
                413, f"the body has more than {limit} bytes, which is the limit", code="body_too_large"
            )
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


async def _read(receive: Receive, limit: int) -> tuple[bytes, int]:
    """Return the body, or as much of it as is allowed, and how long it is, or how much of it came."""
    body, length = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(_GONE, "the client went away")
        chunk = message.get("body", b"")
        length += len(chunk)
        if length <= limit:
            body += chunk
        if not message.get("more_body", False) or length > max(limit, _DISCARDED):
            return bytes(body), length
