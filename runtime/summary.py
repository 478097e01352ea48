"""What the rounds of an answer were, in sum, and what was expected of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from poss_export.runtime.planning.planner import Plan
from poss_export.runtime.round import Round

Kind = Literal["plain", "lookup", "chain", "tree"]
IN_VAIN = 24  # drafting rounds without one accepted token that are no chance any more


@dataclass(frozen=True)
class TimedRound:
    """A round of an answer: what was planned, what the answer took of it, and how long it took."""

    done: Round
    plan: Plan | None
    taken: int  # tokens: of the last round those that the answer still took
    seconds: float

    @property
    def kind(self) -> Kind:
        """What was verified: a root alone, candidates without a draft, a drafted chain or tree."""
        drafted = self.plan is None or self.plan.drafted
        if len(self.done.tree) == 1:
            return "plain"
        if not drafted:
            return "lookup"
        return "chain" if self.done.tree.is_chain else "tree"

    @property
    def accepted(self) -> int:
        """Proposed tokens that the answer took."""
        return min(self.taken, self.done.accepted)


@dataclass(frozen=True)
class Summary:
    """Rounds counted, in the names that serving tools use.

    `rounds` are counted by kind. `acceptance_histogram` counts them by proposed tokens that were accepted,
    from 0 on. `expected_seconds` is by the table of costs; None where rounds were not planned.
    """

    rounds: dict[Kind, int]
    mean_width: float  # rows that a round verified
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    draft_acceptance_rate: float
    acceptance_histogram: tuple[int, ...]
    expected_seconds: float | None
    drafts_in_vain: bool  # many rounds drafted, and nothing of it was ever accepted


def summarise(made: Sequence[TimedRound]) -> Summary:
    """Return what the rounds behind the prompt's were."""
    proposed = sum(len(one.done.tree) - 1 for one in made)
    accepted = Counter(one.accepted for one in made)
    taken = sum(one.accepted for one in made)
    plans = [one.plan for one in made if one.plan is not None]
    drafted = [one for one in made if one.kind in ("chain", "tree")]
    return Summary(
        rounds=dict(Counter(one.kind for one in made)),
        mean_width=sum(len(one.done.tree) for one in made) / max(len(made), 1),
        num_draft_tokens=proposed,
        num_accepted_draft_tokens=taken,
        draft_acceptance_rate=taken / max(proposed, 1),
        acceptance_histogram=tuple(accepted[count] for count in range(max(accepted, default=-1) + 1)),
        expected_seconds=sum(plan.milliseconds for plan in plans) / 1000 if plans else None,
        drafts_in_vain=len(drafted) >= IN_VAIN and not any(one.accepted for one in drafted),
    )
