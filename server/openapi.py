"""The description of the API (OpenAPI 3.1), from the fields of its requests."""

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from poss_export.machine import versions
from poss_export.server.requests import ChatRequest, CompletionRequest

_PLACE = "#/components/schemas/{model}"


@cache
def description(model: str) -> dict[str, Any]:
    """Return it for a server of this model, as plain JSON values."""
    names, schemas = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template=_PLACE
    )
    for body in (ChatRequest, CompletionRequest):
        schemas["$defs"][body.__name__]["properties"]["model"]["enum"] = [model]
    return {
        "openapi": "3.1.0",
        "info": {"title": "poss-export", "version": versions("poss-export")["poss-export"]},
        "paths": {
            "/v1/chat/completions": {"post": _posted("Answer a dialogue.", names[ChatRequest, "validation"])},
            "/v1/completions": {"post": _posted("Continue text.", names[CompletionRequest, "validation"])},
            "/v1/models": {"get": _got("Name the model.", "application/json")},
            "/health": {"get": _got("Say whether the engine runs.", "application/json")},
            "/ready": {"get": _got("Say whether requests are taken.", "application/json")},
            "/metrics": {"get": _got("Tell Prometheus.", "text/plain")},
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _posted(summary: str, body: dict[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {}, "text/event-stream": {}}
    errors = {"400": "a field cannot be used", "401": "no known key", "413": "too long", "429": "no room now"}
    return {
        "summary": summary,
        "security": [{"key": []}, {}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "the answers", "content": answers},
            **{status: {"description": text} for status, text in errors.items()},
        },
    }


def _got(summary: str, kind: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "it", "content": {kind: {}}}}}
