"""Whether a token's logits depend on what else is in the call: measured, never assumed.

The same token at the same cache is run in calls of different widths, beside different neighbours, in a chain,
and in a tree between siblings that are not accepted. Where none of this matters, plain decoding gives what
speculation gives, bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import WIDEST
from poss_export.evaluation.differences import largest
from poss_export.evaluation.laws import append
from poss_export.manifest import TARGET_GRAPH
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.sessions.base import Ints, TargetSession
from poss_export.runtime.sessions.ort import OrtOptions, OrtTargetSession
from poss_export.runtime.tree import DraftTree

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, WIDEST)
STEPS = 8  # tokens that are decoded
PREFIXES = (17, 64, 120)  # committed tokens before them

_LEAST = 2  # a single row takes other kernels, also where the steps of activations hide that here

Floats = NDArray[np.float32]


def measure_widths(bundle: Bundle, texts: Sequence[Ints]) -> dict[str, Any]:
    """Return the largest differences of logits, and from which width on there are none.

    Args:
        bundle: its target graph is loaded once more, without what `least_width` fills up.
        texts: ids, each of at least 128 tokens, or as many as the capacity holds. All widths are tried on the
            first, siblings behind the end of all.

    Returns:
        `differences`: of single steps at each width to those at the widest. `neighbours`: of steps beside
        other tokens. `chain`, `siblings`: of one call for all steps, as a chain or as a tree. `least_width`:
        from which width on steps and chain agree in every bit; None where they never do.
    """
    contract = contracts_of(bundle.manifest)["target"]
    capacity = bundle.manifest.capacity
    worst: dict[str, float] = {}
    with OrtTargetSession(bundle.folder / TARGET_GRAPH, contract, capacity, OrtOptions()) as session:
        for number, ids in enumerate(texts):
            measure, places = _differences, _places(capacity, ids)
            if number:
                measure, places = _siblings, places[-1:]
            for place in places:
                session.reset()
                append(session, ids[:place])
                for name, difference in measure(session, place, ids).items():
                    worst[name] = largest((worst.get(name, 0.0), difference))
    widths = {width: worst[str(width)] for width in WIDTHS if str(width) in worst}
    agreeing = [
        width for width in widths if width >= _LEAST and not any(widths[w] for w in widths if w >= width)
    ]
    exact = bool(agreeing) and worst["neighbours"] == worst["chain"] == 0
    return {
        "differences": {str(width): difference for width, difference in widths.items()},
        **{name: worst[name] for name in ("neighbours", "chain", "siblings") if name in worst},
        "least_width": min(agreeing) if exact else None,
    }


def _places(capacity: int, ids: Ints) -> Sequence[int]:
    """Return behind how many committed tokens of a text steps are tried."""
    room = min(capacity - max(WIDTHS), len(ids)) - STEPS
    return [prefix for prefix in PREFIXES if prefix <= room] or ([room] if room > 1 else [])


def _differences(session: TargetSession, prefix: int, ids: Ints) -> dict[str, float]:
    """Return every difference behind `prefix` committed rows."""
    tokens = ids[prefix : prefix + STEPS]
    exact = _steps(session, ids, prefix, max(WIDTHS), seed=0)

    def difference(logits: Floats) -> float:
        return float(np.abs(logits - exact).max())

    found = {str(width): difference(_steps(session, ids, prefix, width, seed=0)) for width in WIDTHS}
    found["neighbours"] = difference(_steps(session, ids, prefix, max(WIDTHS), seed=1))
    found["chain"] = difference(_chain(session, prefix, tokens))
    found["siblings"] = difference(_tree(session, prefix, *_between_siblings(tokens)))
    return found


def _siblings(session: TargetSession, prefix: int, ids: Ints) -> dict[str, float]:
    """Return only what siblings change, beside a chain."""
    tokens = ids[prefix : prefix + STEPS]
    tree = _tree(session, prefix, *_between_siblings(tokens))
    return {"siblings": float(np.abs(tree - _chain(session, prefix, tokens)).max())}


def _steps(session: TargetSession, ids: Ints, prefix: int, width: int, seed: int) -> Floats:
    """Decode one token at a time, each beside `width` - 1 others; return the logits after each.

    Seeds 0 and 1 have no token of the prefix in common, so that not even the largest of all is the same.
    """
    session.trim(prefix)
    tokens = ids[prefix : prefix + STEPS]
    others = np.random.default_rng(seed).choice(ids[:prefix][seed::2], (len(tokens), width - 1))
    found = []
    for token, beside in zip(tokens, others, strict=True):
        parents = np.zeros(len(beside), np.int64)
        tree = DraftTree.with_root(int(token), beside, parents, np.zeros(len(beside), np.float32))
        found.append(session.forward(tree).logits[0].astype(np.float32))
        session.commit([0])
    return np.stack(found)


def _chain(session: TargetSession, prefix: int, tokens: Ints) -> Floats:
    return _tree(session, prefix, DraftTree.chain(tokens), range(len(tokens)))


def _tree(session: TargetSession, prefix: int, tree: DraftTree, path: Sequence[int]) -> Floats:
    session.trim(prefix)
    logits: Floats = session.forward(tree).logits[list(path)].astype(np.float32)
    return logits


def _between_siblings(tokens: Ints) -> tuple[DraftTree, list[int]]:
    """Return a tree where every token of the path has a sibling before it, and the path."""
    path = [0, *range(2, 2 * len(tokens), 2)]
    parents = np.repeat(path[:-1], 2)
    nodes = np.stack((tokens[:-1], tokens[1:]), axis=1).flatten()
    return DraftTree.with_root(int(tokens[0]), nodes, parents, np.zeros(len(nodes), np.float32)), path
