"""Responses in JSON, and as server-sent events."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from poss_export.server.errors import ApiError

_STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter keeps nginx from waiting


class Json(Response):
    """Plain values in ASCII: clients may send halves of characters, and be told of them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of a body."""
        return json.dumps(content).encode()


def error_reply(error: ApiError) -> Json:
    """Return the response that tells of an error."""
    return Json(error.body, error.status, error.headers)


def event(values: dict[str, Any]) -> str:
    """Return a server-sent event of plain values."""
    return f"data: {json.dumps(values)}\n\n"


END = "data: [DONE]\n\n"  # the last event of a stream that was not cut off


def stream_reply(events: AsyncIterator[str]) -> StreamingResponse:
    """Return the response that sends events as they come.

    Starlette's own: that of sse-starlette ends all streams when the server is told to shut down, and has
    uvicorn's handler of signals replaced for it, where streams should be drained.
    """
    return StreamingResponse(events, media_type="text/event-stream", headers=_STREAMED)
