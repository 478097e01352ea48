"""One answer: its text as it grows, then its tokens and the figures of the run."""

import time
from collections import abc
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError, PromptError
from poss_export.runtime.loop import speculate
from poss_export.runtime.planning.planner import Planner, WholeTrees
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import PREFILL_CHUNK, DraftSession, Session, TargetSession
from poss_export.runtime.summary import Summary, TimedRound, summarise
from poss_export.runtime.transcript import FinishReason, Transcript
from poss_export.runtime.turns import Turns
from poss_export.runtime.verify import verifier
from poss_export.text import Text


@dataclass(frozen=True)
class Generation:
    """An answer and how it was made.

    `token_ids` ends with the stop token where there was one; `text` ends before it, or before the stop
    string. The first token is the prompt's; `accept_lengths` are the tokens that each round emitted after
    it, of the last round those that the answer still took; `summary` says what the rounds were. `chains`: no
    verified tree had branches. Seconds are wall-clock, without what the reader of a stream did between two
    pieces; the engines' share of the rounds is in `target_seconds` and `draft_seconds`.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    accept_lengths: tuple[int, ...]
    accepted_by_depth: tuple[int, ...]  # rounds that emitted a drafted token of depth 1, 2, ...
    chains: bool
    summary: Summary
    seconds: float  # all of it
    prefill_seconds: float  # until the first token
    target_seconds: float
    draft_seconds: float

    @property
    def rounds(self) -> int:
        """Calls of the target after the prompt's."""
        return len(self.accept_lengths)

    @property
    def tokens(self) -> int:
        """Tokens emitted."""
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Tokens emitted over all seconds, prefill included."""
        return self.tokens / self.seconds

    @property
    def tau(self) -> float:
        """Mean tokens emitted a round; 0 where the first token, which prefill gives, was all."""
        return (self.tokens - 1) / self.rounds if self.rounds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **asdict(self),
            "rounds": self.rounds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "tau": self.tau,
            "mean_acceptance_length": self.tau,
        }


class Answer:
    """An answer in the making: what becomes of its rounds, whoever makes them."""

    def __init__(
        self,
        text: Text,
        prompt_ids: abc.Sequence[int],
        capacity: int,
        *,
        prompt: str = "",
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: abc.Sequence[str] = (),
    ) -> None:
        """Check the request; `prompt` is only told in the result.

        Raises:
            InputError: a value cannot be used, or the prompt does not fit the capacity.
        """
        check_prompt(prompt_ids, capacity)
        self._prompt = prompt
        self._transcript = Transcript(text, max_new_tokens, (stop,) if isinstance(stop, str) else stop)
        ids = np.asarray(prompt_ids, dtype=np.int64)
        self.sequence = Sequence(ids, verifier(sampling), self._transcript)
        self._made = list[TimedRound]()  # the prompt's and all others
        self._seconds = self._prefill_seconds = 0.0
        self._begun = self._engines = (0.0, 0.0)  # seconds of target and drafter, until the prompt was read

    @property
    def token_ids(self) -> abc.Sequence[int]:
        """The tokens so far."""
        return self._transcript.token_ids

    def take(self, done: Round, since: float, engines: tuple[float, float]) -> str:
        """Take a round, the prompt's first; return the text that it adds.

        since: when its work began, on the clock of `time.perf_counter`. engines: seconds of target and
        drafter, counted from any time on.
        """
        before = len(self._transcript.token_ids)
        piece = self._transcript.add(done.tokens.tolist())
        seconds = time.perf_counter() - since
        self._seconds += seconds
        taken = len(self._transcript.token_ids) - before
        self._made.append(TimedRound(done, self.sequence.planner.plan, taken, seconds))
        self._engines = engines
        if before == 0:
            self._prefill_seconds, self._begun = self._seconds, engines
        return piece

    def finish(self) -> str:
        """Return the text that was held back, for no round follows."""
        return self._transcript.finish()

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The prompt's own first, each as it was verified, also what was not taken of the last."""
        return tuple(one.done for one in self._made)

    @property
    def timed(self) -> tuple[TimedRound, ...]:
        """Those behind the prompt's."""
        return tuple(self._made[1:])

    @property
    def result(self) -> Generation:
        """The answer and how it was made."""
        timed = self.timed
        target_seconds, draft_seconds = np.subtract(self._engines, self._begun).tolist()
        return Generation(
            prompt=self._prompt,
            text=self._transcript.text,
            token_ids=tuple(self._transcript.token_ids),
            finish_reason=self._transcript.finish_reason or "capacity",
            accept_lengths=tuple(one.taken for one in timed),
            accepted_by_depth=_by_depth([one.accepted for one in timed]),
            chains=all(done.tree.is_chain for done in self.rounds),
            summary=summarise(timed),
            seconds=self._seconds,
            prefill_seconds=self._prefill_seconds,
            target_seconds=target_seconds,
            draft_seconds=draft_seconds,
        )


class Stream:
    """An answer in the making: iterate for its text in pieces; then `result` and `rounds` are there.

    `rounds`: the prompt's own first, each as it was verified, also what was not taken of the last; `timed`:
    those behind the prompt's.
    It empties both sessions when the iteration begins, so they serve one stream at a time (`Turns`): one of
    another thread waits; one of the same thread ends this one, which then raises InputError.
    """

    result: Generation
    rounds: tuple[Round, ...]
    timed: tuple[TimedRound, ...]

    def __init__(
        self,
        target: TargetSession,
        drafter: DraftSession | None,
        text: Text,
        prompt: str,
        prompt_ids: abc.Sequence[int],
        *,
        planner: abc.Callable[[], Planner] = WholeTrees,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: abc.Sequence[str] = (),
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        """Check the request; a drafter of None proposes nothing. `planner` is made when the answer begins.

        Raises:
            InputError: a value cannot be used, or the prompt does not fit the capacity.
        """
        self._answer = Answer(
            text,
            prompt_ids,
            target.capacity,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
        )
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}; it must be at least 1")
        self._target, self._drafter = target, drafter
        self._planner, self._chunk = planner, prefill_chunk
        self._pieces = self._in_turn()

    def __iter__(self) -> abc.Iterator[str]:
        """Yield the text in pieces, at most one a round; a second iteration goes on where the first left."""
        return self._pieces

    def _in_turn(self) -> abc.Generator[str]:
        turns = self._target.turns
        turns.take(self)
        try:
            yield from self._rounds(turns)
        finally:
            turns.leave(self)

    def _rounds(self, turns: Turns) -> abc.Iterator[str]:
        answer = self._answer
        with turns.work(self):
            answer.sequence.planner = self._planner()  # it may use the sessions
            for session in self._sessions:
                session.reset()
        resumed = time.perf_counter()
        rounds = speculate(self._target, self._drafter, answer.sequence, self._chunk)
        while True:
            with turns.work(self):
                done = next(rounds, None)
            if done is None:
                break
            if piece := answer.take(done, resumed, engine_seconds(self._target, self._drafter)):
                yield piece
            if answer.sequence.ended:
                break
            resumed = time.perf_counter()
        if piece := answer.finish():
            yield piece
        self.rounds, self.timed, self.result = answer.rounds, answer.timed, answer.result

    def close(self) -> None:
        """Make no more of the answer, and let another have the sessions; there is no result."""
        self._pieces.close()

    def run(self) -> Generation:
        """Make what is left of the answer."""
        for _ in self:
            pass
        return self.result

    @property
    def token_ids(self) -> abc.Sequence[int]:
        """The tokens so far."""
        return self._answer.token_ids

    @property
    def prompt_ids(self) -> NDArray[np.int64]:
        """The ids of the prompt [length]."""
        return self._answer.sequence.prompt

    @property
    def _sessions(self) -> list[Session]:
        return [session for session in (self._target, self._drafter) if session is not None]


def engine_seconds(target: TargetSession, drafter: DraftSession | None) -> tuple[float, float]:
    """Return the time spent in each engine."""
    return target.engine_seconds, drafter.engine_seconds if drafter else 0.0


def _by_depth(drafted: abc.Sequence[int]) -> tuple[int, ...]:
    """Return how many rounds emitted at least 1, 2, ... drafted tokens."""
    return tuple(sum(count >= depth for count in drafted) for depth in range(1, max(drafted, default=0) + 1))


def check_prompt(prompt_ids: abc.Sequence[int], capacity: int) -> None:
    """Raise PromptError where a prompt is empty, or longer than the caches."""
    if not prompt_ids:
        raise PromptError("the prompt is empty; give at least one token of text")
    if len(prompt_ids) > capacity:
        raise PromptError(
            f"the prompt has {len(prompt_ids)} tokens, the bundle's capacity is {capacity}: "
            "shorten the prompt, or build with a larger capacity",
            options=("capacity",),
        )
