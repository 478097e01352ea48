"""Errors in the form of the API: an object `error` with a message, a type, a parameter and a code."""

import logging
from typing import Any

from poss_export.errors import InputError, PromptError


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Keep the HTTP status and what is said; `param` is the field of the request that is meant."""
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, as plain JSON values."""
        error = {"message": str(self), "type": _type(self.status), "param": self.param, "code": self.code}
        return {"error": error}


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def api_error(error: Exception, prompt_field: str) -> ApiError:
    """Return what a client is told of an error; `prompt_field` of its request holds the prompt."""
    match error:
        case ApiError():
            return error
        case PromptError():
            code = "context_length_exceeded" if "capacity" in error.options else None
            return ApiError(400, str(error), param=prompt_field, code=code)
        case InputError():
            return ApiError(400, str(error))
        case _:
            logging.getLogger(__name__).error("a request failed", exc_info=error)
            return ApiError(500, "the server failed on this request; its log says why")
