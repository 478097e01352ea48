"""Many answers of one bundle: taken in order, made at once by one thread, told of as they grow.

with open_bundle("smollm2", slots=8) as bundle, Scheduler(bundle) as scheduler:
    ticket = scheduler.submit(ids, max_new_tokens=64, on_event=print)

What an answer says does not depend on what else is asked meanwhile.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from poss_export.errors import BusyError, InputError
from poss_export.runtime.batch import Batch
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Answer, Generation, engine_seconds
from poss_export.runtime.planning.planner import ADAPTIVE, Planner, Planning, WholeTrees
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sessions.base import DraftSession


@dataclass(frozen=True)
class Piece:
    """What an answer grew by: text that no later token changes, and the tokens that were emitted."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """The end of an answer; the `prompt` of the generation is empty, as only its ids were known."""

    generation: Generation


@dataclass(frozen=True)
class Failed:
    """The end of an answer that could not be made."""

    error: Exception


Event = Piece | Done | Failed
OnEvent = Callable[[Event], None]


class Ticket:
    """An answer that was asked for."""

    def __init__(
        self,
        answer: Answer,
        planner: Callable[[], Planner],
        drafter: DraftSession | None,
        on_event: OnEvent,
    ) -> None:
        """Keep the answer, what it is made with, and whom to tell."""
        self.answer, self.drafter = answer, drafter
        self._planner, self._on_event = planner, on_event
        self._telling = threading.RLock()
        self._over, self._told = False, 0  # tokens
        self._since = 0.0  # when the round in the making began

    def cancel(self) -> None:
        """Make no more of the answer after the round that is under way, and tell nothing more of it."""
        with self._telling:
            self._over = True

    @property
    def over(self) -> bool:
        """Whether nothing more will be told: the answer has ended, or nobody wants it."""
        return self._over

    def tell(self, event: Event) -> None:
        """Tell whoever asked, unless the answer is over; who fails to listen is told no more."""
        with self._telling:
            if self._over:
                return
            self._over = not isinstance(event, Piece)
            try:
                self._on_event(event)
            except Exception:  # theirs: the answers behind this one must be made
                self._over = True
                logging.getLogger(__name__).exception("a listener failed; its answer is cancelled")

    def begin(self) -> None:
        """Make its planner; its first round begins."""
        self.answer.sequence.planner = self._planner()
        self._since = time.perf_counter()

    def take(self, done: Round, engines: tuple[float, float], full: bool) -> None:
        """Tell what a round adds, and the end where there is no more; `full`: its slot is."""
        text = self.answer.take(done, self._since, engines)
        ended = full or self.answer.sequence.ended
        if ended:
            text += self.answer.finish()
        new = tuple(self.answer.token_ids[self._told :])
        if text or (ended and new):  # a stop token has no text
            self.tell(Piece(text, new))
            self._told += len(new)
        if ended:
            self.tell(Done(self.answer.result))
        self._since = time.perf_counter()


_ENDED = "has ended"


class Scheduler:
    """Makes the answers that are submitted, for as long as it is entered; its bundle is entered before.

    Threads may share it. `on_event` is called from the driver's thread and must return soon. Answers begin in
    the order in which they were asked for, as slots are free; meanwhile the bundle's own streams wait.
    """

    def __init__(self, bundle: Bundle, *, slots: int | None = None, queue: int = 64) -> None:
        """Prepare to make `slots` answers at once, None: as many as the bundle can, while `queue` wait.

        Raises:
            InputError: a number is below 1, or the bundle has fewer slots.
        """
        has = bundle.target.slots
        slots = has if slots is None else slots
        if not 1 <= slots <= has:
            raise InputError(
                f"slots is {slots}; this bundle was opened with {has}: open it with more, or ask for fewer",
                options=("slots",),
            )
        if queue < 1:
            raise InputError(f"queue is {queue}; it must be at least 1")
        self.slots, self.queue, self.bundle = slots, queue, bundle
        self._batch = Batch(bundle.target, bundle.planners, slots)
        self._changed = threading.Condition()
        self._waiting, self._running = deque[Ticket](), list[Ticket]()
        self._refuses: str | None = "has not begun"  # why nothing is taken
        self._driver = threading.Thread(target=self._drive, name="poss-export scheduler")

    def __enter__(self) -> Self:
        """Measure what rounds cost, where that is not known, and start the driver."""
        with self.bundle.target.turns.turn(self):
            self.bundle.planners.prepare(self.slots)
        self._refuses = None
        self._driver.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what is asked for, and end the driver."""
        with self._changed:
            self._refuses = _ENDED
            for ticket in (*self._running, *self._waiting):
                ticket.tell(Failed(BusyError("the scheduler ended before the answer did")))
            self._waiting.clear()
            self._changed.notify_all()
        self._driver.join()

    @property
    def running(self) -> int:
        """Answers in the making."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that are asked for and not begun."""
        with self._changed:
            return sum(not ticket.over for ticket in self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the driver runs."""
        return self._driver.is_alive()

    @property
    def accepts(self) -> bool:
        """Whether it takes work, as soon as there is room in the queue."""
        return self._refuses is None and self.alive

    def submit(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        planning: Planning | None = ADAPTIVE,
        target_only: bool = False,
        on_event: OnEvent,
    ) -> Ticket:
        """Ask for an answer behind the prompt of these ids; arguments as in `Bundle.stream`.

        `on_event` is told each piece of the answer, then that it is done or has failed; nothing more after
        `Ticket.cancel`. It is called from another thread.

        Raises:
            BusyError: the queue is full, or no work is taken any more.
            PromptError: the prompt is empty or too long.
            InputError: another value cannot be used.
        """
        bundle = self.bundle
        answer = Answer(
            bundle.text,
            ids,
            bundle.target.capacity,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
        )
        planner = WholeTrees if target_only else partial(bundle.planners.planner, planning)
        ticket = Ticket(answer, planner, None if target_only else bundle.drafter, on_event)
        with self._changed:
            if self._refuses is not None:
                raise BusyError(f"the scheduler {self._refuses}: it takes no prompts")
            if self.waiting >= self.queue:
                raise BusyError(f"{self.queue} prompts are waiting, which is the limit; ask again later")
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def drain(self) -> None:
        """Take no more work, and wait for the answers that were asked for."""
        with self._changed:
            self._refuses = "is draining"
            self._changed.wait_for(lambda: not self._waiting and not self._running)

    def _drive(self) -> None:
        turns = self.bundle.target.turns
        while self._wait():
            turns.take(self)
            try:
                with turns.work(self):
                    self._reset()
                while self._admit():
                    with turns.work(self):
                        self._round()
            finally:
                turns.leave(self)

    def _wait(self) -> bool:
        """Wait for work; return whether there will be more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._refuses == _ENDED)
            return self._refuses != _ENDED

    def _admit(self) -> bool:
        """Retire what is over, let others begin where slots are free; return whether any is at work."""
        with self._changed:
            for ticket in [ticket for ticket in self._running if ticket.over]:
                self._running.remove(ticket)
                self._batch.retire(ticket.answer.sequence)
            while self._waiting and self._batch.has_room:
                ticket = self._waiting.popleft()
                if ticket.over:
                    continue
                try:
                    ticket.begin()
                except Exception as error:
                    ticket.tell(Failed(error))
                    continue
                self._batch.admit(ticket.answer.sequence, ticket.drafter)
                self._running.append(ticket)
            self._changed.notify_all()
            return bool(self._running)

    def _round(self) -> None:
        """Make a round of all that are at work, and tell of it."""
        try:
            rounds = self._batch.step()
        except Exception as error:  # an engine's: nothing is known of what it left in the caches
            for ticket in self._running:
                ticket.tell(Failed(error))
            return
        engines = engine_seconds(self.bundle.target, self.bundle.drafter)
        for ticket in self._running:
            if (done := rounds.get(ticket.answer.sequence)) is not None:
                full = not self.bundle.target.room(ticket.answer.sequence.slot)
                ticket.take(done, engines, full)

    def _reset(self) -> None:
        for session in (self.bundle.target, self.bundle.drafter):
            if session is not None:
                session.reset()
