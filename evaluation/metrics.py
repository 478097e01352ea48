"""What is counted of answers, each figure once, with its definition.

A round emits the tokens that it accepted and one more, which the target itself says: a + 1 where papers count
a accepted tokens. The first token of an answer comes from prefill and belongs to no round.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, get_args

from poss_export.runtime.generation import Generation
from poss_export.runtime.summary import Kind


class Answer(Protocol):
    """An answer of any engine; a `Generation` is one."""

    @property
    def tokens(self) -> int:
        """Tokens emitted."""

    @property
    def rounds(self) -> int:
        """Calls of the target after prefill."""

    @property
    def seconds(self) -> float:
        """All of it."""

    @property
    def prefill_seconds(self) -> float:
        """Until the first token."""

    @property
    def target_seconds(self) -> float:
        """Of the rounds, in the target."""

    @property
    def draft_seconds(self) -> float:
        """Of the rounds, in the drafter."""


def pooled_tau(answers: Sequence[Answer]) -> float:
    """Return the mean of tokens emitted a round, over all rounds of all answers (Spec-Bench); or 0."""
    return _decoded(answers) / _rounds(answers)


def mean_tau(answers: Sequence[Answer]) -> float | None:
    """Return the mean of the answers' own tau (PosS); None where no answer has a round."""
    own = [pooled_tau([answer]) for answer in answers if answer.rounds]
    return statistics.mean(own) if own else None


def rounds_by_depth(answers: Sequence[Generation], depth: int | None = None) -> list[int]:
    """Return how many rounds emitted a drafted token of depth 0 (all rounds), 1, ... up to `depth`.

    Without `depth` up to the deepest of any answer. The last round counts what the answer's end left of it.
    """
    if depth is None:
        depth = max((len(answer.accepted_by_depth) for answer in answers), default=0)
    counts = [(answer.rounds, *answer.accepted_by_depth) for answer in answers]
    return [sum(count[d] for count in counts if d < len(count)) for d in range(depth + 1)]


def acceptance(answers: Sequence[Generation], depth: int | None = None) -> list[float]:
    """Return, for depths 1, 2, ..., the share of all rounds that accepted a token there."""
    rounds, *accepted = rounds_by_depth(answers, depth)
    return [count / max(rounds, 1) for count in accepted]


def alpha(answers: Sequence[Generation], depth: int) -> list[float | None]:
    """Return, for depths 1 .. `depth`, rounds that accepted d tokens or more over those with d - 1 or more.

    None where no round came so far.
    """
    reached = rounds_by_depth(answers, depth)
    return [reached[d] / reached[d - 1] if reached[d - 1] else None for d in range(1, depth + 1)]


def rounds_by_kind(answers: Sequence[Generation]) -> dict[Kind, int]:
    """Return how many rounds were of each kind that occurs."""
    kinds = sum((Counter(answer.summary.rounds) for answer in answers), Counter[Kind]())
    return {kind: kinds[kind] for kind in get_args(Kind) if kind in kinds}


def tokens_per_second(answers: Sequence[Answer]) -> float:
    """Return all tokens over all seconds, prefill included."""
    return sum(answer.tokens for answer in answers) / sum(answer.seconds for answer in answers)


def decode_speed(answers: Sequence[Answer]) -> float:
    """Return tokens/s without prefill: all tokens but the first ones over all seconds after them (FSPAD)."""
    return _decoded(answers) / max(sum(a.seconds - a.prefill_seconds for a in answers), 1e-9)


def prefill_speed(answers: Sequence[Answer], prompt_tokens: int) -> float:
    """Return tokens/s of reading prompts of so many tokens in all, until the first token of each answer."""
    return prompt_tokens / sum(answer.prefill_seconds for answer in answers)


def round_parts(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the milliseconds of a mean round: `round`, and of it `target`, `draft` and `outside` both."""
    rounds = _rounds(answers)
    whole = 1000 * sum(answer.seconds - answer.prefill_seconds for answer in answers) / rounds
    target = 1000 * sum(answer.target_seconds for answer in answers) / rounds
    draft = 1000 * sum(answer.draft_seconds for answer in answers) / rounds
    return {"round": whole, "target": target, "draft": draft, "outside": whole - target - draft}


def _decoded(answers: Sequence[Answer]) -> int:
    return sum(answer.tokens - 1 for answer in answers)


def _rounds(answers: Sequence[Answer]) -> int:
    return max(sum(answer.rounds for answer in answers), 1)
