"""Whose turn it is: a bundle's sessions serve one answer at a time, whatever threads ask."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from poss_export.errors import InputError


class Turns:
    """Gives the sessions to one answer after the other.

    An answer waits for one of another thread. One that its own thread began and left unfinished has lost its
    turn: it cannot go on.
    """

    def __init__(self) -> None:
        """Begin with nobody's turn."""
        self._changed = threading.Condition()
        self._working = threading.Lock()
        self._holder: object | None = None
        self._thread = 0

    def take(self, answer: object) -> None:
        """Wait until no other thread's answer has the sessions, and have them."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None or self._thread == me)
            self._holder, self._thread = answer, me

    def leave(self, answer: object) -> None:
        """Let another answer have the sessions; nothing happens where one has them already."""
        with self._changed:
            if self._holder is answer:
                self._holder = None
                self._changed.notify()

    @contextmanager
    def work(self, answer: object) -> Iterator[None]:
        """Use the sessions within; nobody else does meanwhile.

        Raises:
            InputError: the answer has lost its turn.
        """
        with self._working:
            if self._holder is not answer:
                raise InputError(
                    "another answer began before this one had ended, and the bundle answers one at a time: "
                    "read a stream to its end, or open the bundle twice"
                )
            yield

    @contextmanager
    def turn(self, answer: object) -> Iterator[None]:
        """Wait for a turn, use the sessions within, and leave them."""
        self.take(answer)
        try:
            with self.work(answer):
                yield
        finally:
            self.leave(answer)
