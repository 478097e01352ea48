"""Where speculation must give the target's own tokens, and what counts as giving them.

In floating point it must, but for near-ties, which rounding decides. A quantised target must where it was
measured (`evaluation/widths.py`) that a row's logits do not depend on what else is in the call. Where every
bit is the same nothing excuses a difference; where little changes, near-ties as close as the change do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEAR_TIE = 1e-4  # of the two highest logits, in fp32: rounding decides between closer ones
_CLOSEST = 1e-3  # the widest near-tie that is still called one


@dataclass(frozen=True)
class Exactness:
    """What is claimed of a target's rows beside others in one call.

    `least_width`: tokens of a call from which on a row no longer depends on how many there are; None where it
    always does. `chain_tie`: of a chain of tokens, `tree_tie`: of a path between siblings: the largest gap
    between two logits that may be decided otherwise than by single steps; 0 where every bit is theirs, None
    where nothing is claimed.
    """

    least_width: int | None
    chain_tie: float | None
    tree_tie: float | None

    @classmethod
    def measured(cls, widths: Mapping[str, Any] | None) -> "Exactness":
        """Return what the figures of `evaluation/widths.py` claim of a quantised target; None: nothing."""
        if not widths:
            return cls(1, chain_tie=None, tree_tie=None)
        if (least := widths["least_width"]) is None:
            return cls(None, chain_tie=None, tree_tie=None)
        tie = 2 * widths["siblings"]  # one logit of two may rise by as much, and the other fall
        # Attention adds up siblings in another order. Where that changed nothing, coarse steps hid it; where
        # they do not, they make it large.
        return cls(least, chain_tie=0.0, tree_tie=tie if 0 < tie <= _CLOSEST else None)

    def claims(self, chain: bool) -> bool:
        """Return whether verifying must give the target's own tokens; `chain`: every tree was a chain."""
        return self.tie(chain) is not None

    def tie(self, chain: bool) -> float | None:
        """Return how close a near-tie is, for chains alone or for any tree; None where nothing is claimed."""
        return self.tree_tie if self.chain_tie is None or not chain else self.chain_tie


FLOATING = Exactness(1, chain_tie=NEAR_TIE, tree_tie=NEAR_TIE)
