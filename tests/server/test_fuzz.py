"""Whatever fields a request has, of the description's and with values of any kind: never a 500."""

import http.client
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poss_export.server.openapi import description
from tests.server.conftest import MODEL, Served

SCHEMAS = description(MODEL)["components"]["schemas"]
WORDS = st.sampled_from(
    ["<5>", "<5> <9>", "", "a", MODEL, "user", "assistant", "text", "json_schema", "\ud800"]
)
NUMBERS = st.sampled_from([0, 1, 2, -1, 0.5, 1e-9, 1e308, 2**31, 2**63, -(2**63), 10**30])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.integers(), st.floats(), st.text(max_size=9))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema allows, nearly."""
    if "$ref" in schema:
        return values_of(SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of([values_of(one) for one in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "object" if "properties" in schema:
            return fields_of(schema)
        case "array":
            return st.lists(values_of(schema.get("items", {})), max_size=3)
        case "integer":
            return st.integers(0, 9)
        case "number":
            return st.floats(0, 2)
        case "string":
            return WORDS
        case "boolean":
            return st.booleans()
    return st.none() | ANYTHING


def fields_of(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with what a schema demands, and some of what else it knows."""
    properties = {name: values_of(one) for name, one in schema["properties"].items()}
    needed = schema.get("required", [])
    return st.fixed_dictionaries(
        {name: properties[name] for name in needed},
        optional={name: one for name, one in properties.items() if name not in needed},
    )


def check(server: Served, path: str, body: dict[str, Any]) -> int:
    # A connection of its own: one that is kept is closed by the server while examples are thought of.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        said = response.read()
    finally:
        connection.close()
    if response.getheader("Content-Type", "").startswith("text/event-stream"):
        assert said.endswith(b"data: [DONE]\n\n")
    else:
        assert {"error", "choices"} & json.loads(said).keys()
    assert response.status in (200, 400, 404), (body, said)
    return response.status


PATHS = [("/v1/chat/completions", "ChatRequest"), ("/v1/completions", "CompletionRequest")]
USUAL = {"model": MODEL, "messages": [{"role": "user", "content": "<5>"}], "prompt": "<5>", "max_tokens": 3}


@pytest.mark.parametrize(("path", "name"), PATHS)
def test_fields_of_any_kind(server: Served, path: str, name: str) -> None:
    usual = {field: value for field, value in USUAL.items() if field in SCHEMAS[name]["properties"]}

    @settings(max_examples=25)
    @given(fields=fields_of(SCHEMAS[name]))
    def as_described(fields: dict[str, Any]) -> None:
        check(server, path, {**fields, "model": MODEL, "max_tokens": 2})

    @settings(max_examples=40)
    @given(field=st.sampled_from(sorted(SCHEMAS[name]["properties"])), value=ANYTHING)
    def one_of_any_kind(field: str, value: Any) -> None:
        check(server, path, {**usual, field: value})

    as_described()
    one_of_any_kind()
    assert check(server, path, usual) == 200
