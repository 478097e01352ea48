import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poss_export.errors import BusyError, InputError, PromptError
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.scheduler import Done, Event, Failed, Piece, Scheduler
from tests.fixtures.gate import Gate

IDS = [5, 9, 11]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as opened:
        yield opened


class Listener:
    """Keeps what it is told of one answer."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self.ended.set()

    @property
    def end(self) -> Event:
        assert self.ended.wait(20)
        return self.events[-1]

    @property
    def generation(self) -> Any:
        assert isinstance(self.end, Done)
        return self.end.generation


@pytest.fixture
def gate(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(bundle, monkeypatch)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3)])
def test_answers_are_those_of_the_bundle_alone(bundle: Bundle, sampling: Sampling) -> None:
    asked = [("<5> <9>", 20), ("<7>", 9), ("<11> <12> <13>", 30), ("<5> <9>", 20)]
    alone = [bundle.generate(p, raw=True, max_new_tokens=n, sampling=sampling) for p, n in asked]
    told = [Listener() for _ in asked]
    with Scheduler(bundle) as scheduler:
        for (prompt, tokens), listener in zip(asked, told, strict=True):
            given = bundle.encode(prompt, raw=True)
            scheduler.submit(given, max_new_tokens=tokens, sampling=sampling, on_event=listener)
        answers = [listener.generation for listener in told]
    assert [a.token_ids for a in answers] == [a.token_ids for a in alone]
    for answer, listener in zip(answers, told, strict=True):
        pieces = [event for event in listener.events if isinstance(event, Piece)]
        assert "".join(piece.text for piece in pieces) == answer.text
        ids = [token for piece in pieces for token in piece.token_ids]
        assert ids == [*answer.token_ids[: len(ids)]]


def test_a_full_queue_refuses(bundle: Bundle, gate: Gate) -> None:
    first, *others = (Listener() for _ in range(4))
    with Scheduler(bundle, queue=2) as scheduler:
        scheduler.submit(IDS, max_new_tokens=4, on_event=first)
        assert gate.begun.wait(20)
        tickets = [scheduler.submit(IDS, max_new_tokens=4, on_event=one) for one in others[:2]]
        assert (scheduler.running, scheduler.waiting) == (1, 2)
        with pytest.raises(BusyError, match="2 prompts are waiting, which is the limit"):
            scheduler.submit(IDS, max_new_tokens=4, on_event=others[2])
        tickets[0].cancel()
        assert scheduler.waiting == 1
        scheduler.submit(IDS, max_new_tokens=4, on_event=others[2])
        gate.open.set()
        assert others[2].generation.token_ids == first.generation.token_ids
    assert others[0].events == []


def test_a_cancelled_answer_ends_within_a_round(bundle: Bundle, gate: Gate) -> None:
    first, second = Listener(), Listener()
    with Scheduler(bundle) as scheduler:
        ticket = scheduler.submit(IDS, max_new_tokens=40, on_event=first)
        assert gate.begun.wait(20)
        ticket.cancel()
        scheduler.submit(IDS, max_new_tokens=1, on_event=second)
        gate.open.set()
        assert second.generation.tokens == 1
    assert first.events == []
    assert gate.calls == 2  # the prompt's of either


def test_an_engine_that_fails_ends_one_answer(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Listener(), Listener()
    forward, broken = bundle.target.forward_all, [True]

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        if broken.pop() if broken else False:
            raise RuntimeError("out of order")
        return forward(*args, **kwargs)

    monkeypatch.setattr(bundle.target, "forward_all", fails_once)
    with Scheduler(bundle) as scheduler:
        scheduler.submit(IDS, max_new_tokens=4, on_event=first)
        scheduler.submit(IDS, max_new_tokens=4, on_event=second)
        assert isinstance(first.end, Failed)
        assert str(first.end.error) == "out of order"
        assert second.generation.tokens == 4


def test_a_listener_that_fails_is_told_no_more(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    calls = list[Event]()

    def fails(event: Event) -> None:
        calls.append(event)
        raise ValueError("deaf")

    second = Listener()
    with Scheduler(bundle) as scheduler:
        scheduler.submit(IDS, max_new_tokens=9, on_event=fails)
        scheduler.submit(IDS, max_new_tokens=4, on_event=second)
        assert second.generation.tokens == 4
    assert len(calls) == 1
    assert "a listener failed" in caplog.text


def test_leaving_ends_answers(bundle: Bundle, gate: Gate) -> None:
    told = [Listener() for _ in range(2)]
    scheduler = Scheduler(bundle)
    with scheduler:
        for listener in told:
            scheduler.submit(IDS, max_new_tokens=40, on_event=listener)
        assert gate.begun.wait(20)
        threading.Timer(0.05, gate.open.set).start()
    for listener in told:
        assert [type(event) for event in listener.events] == [Failed]
        assert isinstance(listener.end, Failed)
        assert isinstance(listener.end.error, BusyError)
    assert not scheduler.accepts
    with pytest.raises(BusyError, match="the scheduler has ended"):
        scheduler.submit(IDS, max_new_tokens=1, on_event=told[0])


def test_draining_refuses_and_finishes(bundle: Bundle, gate: Gate) -> None:
    told = [Listener() for _ in range(3)]
    with Scheduler(bundle) as scheduler:
        for listener in told[:2]:
            scheduler.submit(IDS, max_new_tokens=5, on_event=listener)
        drain = threading.Thread(target=scheduler.drain)
        drain.start()
        while scheduler.accepts:
            pass
        with pytest.raises(BusyError, match="is draining"):
            scheduler.submit(IDS, max_new_tokens=1, on_event=told[2])
        gate.open.set()
        drain.join(20)
        assert not drain.is_alive()
        assert [listener.generation.tokens for listener in told[:2]] == [5, 5]


def test_values_that_cannot_be_used(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="queue is 0"):
        Scheduler(bundle, queue=0)
    with pytest.raises(InputError, match="slots is 0"):
        Scheduler(bundle, slots=0)
    with Scheduler(bundle) as scheduler:
        with pytest.raises(PromptError, match="the prompt is empty"):
            scheduler.submit([], max_new_tokens=1, on_event=print)
        with pytest.raises(InputError, match="max_new_tokens is 0"):
            scheduler.submit(IDS, max_new_tokens=0, on_event=print)
