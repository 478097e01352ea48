"""Answers that share calls: each is what it is alone, whatever else runs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.errors import BackendError, InputError
from poss_export.runtime.batch import _behind
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.planning.habit import Habit
from poss_export.runtime.planning.planner import ADAPTIVE
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.scheduler import Done, Event, Failed, Piece, Scheduler

SLOTS = 3
WAYS: list[dict[str, Any]] = [{}, {"planning": None}, {"target_only": True}]
SAMPLINGS = [GREEDY, Sampling(temperature=1.0, seed=3), Sampling(temperature=0.7, top_p=0.9, seed=11)]


@pytest.fixture(params=["shared", "static"])
def folder(request: pytest.FixtureRequest, bundle_of_form: Any, planned: Any) -> Path:
    """Return a bundle whose rounds are planned, of each cache form."""
    made: Path = planned(bundle_of_form(request.param))
    return made


@pytest.fixture
def alone(folder: Path) -> Iterator[Bundle]:
    with open_bundle(folder, threads=1) as opened:
        yield opened


@pytest.fixture
def together(folder: Path) -> Iterator[Bundle]:
    with open_bundle(folder, threads=1, slots=SLOTS) as opened:
        yield opened


class Asked:
    """An answer that was asked for at random."""

    def __init__(self, random: np.random.Generator) -> None:
        self.ids = random.integers(3, 90, random.integers(1, 30)).tolist()
        self.tokens, self.way = int(random.integers(1, 20)), int(random.integers(3))
        self.sampling = SAMPLINGS[random.integers(3)]
        self.after = int(random.integers(12))  # pieces of all answers before it is asked for
        self.cancelled = random.random() < 0.15
        self.events: list[Event] = []

    def submit(self, scheduler: Scheduler, on_event: Any) -> None:
        ticket = scheduler.submit(
            self.ids,
            max_new_tokens=self.tokens,
            sampling=self.sampling,
            on_event=lambda event: on_event(self, event),
            **WAYS[self.way],
        )
        if self.cancelled:
            ticket.cancel()


def run(scheduler: Scheduler, asked: list[Asked]) -> None:
    """Ask for all, each after so many pieces of the others, and wait for those that are not cancelled."""
    changed, pieces = threading.Condition(), 0
    left = {id(one) for one in asked if not one.cancelled}
    todo = sorted(asked, key=lambda one: one.after)

    def told(one: Asked, event: Event) -> None:
        nonlocal pieces
        with changed:
            one.events.append(event)
            pieces += 1
            if not isinstance(event, Piece):
                left.discard(id(one))
            changed.notify_all()

    for one in todo:
        with changed:
            changed.wait_for(lambda: pieces >= one.after or len(left) < SLOTS, timeout=0.05)  # noqa: B023
        one.submit(scheduler, told)
    with changed:
        assert changed.wait_for(lambda: not left, timeout=60)


@pytest.mark.parametrize("schedules", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_an_answer_does_not_depend_on_what_else_runs(schedules: int, alone: Bundle, together: Bundle) -> None:
    """Random schedules of prompts, lengths, samplings, ways to plan, arrivals and cancellations."""
    kept: dict[tuple[Any, ...], tuple[int, ...]] = {}
    random = np.random.default_rng(schedules)
    with Scheduler(together) as scheduler:
        for _ in range(schedules):
            asked = [Asked(random) for _ in range(random.integers(1, 9))]
            run(scheduler, asked)
            for one in (one for one in asked if not one.cancelled):
                assert isinstance(one.events[-1], Done), one.events
                found = one.events[-1].generation
                prompt = " ".join(f"<{token}>" for token in one.ids)
                key = (prompt, one.tokens, one.sampling)
                if key not in kept:
                    stream = alone.stream(
                        prompt,
                        raw=True,
                        max_new_tokens=one.tokens,
                        sampling=one.sampling,
                        target_only=True,
                    )
                    kept[key] = stream.run().token_ids
                assert found.token_ids == kept[key]
                assert "".join(e.text for e in one.events if isinstance(e, Piece)) == found.text
                told = [token for e in one.events if isinstance(e, Piece) for token in e.token_ids]
                assert tuple(told) == found.token_ids
        assert scheduler.running == scheduler.waiting == 0


def test_answers_are_made_at_once(together: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call has a piece of a prompt beside a tree of each other answer."""
    seen: list[int] = []
    forward_all = together.target.forward_all

    def forward(calls: Any) -> Any:
        seen.append(len(calls))
        return forward_all(calls)

    monkeypatch.setattr(together.target, "forward_all", forward)
    random = np.random.default_rng(1)
    asked = [Asked(random) for _ in range(3)]
    for one in asked:
        one.cancelled, one.after, one.tokens, one.ids = False, 0, 12, one.ids[:4]
    with Scheduler(together) as scheduler:
        seen.clear()
        run(scheduler, asked)
    assert max(seen) == 3
    assert len(seen) < 40


@pytest.mark.parametrize("way", WAYS[:2], ids=["planned", "whole trees"])
def test_trees_are_drawn_together(way: Any, together: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert together.drafter is not None
    monkeypatch.setattr(Habit, "drafts", lambda *_: True)  # whatever rounds cost on this machine
    monkeypatch.setattr(Habit, "tries", False)
    seen, propose_all = list[int](), together.drafter.propose_all

    def propose(calls: Any) -> Any:
        seen.append(len(calls))
        return propose_all(calls)

    random = np.random.default_rng(6)
    asked = [Asked(random) for _ in range(3)]
    for one in asked:
        one.cancelled, one.after, one.tokens, one.ids, one.way = False, 0, 12, one.ids[:4], WAYS.index(way)
    with Scheduler(together) as scheduler:
        monkeypatch.setattr(together.drafter, "propose_all", propose)
        run(scheduler, asked)
    assert max(seen) == 3


def test_prompts_are_read_in_pieces_beside_answers(
    alone: Bundle, together: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poss_export.runtime.batch.BESIDE", 5)
    random = np.random.default_rng(2)
    asked = [Asked(random) for _ in range(5)]
    for one in asked:
        one.cancelled, one.tokens, one.sampling = False, 10, GREEDY
        one.ids = random.integers(3, 90, 25).tolist()
    with Scheduler(together) as scheduler:
        run(scheduler, asked)
    for one in asked:
        prompt = " ".join(f"<{token}>" for token in one.ids)
        assert isinstance(one.events[-1], Done)
        expected = alone.generate(prompt, raw=True, max_new_tokens=10, target_only=True)
        assert one.events[-1].generation.token_ids == expected.token_ids


def test_an_engine_that_fails_fails_those_at_work_only(
    together: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward_all, broken = together.target.forward_all, threading.Event()

    def forward(calls: Any) -> Any:
        if broken.is_set():
            raise BackendError("no more memory")
        return forward_all(calls)

    random = np.random.default_rng(3)
    first, second = Asked(random), Asked(random)
    first.cancelled = second.cancelled = False
    with Scheduler(together) as scheduler:
        monkeypatch.setattr(together.target, "forward_all", forward)
        broken.set()
        run(scheduler, [first])
        assert isinstance(first.events[-1], Failed)
        broken.clear()
        run(scheduler, [second])
        assert isinstance(second.events[-1], Done)


@pytest.mark.parametrize(("slots", "message"), [(0, "must be 1 to"), (65, "must be 1 to")])
def test_slots_that_cannot_be(planned_bundle: Path, slots: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_bundle(planned_bundle, slots=slots)


def test_more_slots_than_the_bundle_was_opened_with(together: Bundle) -> None:
    with pytest.raises(InputError, match="was opened with 3"):
        Scheduler(together, slots=4)


def test_fewer_slots_are_used(together: Bundle) -> None:
    random = np.random.default_rng(4)
    asked = [Asked(random) for _ in range(4)]
    for one in asked:
        one.cancelled = False
    with Scheduler(together, slots=2) as scheduler:
        run(scheduler, asked)
    assert all(isinstance(one.events[-1], Done) for one in asked)


def test_a_stream_waits_for_the_scheduler(alone: Bundle, together: Bundle) -> None:
    expected = alone.generate("<5> <9>", raw=True, max_new_tokens=8)
    random = np.random.default_rng(5)
    asked = [Asked(random) for _ in range(6)]
    with Scheduler(together) as scheduler:
        worker = threading.Thread(target=run, args=(scheduler, asked))
        worker.start()
        found = together.generate("<5> <9>", raw=True, max_new_tokens=8, planning=ADAPTIVE)
        worker.join()
    assert found.token_ids == expected.token_ids
    assert all(one.cancelled or isinstance(one.events[-1], Done) for one in asked)


def test_what_is_measured_first_waits_for_a_stream(
    alone: Bundle, together: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Measuring empties the sessions, so it needs its turn as an answer does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = alone.generate("<5> <9>", raw=True, max_new_tokens=20)
    stream = together.stream("<5> <9>", raw=True, max_new_tokens=20)
    pieces = iter(stream)
    text = next(pieces)
    entered = threading.Event()

    def enter() -> None:
        with Scheduler(together):
            entered.set()

    worker = threading.Thread(target=enter)
    worker.start()
    entered.wait(0.5)
    text += "".join(pieces)
    worker.join(20)
    assert entered.is_set()
    assert (text, stream.result.token_ids) == (expected.text, expected.token_ids)


def test_what_is_paid_in_any_case_makes_nothing_cheap() -> None:
    """Candidates beside a prompt cost what they cost without: the time of its rows is not theirs to save."""
    table = [0.0, 10.0, 11.0, 12.0, 13.0]  # a row more costs as much everywhere
    for rows in (0, 1, 64):
        assert _behind(table, rows, 2)[2:] == pytest.approx(table[2:])
    steps = [0.0, 10.0, 10.0, 20.0, 20.0]  # or comes to the next step of kernels
    assert _behind(steps, 1, 1)[1:] == pytest.approx([10.0, 20.0, 20.0, 20.0])
