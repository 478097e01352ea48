"""Many answers of one bundle: taken in order, made by one thread, told of as they grow.

with open_bundle("smollm2") as bundle, Scheduler(bundle) as scheduler:
    ticket = scheduler.submit(ids, max_new_tokens=64, on_event=print)

What an answer says does not depend on what else is asked meanwhile.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from poss_export.errors import BusyError, InputError
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation, Stream
from poss_export.runtime.planning.planner import ADAPTIVE, Planning, WholeTrees
from poss_export.runtime.sampling import GREEDY, Sampling


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

    def __init__(self, stream: Stream, on_event: OnEvent) -> None:
        """Keep what makes the answer, and whom to tell."""
        self._stream, self._on_event = stream, on_event
        self._telling = threading.RLock()
        self._over = False

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

    def make(self) -> None:
        """Make the answer."""
        told = 0
        try:
            for text in self._stream:
                self.tell(Piece(text, tuple(self._stream.token_ids[told:])))
                told = len(self._stream.token_ids)
                if self.over:
                    return
            self.tell(Done(self._stream.result))
        except Exception as error:  # an engine's
            self.tell(Failed(error))
        finally:
            self._stream.close()


_ENDED = "has ended"


class Scheduler:
    """Makes the answers that are submitted, for as long as it is entered; its bundle is entered before.

    Threads may share it. `on_event` is called from the driver's thread and must return soon.
    """

    def __init__(self, bundle: Bundle, *, slots: int = 1, queue: int = 64) -> None:
        """Prepare to make `slots` answers at once while at most `queue` wait.

        Raises:
            InputError: a number is below 1, or the bundle has fewer slots.
        """
        if slots != 1:
            raise InputError(f"slots is {slots}; this bundle answers 1 prompt at a time")
        if queue < 1:
            raise InputError(f"queue is {queue}; it must be at least 1")
        self.slots, self.queue = slots, queue
        self.bundle = bundle
        self._changed = threading.Condition()
        self._waiting = deque[Ticket]()
        self._running: Ticket | None = None
        self._refuses: str | None = "has not begun"  # why nothing is taken
        self._driver = threading.Thread(target=self._drive, name="poss-export scheduler")

    def __enter__(self) -> Self:
        """Start the driver."""
        self._refuses = None
        self._driver.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what is asked for, and end the driver."""
        with self._changed:
            self._refuses = _ENDED
            left = [*([self._running] if self._running else ()), *self._waiting]
            self._waiting.clear()
            for ticket in left:
                ticket.tell(Failed(BusyError("the scheduler ended before the answer did")))
            self._changed.notify_all()
        self._driver.join()

    @property
    def running(self) -> int:
        """Answers in the making."""
        return int(self._running is not None)

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
        stream = Stream(
            bundle.target,
            None if target_only else bundle.drafter,
            bundle.text,
            "",
            ids,
            planner=WholeTrees if target_only else partial(bundle.planners.planner, planning),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
        )
        ticket = Ticket(stream, on_event)
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
            self._changed.wait_for(lambda: not self._waiting and self._running is None)

    def _drive(self) -> None:
        while (ticket := self._next()) is not None:
            ticket.make()

    def _next(self) -> Ticket | None:
        """Wait for the next answer to make; None when it is over."""
        with self._changed:
            self._running = None
            while self._running is None and self._refuses != _ENDED:
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._refuses == _ENDED)
                if self._waiting and not self._waiting[0].over:
                    self._running = self._waiting[0]
                if self._waiting:
                    self._waiting.popleft()
            return self._running
