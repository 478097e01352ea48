"""A timed greedy answer, and how an engine notes the time of its tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A greedy answer; a stop token, where there was one, is its last token."""

    token_ids: list[int]
    prefill_seconds: float  # until the first token
    seconds: float  # until the last token, prefill included
    rounds: int  # calls of the target after prefill
    target_seconds: float = 0.0  # of the rounds; peers do not tell
    draft_seconds: float = 0.0
    chains: bool = True  # every tree that was verified was a chain

    @property
    def tokens(self) -> int:
        """Tokens emitted."""
        return len(self.token_ids)


Engine = Callable[[list[int], int], Answer]  # ids and the most new tokens to an answer


class Clock:
    """Notes the time of every token."""

    def __init__(self) -> None:
        """Start."""
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, _token: Any) -> None:
        """Note a token."""
        self.times.append(time.perf_counter() - self.start)

    def answer(self, tokens: list[int], rounds: int | None = None) -> Answer:
        """Return the answer of `tokens`; without `rounds` every round is one token."""
        times = self.times[-len(tokens) :]
        return Answer(tokens, times[0], times[-1], len(tokens) - 1 if rounds is None else rounds)
