"""Clients that break off, send nonsense or too much, and a server that is told to end."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.runtime.scheduler import Scheduler
from poss_export.server import guard
from poss_export.server.metrics import Metrics
from poss_export.server.replies import stream_reply
from poss_export.server.settings import Keys, Limits, Settings
from tests.fixtures.gate import Gate
from tests.server.conftest import MODEL, Serve, Served

PATH = "/v1/completions"
ASKED = {"model": MODEL, "prompt": "<5> <9>", "temperature": 0, "max_tokens": 40}


def post(server: Served, body: bytes | str, **headers: str) -> tuple[int, Any, Any]:
    """Return status, headers and JSON of what the server says to a body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())
    finally:
        connection.close()


def error_of(server: Served, body: bytes | str, **headers: str) -> tuple[int, str]:
    status, _, said = post(server, body, **headers)
    return status, said["error"]["message"]


def connect(server: Served, **asked: Any) -> socket.socket:
    """Return a connection that has asked for an answer."""
    body = json.dumps({**ASKED, **asked})
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_slot(
    server: Served, gate: Callable[..., Gate], stream: bool
) -> None:
    standing = gate(server.bundle)
    running = connect(server, stream=stream)
    assert standing.begun.wait(20)
    waiting = connect(server, stream=stream)
    wait_for(lambda: server.scheduler.waiting == 1)
    for connection in (waiting, running):
        connection.close()
    wait_for(lambda: server.scheduler.waiting == 0)
    time.sleep(0.05)  # until the server has read that the other is gone, too
    standing.open.set()
    server.wait_until_idle()
    assert standing.calls == 1  # the prompt's, which was under way


def test_a_body_half_sent(server: Served, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode() + b'{"model"')
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode() + b'{"model"')
        assert b"408 Request Timeout" in connection.recv(4096)
    assert post(server, json.dumps(ASKED))[0] == 200


def test_long_bodies(serve: Serve) -> None:
    with serve(limits=Limits(body=1000)) as server:
        told = (413, "the body has more than 1000 bytes, which is the limit")
        for length in (1001, 10_000_000):
            assert error_of(server, b" " * length) == told
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", PATH, iter([b" "] * 2000), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 413
        connection.close()
        assert post(server, json.dumps(ASKED))[0] == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON: EOF"),
        (b"{", "the body is not JSON: EOF"),
        (b'{"model": "tiny", "prompt": "\xff"}', "the body is not JSON: invalid unicode"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "the body is not JSON: "),
        (b"[" * 100_000, "the body is not JSON: recursion limit"),
        (b"1" * 10_000, ""),
        (b"[]", "Input should be"),
        (b"null", "Input should be"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "temperature is nan"),
        (b'{"model": "tiny", "prompt": "a", "seed": 1e400}', "seed is inf"),
        (b'{"model": "\\u0000", "prompt": "a"}', "there is no model"),
    ],
)
def test_bodies_that_are_no_request(server: Served, body: bytes, message: str) -> None:
    status, said = error_of(server, body)
    assert status in (400, 404)
    assert message in said


def test_other_types_methods_and_paths(server: Served) -> None:
    status, said = error_of(server, json.dumps(ASKED), **{"Content-Type": "text/plain"})
    assert (status, "send `Content-Type: application/json`" in said) == (415, True)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for method, path, status in (("GET", PATH, 405), ("POST", "/v1/other", 404), ("PUT", "/health", 405)):
        connection.request(method, path, b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == status
        assert json.loads(response.read())["error"]["type"] == "invalid_request_error"
    connection.close()


def test_a_full_queue_says_when_to_come_again(serve: Serve, gate: Callable[..., Gate]) -> None:
    with serve(queue=1) as server:
        standing = gate(server.bundle)
        running = connect(server)
        assert standing.begun.wait(20)
        waiting = connect(server)
        wait_for(lambda: server.scheduler.waiting == 1)
        status, headers, said = post(server, json.dumps(ASKED))
        assert (status, said["error"]["type"], said["error"]["code"]) == (
            429,
            "rate_limit_error",
            "server_busy",
        )
        assert int(headers["Retry-After"]) >= 1
        standing.open.set()
        for connection in (running, waiting):
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.close()


def test_of_several_answers_all_or_none_are_asked(serve: Serve, gate: Callable[..., Gate]) -> None:
    with serve(queue=3) as server:
        standing = gate(server.bundle)
        running = connect(server)
        assert standing.begun.wait(20)
        waiting = connect(server, n=2)
        wait_for(lambda: server.scheduler.waiting == 2)
        assert post(server, json.dumps({**ASKED, "n": 2}))[0] == 429
        wait_for(lambda: server.scheduler.waiting == 2)
        standing.open.set()
        for connection in (running, waiting):
            connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_time_ends_a_request(serve: Serve, gate: Callable[..., Gate], stream: bool) -> None:
    with serve(limits=Limits(seconds=0.2)) as server:
        standing = gate(server.bundle)
        with connect(server, stream=stream) as connection:
            text = b""
            while b"the answer took longer than 0.2 s" not in text:
                more = connection.recv(4096)
                assert more
                text += more
            assert (b" 200 OK" in text) == stream
            assert stream or b" 504 Gateway Timeout" in text
        standing.open.set()
        server.wait_until_idle()
        assert standing.calls == 1


def test_an_engine_that_fails(server: Served, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(server.bundle.target, "forward_all", fails)
        status, said = error_of(server, json.dumps(ASKED))
        assert (status, said) == (500, "the server failed on this request; its log says why")
    assert "out of order" in caplog.text
    assert post(server, json.dumps(ASKED))[0] == 200


def test_readiness(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)

        def status(path: str) -> int:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status

        assert (status("/health"), status("/ready")) == (200, 200)
        server.scheduler.drain()
        assert (status("/health"), status("/ready")) == (200, 503)
        assert post(server, json.dumps(ASKED))[2]["error"]["code"] == "shutting_down"
        monkeypatch.setattr(Scheduler, "alive", False)
        assert (status("/health"), status("/ready")) == (503, 503)
        connection.close()


def test_a_wrong_key_is_refused_before_the_body(serve: Serve) -> None:
    with serve(keys=Keys(frozenset({"secret"}))) as server:
        head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head.encode())
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"www-authenticate: Bearer" in answer


def test_what_is_left_when_draining_takes_too_long(serve: Serve, gate: Callable[..., Gate]) -> None:
    with serve(drain_seconds=0.2) as server:
        standing = gate(server.bundle)
        streamed, whole = connect(server, stream=True), connect(server)
        assert standing.begun.wait(20)
        wait_for(lambda: server.scheduler.waiting == 1)
        server.server.should_exit = True
        for connection, status in ((streamed, b" 200 OK"), (whole, b" 503 Service Unavailable")):
            text = b""
            while part := connection.recv(4096):
                text += part
            connection.close()
            assert status in text
            assert b'"the server is shutting down", "type": "server_error"' in text
        standing.open.set()


def test_sigterm_lets_answers_end(chats: Path) -> None:
    command = "from poss_export.cli.main import main; main()"
    arguments = ["serve", str(chats), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("serving 'tiny' at http://127.0.0.1:")
    port = int(line.rpartition(":")[2].partition("/")[0])
    connections = []
    for _ in range(8):
        body = json.dumps({**ASKED, "stream": True})
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        connections.append(connection)
    responses = [connection.getresponse() for connection in connections]
    process.send_signal(signal.SIGTERM)
    texts = [response.read().decode() for response in responses]
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert len({text.count('"finish_reason": "length"') for text in texts}) == 1
    assert process.wait(20) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    for connection in connections:
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=20)


def test_a_client_that_does_not_read(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_TAKEN_SECONDS", 0.05)
    settings = Settings(MODEL)
    metrics = Metrics(server.scheduler)
    ended = []

    async def events() -> AsyncIterator[str]:
        try:
            while True:
                yield "data: a\n\n"
        finally:
            ended.append(True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await stream_reply(events())(scope, receive, send)

    async def receive() -> Any:
        await asyncio.sleep(20)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(20)

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": []}
    asyncio.run(guard.Guard(app, settings, metrics, {"/health"})(scope, receive, send))
    assert ended == [True]
    assert b'poss_export_requests_total{path="/health",status="499"} 1.0' in metrics.expose()
