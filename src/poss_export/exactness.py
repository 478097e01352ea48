"""Where speculation must give the target's own tokens, and what counts as giving them.

In floating point it must, but for near-ties, which rounding decides. A quantised target must where it was
measured (`evaluation/widths.py`) that a row's logits do not depend on what else is in the call: there every
bit is the same, and nothing excuses a difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEAR_TIE = 1e-4  # of the two highest logits, in fp32: rounding decides between closer ones


@dataclass(frozen=True)
class Exactness:
    """What is claimed of a target's rows beside others in one call.

    `least_width`: tokens of a call from which on a row no longer depends on how many there are; None where it
    always does.
    """

    least_width: int | None
    chains: bool  # a chain of tokens has the logits of single steps
    trees: bool  # so has a path between siblings
    near_ties: bool  # answers may part at a near-tie

    @classmethod
    def measured(cls, widths: Mapping[str, Any] | None) -> "Exactness":
        """Return what the figures of `evaluation/widths.py` claim of a quantised target; None: nothing."""
        if not widths:
            return cls(1, chains=False, trees=False, near_ties=False)
        least = widths["least_width"]
        return cls(least, chains=least is not None, trees=bool(widths["tree_exact"]), near_ties=False)

    def claims(self, chain: bool) -> bool:
        """Return whether verifying must give the target's own tokens; `chain`: every tree was a chain."""
        return self.trees or (self.chains and chain)


FLOATING = Exactness(1, chains=True, trees=True, near_ties=True)
