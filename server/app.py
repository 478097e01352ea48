"""The application: its paths, and how a body becomes a request."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from poss_export.runtime.scheduler import Scheduler
from poss_export.server.errors import ApiError, api_error
from poss_export.server.guard import Guard
from poss_export.server.metrics import CONTENT_TYPE, Metrics
from poss_export.server.openapi import description
from poss_export.server.replies import Json, error_reply
from poss_export.server.requests import ChatRequest, CompletionRequest, unreadable
from poss_export.server.service import Service
from poss_export.server.settings import Settings

Asked = TypeVar("Asked", bound=BaseModel)


def make_app(scheduler: Scheduler, settings: Settings) -> Starlette:
    """Return the ASGI application over an entered scheduler; its `state.service` is a `Service`."""
    metrics = Metrics(scheduler)
    service = Service(scheduler, settings, metrics)
    model = {
        "id": settings.model,
        "object": "model",
        "created": service.created,
        "owned_by": "poss-export",
        "max_model_len": scheduler.bundle.manifest.capacity,
    }

    async def chat(http: Request) -> Response:
        return await service.chat(await _read(http, ChatRequest), http)

    async def complete(http: Request) -> Response:
        return await service.complete(await _read(http, CompletionRequest), http)

    async def models(http: Request) -> Response:
        return Json({"object": "list", "data": [model]})

    async def one_model(http: Request) -> Response:
        service.check_model(http.path_params["model"])
        return Json(model)

    async def health(http: Request) -> Response:
        return _state(scheduler.alive, "ok", "the engine has ended")

    async def ready(http: Request) -> Response:
        return _state(scheduler.accepts, "ready", "draining")

    async def figures(http: Request) -> Response:
        return Response(metrics.expose(), media_type=CONTENT_TYPE)

    async def openapi(http: Request) -> Response:
        return Json(description(settings.model))

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", one_model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", figures),
        Route("/openapi.json", openapi),
    ]
    paths = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, settings=settings, metrics=metrics, paths=paths)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _failure},
    )
    app.state.service = service
    return app


async def _read(http: Request, kind: type[Asked]) -> Asked:
    """Return the request that a body holds."""
    # A web page may send any other type to any server without being asked whether it may.
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body is not said to be JSON; send `Content-Type: application/json`")
    try:
        return kind.model_validate_json(await http.body())
    except ValidationError as error:
        raise unreadable(error) from error


def _state(good: bool, well: str, ill: str) -> Response:
    return Json({"status": well if good else ill}, 200 if good else 503)


async def _api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_reply(error)


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{error.detail}: {http.method} {http.url.path}"
    return error_reply(ApiError(error.status_code, told, headers=dict(error.headers or {})))


async def _failure(http: Request, error: Exception) -> Response:
    return error_reply(api_error(error, ""))
