"""Where speculation must give the target's own tokens, and what counts as giving them.

In floating point it must, but for near-ties, which rounding decides: the farther ones the coarser the type.
A quantised target must where it was measured (`evaluation/widths.py`) that a row's logits do not depend on
what else is in the call. Beside other sequences it must where that was measured (`evaluation/beside.py`).
Where every bit is the same nothing excuses a difference; where little changes, near-ties as close as the
change do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from poss_export.config import Precision

NEAR_TIE = 1e-4  # of the two highest logits, in fp32: rounding decides between closer ones
# Of graphs in half precision: two steps of the type between 16 and 32, where the highest logits lie. On an
# H200, whose kernels go by the width of a call, answers parted at a gap of 0.012 in fp16.
_HALF_TIES: dict[Precision, float] = {"fp16": 2 / 64, "bf16": 2 / 8}
_CLOSEST = 1e-3  # the widest near-tie that is still called one


@dataclass(frozen=True)
class Beside:
    """The largest `difference` of logits of calls that up to so many `slots` share to those alone."""

    slots: int
    difference: float


@dataclass(frozen=True)
class Exactness:
    """What is claimed of a target's rows beside others in one call.

    `least_width`: tokens of a call from which on a row no longer depends on how many there are; None where it
    always does. `chain_tie`: of a chain of tokens, `tree_tie`: of a path between siblings: the largest gap
    between two logits that may be decided otherwise than by single steps; 0 where every bit is theirs, None
    where nothing is claimed. `beside_tie`: likewise, of a call that other sequences share, to that without.
    """

    least_width: int | None
    chain_tie: float | None
    tree_tie: float | None
    beside_tie: float | None = None

    @classmethod
    def measured(cls, widths: Mapping[str, Any] | None) -> "Exactness":
        """Return what the figures of `evaluation/widths.py` claim of a quantised target; None: nothing."""
        if not widths:
            return cls(1, chain_tie=None, tree_tie=None)
        if (least := widths["least_width"]) is None:
            return cls(None, chain_tie=None, tree_tie=None)
        # Attention adds up siblings in another order. Where that changed nothing, coarse steps hid it; where
        # they do not, they make it large.
        return cls(least, chain_tie=0.0, tree_tie=_tie(widths["siblings"]) or None)

    def beside(self, found: Beside | None) -> "Exactness":
        """Return it with what was found of calls that are shared; None: nothing."""
        return self if found is None else replace(self, beside_tie=_tie(found.difference))

    def claims(self, chain: bool, *, beside: bool = False) -> bool:
        """Return whether verifying must give the target's own tokens.

        `chain`: every tree was a chain; `beside`: other sequences shared its calls.
        """
        return self.tie(chain, beside=beside) is not None

    def tie(self, chain: bool, *, beside: bool = False) -> float | None:
        """Return how close a near-tie is, arguments as in `claims`; None where nothing is claimed."""
        alone = self.tree_tie if self.chain_tie is None or not chain else self.chain_tie
        if not beside:
            return alone
        return None if alone is None or self.beside_tie is None else max(alone, self.beside_tie)


def _tie(difference: float) -> float | None:
    """Return how close a near-tie is where logits may differ so; None where too many would be."""
    tie = 2 * difference  # one logit of two may rise by as much, and the other fall
    return tie if tie <= _CLOSEST else None


def floating(precision: Precision) -> Exactness:
    """Return what is claimed of a target in floating point."""
    tie = _HALF_TIES.get(precision, NEAR_TIE)
    return Exactness(1, chain_tie=tie, tree_tie=tie)
