"""What OpenAI's own client, unmodified, gets from a real server."""

import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import openai
import pytest

from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.server.settings import Keys, Limits
from tests.server.conftest import MODEL, Serve, Served

SAID: Any = [{"role": "system", "content": "<8>"}, {"role": "user", "content": "<5> <9>"}]


def alone(server: Served, prompt: Any = SAID, tokens: int = 12, **request: Any) -> Any:
    """Return what the bundle answers without a server."""
    return server.bundle.generate(prompt, max_new_tokens=tokens, **request)


def chat(server: Served, **asked: Any) -> Any:
    fields = {"model": MODEL, "messages": SAID, "max_completion_tokens": 12, "temperature": 0, **asked}
    return server.client().chat.completions.create(**fields)


def complete(server: Served, prompt: Any, **asked: Any) -> Any:
    fields = {"model": MODEL, "max_tokens": 12, "temperature": 0, **asked}
    return server.client().completions.create(prompt=prompt, **fields)


def read(server: Served, path: str) -> str:
    with urlopen(f"{server.address}/{path}") as response:
        return str(response.read().decode())


def test_a_chat(server: Served) -> None:
    expected, answer = alone(server), chat(server)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == len(server.bundle.encode(SAID))
    assert answer.usage.completion_tokens == expected.tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    details, summary = answer.usage.completion_tokens_details, expected.summary
    assert details.accepted_prediction_tokens == summary.num_accepted_draft_tokens
    assert details.rejected_prediction_tokens == (
        summary.num_draft_tokens - summary.num_accepted_draft_tokens
    )


def test_a_stream(server: Served) -> None:
    expected = alone(server)
    chunks = [*chat(server, stream=True, stream_options={"include_usage": True})]
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == expected.text
    assert len([piece for piece in pieces if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in [*chat(server, stream=True)])


def test_a_stop_string_ends_the_answer(server: Served) -> None:
    stop = alone(server).text.split()[4]
    expected = alone(server, stop=[stop])
    assert 0 < expected.tokens < 12
    (choice,) = chat(server, stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, "stop")
    assert chat(server, stop=["nowhere", stop]).choices[0].message.content == expected.text


def test_a_seed_gives_each_choice_its_answer(server: Served) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": 7, "n": 2}
    expected = [alone(server, sampling=Sampling(1.5, top_p=0.9, seed=seed)).text for seed in (7, 8)]
    assert expected[0] != expected[1]
    assert [choice.message.content for choice in chat(server, **fields).choices] == expected
    streamed = ["", ""]
    for chunk in chat(server, **fields, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == expected


def test_no_seed_and_no_temperature_is_the_api_s_own(server: Served) -> None:
    fields = {"model": MODEL, "messages": SAID, "max_tokens": 30}
    answers = {server.client().chat.completions.create(**fields).choices[0].message.content for _ in range(5)}
    assert len(answers) > 1


def test_extensions(server: Served) -> None:
    expected = alone(server, sampling=Sampling(1.5, top_k=3, min_p=0.01, seed=1)).text
    found = chat(server, temperature=1.5, seed=1, extra_body={"top_k": 3, "min_p": 0.01})
    assert found.choices[0].message.content == expected


def test_completions(server: Served) -> None:
    expected = alone(server, "<5> <9>", raw=True)
    assert complete(server, "<5> <9>").choices[0].text == expected.text
    assert complete(server, server.bundle.encode("<5> <9>", raw=True)).choices[0].text == expected.text
    several = complete(server, ["<5> <9>", "<7>"], n=2)
    other = alone(server, "<7>", raw=True).text
    assert [choice.text for choice in several.choices] == [expected.text, expected.text, other, other]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    chunks = complete(server, "<5> <9>", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert complete(server, "<7>", max_tokens=openai.omit).usage.completion_tokens == 16


def test_control_tokens_in_messages_stay_text(server: Served) -> None:
    said: Any = [{"role": "user", "content": "<5> <2> <3>"}]
    expected = alone(server, said, sampling=GREEDY)
    assert chat(server, messages=said).choices[0].message.content == expected.text
    ids = server.bundle.encode(said)
    assert chat(server, messages=said).usage.prompt_tokens == len(ids)


def test_parts_of_text_and_the_developer(server: Served) -> None:
    parts = [{"type": "text", "text": "<5> "}, {"type": "text", "text": "<9>"}]
    said: Any = [{"role": "developer", "content": "<8>"}, {"role": "user", "content": parts}]
    assert chat(server, messages=said).choices[0].message.content == alone(server).text


def test_an_answer_may_be_sent_back(server: Served) -> None:
    message = chat(server).choices[0].message
    more: Any = [*SAID, message, {"role": "user", "content": "<7>"}]
    expected = alone(
        server,
        [*SAID, {"role": "assistant", "content": message.content}, {"role": "user", "content": "<7>"}],
    )
    assert chat(server, messages=more).choices[0].message.content == expected.text


def test_models(server: Served) -> None:
    (model,) = server.client().models.list()
    assert (model.id, model.owned_by) == (MODEL, "poss-export")
    assert server.client().models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'; this server has 'tiny'"):
        server.client().models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"model": "gpt"}, "model", "model_not_found", "there is no model 'gpt'; this server has 'tiny'"),
        (
            {"temperature": 3},
            "temperature",
            None,
            "temperature is 3: Input should be less than or equal to 2",
        ),
        ({"top_p": 0}, "top_p", None, "top_p is 0: Input should be greater than 0"),
        ({"temperature": 1e-9}, None, None, "temperature is 1e-09; it must be 0 (greedy), or from"),
        ({"n": 9}, "n", None, "9 answers are asked for, the limit is 8"),
        ({"stop": ""}, "stop", None, "stop is '': String should have at least 1 character"),
        ({"stop": ["a"] * 5}, "stop", None, "at most 4 items"),
        ({"max_tokens": 0, "max_completion_tokens": openai.omit}, "max_tokens", None, "max_tokens is 0"),
        ({"max_tokens": 5}, None, None, "max_tokens and max_completion_tokens differ"),
        ({"logprobs": True}, "logprobs", None, "logprobs is True: it is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", None, "logit_bias is {'5': 1}: it is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", None, "frequency_penalty is 0.5: it is not"),
        ({"tools": [{"type": "function"}]}, "tools", None, "it is not supported"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.type",
            None,
            "response_format.type is 'json_schema': it is not supported",
        ),
        ({"extra_body": {"temprature": 1}}, "temprature", None, "temprature is 1: there is no such field"),
        ({"messages": []}, "messages", None, "messages is []"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", None, "Input should be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            None,
            "messages.0.content.0.type is 'image_url': Input should be 'text'",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", None, "the prompt is empty"),
        (
            {"messages": [{"role": "user", "content": "<5> " * 99}]},
            "messages",
            "context_length_exceeded",
            "the bundle's capacity is 48",
        ),
        ({"extra_body": {"chat_template_kwargs": {"a": 1}}}, None, None, "has no variable 'a'"),
    ],
)
def test_what_cannot_be_answered(
    server: Served, fields: Any, param: str | None, code: str | None, message: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        chat(server, **fields)
    error: Any = caught.value
    assert error.status_code == (404 if code == "model_not_found" else 400)
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
    assert message in error.body["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": [5, 96]}, "the prompt holds token 96, the model has 96"),
        ({"prompt": []}, "prompt is []"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": ["<5>"] * 9}, "9 answers are asked for, the limit is 8"),
        ({"echo": True}, "echo is True: it is not supported"),
        ({"best_of": 2}, "best_of differs from n"),
        ({"logprobs": 0}, "logprobs is 0: it is not supported"),
    ],
)
def test_text_that_cannot_be_continued(server: Served, fields: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, **{"prompt": "<5>", **fields})
    assert message in str(caught.value)


def test_fields_that_change_no_answer_are_ignored(server: Served) -> None:
    fields: dict[str, Any] = {"user": "me", "store": False, "metadata": {"a": "b"}, "logprobs": False}
    fields |= {"frequency_penalty": 0, "presence_penalty": 0.0, "tools": [], "tool_choice": "none"}
    fields |= {"response_format": {"type": "text"}, "service_tier": "auto", "parallel_tool_calls": True}
    assert chat(server, **fields).choices[0].message.content == alone(server).text


def test_limits_of_tokens(serve: Serve) -> None:
    with serve(limits=Limits(prompt_tokens=5, new_tokens=7)) as server:
        assert complete(server, "<5> <9>", max_tokens=7).usage.completion_tokens == 7
        with pytest.raises(
            openai.BadRequestError, match="an answer of 8 tokens is asked for, the limit is 7"
        ):
            complete(server, "<5> <9>", max_tokens=8)
        with pytest.raises(openai.BadRequestError, match="the prompt has 6 tokens, the limit is 5"):
            complete(server, "<5> <9> <5> <9> <5> <9>", max_tokens=1)
        said: Any = [{"role": "user", "content": "<5>"}]
        assert chat(server, messages=said, max_completion_tokens=None).usage.completion_tokens == 7


def test_keys(serve: Serve) -> None:
    with serve(keys=Keys(frozenset({"secret", "other"}))) as server:
        for key in ("secret", "other"):
            assert [model.id for model in server.client(key).models.list()] == [MODEL]
        for key in ("secre", "secret2", "sécret", "Bearer secret"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                server.client(key).models.list()
        for path in ("health", "ready", "metrics"):
            assert read(server, path)


def test_a_model_without_a_chat_template(
    serve: Serve, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(server.bundle), "chats", False)
    with pytest.raises(openai.BadRequestError, match="no chat template; send text to /v1/completions"):
        chat(server)


def test_metrics(serve: Serve) -> None:
    with serve() as server:
        for _ in range(2):
            complete(server, "<5> <9>")
        with pytest.raises(openai.BadRequestError):
            complete(server, "<5> <9>", n=0)
        lines = read(server, "metrics").splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert figures['poss_export_requests_total{path="/v1/completions",status="200"}'] == "2.0"
    assert figures['poss_export_requests_total{path="/v1/completions",status="400"}'] == "1.0"
    assert figures["poss_export_prompt_tokens_total"] == "4.0"
    assert figures["poss_export_generated_tokens_total"] == "24.0"
    assert figures["poss_export_time_to_first_token_seconds_count"] == "2.0"
    assert figures["poss_export_request_seconds_count"] == "2.0"
    tau = 22 / float(figures["poss_export_rounds_total"])
    assert float(figures["poss_export_tau"]) == pytest.approx(tau)
    assert (figures["poss_export_waiting"], figures["poss_export_running"]) == ("0.0", "0.0")


def test_the_description_names_every_path(server: Served) -> None:
    described = json.loads(read(server, "openapi.json"))
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= described["paths"].keys()
    assert "messages" in described["components"]["schemas"]["ChatRequest"]["properties"]


def test_no_request_reads_files(server: Served) -> None:
    for path in ("../../etc/passwd", "v1/models/../../etc/passwd", "v1/models/%2e%2e%2fetc%2fpasswd"):
        with pytest.raises(HTTPError, match="404") as caught:
            read(server, path)
        caught.value.close()
