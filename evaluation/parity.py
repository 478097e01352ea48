"""Parity: what a bundle's graphs compute against what PyTorch computed.

The graphs read the tokens of the reference the way the loop does: in chunks, as a tree, and behind rows that
a commit moved.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.config import Precision
from poss_export.errors import ParityError
from poss_export.evaluation.checks import Check
from poss_export.evaluation.differences import (
    SCORE_TOLERANCE,
    TOLERANCE,
    difference,
    largest,
    tree_difference,
)
from poss_export.evaluation.pieces import Step
from poss_export.reference import BRANCH, DRAFTED, PREFIX, Reference
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sessions.base import DraftSession, Ints, TargetSession
from poss_export.runtime.tree import DraftTree

Array = NDArray[Any]

FEATURES, LOGITS, SCORES = FIGURES = ("target_features", "target_logits", "draft_scores")


def compare(bundle: Bundle, reference: Reference) -> dict[str, float]:
    """Return the difference of each result of the graphs, by its name in `FIGURES`; `bundle` is entered."""
    figures = differences(_run(bundle.target, steps_of(reference)), reference)
    if bundle.drafter is not None and reference.trees:
        figures[SCORES] = compare_trees(bundle.drafter, reference)
    return figures


def require_parity(figures: Mapping[str, float], precision: Precision) -> None:
    """Raise ParityError where a difference is not allowed."""
    for name, value in figures.items():
        if not isfinite(value) and precision == "fp16":
            raise ParityError(
                f"{name} of the graph are no numbers: this checkpoint has values that are too large for "
                "fp16; build in fp32, or in bf16 for TensorRT",
                options=("precision",),
            )
        if not value <= (allowed := _allowed(name, precision)):
            raise ParityError(
                f"{name} of the graph differ from PyTorch's by {value:.1e}, allowed is {allowed:.0e}: "
                "the export is wrong; please report this with the checkpoint's config.json"
            )


def check_parity(bundle: Bundle, reference: Reference) -> list[Check]:
    """Return a check for each result of the graphs; `bundle` is entered."""
    precision = bundle.manifest.precision
    return [
        Check.within(check_name(name), value, _allowed(name, precision))
        for name, value in compare(bundle, reference).items()
    ]


def check_name(figure: str) -> str:
    """Return the name of the check of a figure."""
    return f"parity: {figure.replace('_', ' ')}"


def _allowed(figure: str, precision: Precision) -> float:
    return (SCORE_TOLERANCE if figure == SCORES else TOLERANCE)[precision]


def steps_of(reference: Reference) -> list[Step]:
    """Return the calls that give the target's results: two chunks, a tree, what follows a branch of it."""
    left, right = reference.ids
    half, last = PREFIX // 2, PREFIX - 1
    chunks = [
        Step(DraftTree.chain(tokens), tuple(range(len(tokens))))
        for tokens in (left[:half], left[half:last], right[-1:])
    ]
    # Committing a branch moves rows, which the last token must not notice.
    branches = Step(_two_branches(left[last:], right[last:]), tuple(_paths()[1, :-1].tolist()))
    return [*chunks[:2], branches, chunks[2]]


def differences(outputs: Sequence[tuple[Array, Array]], reference: Reference) -> dict[str, float]:
    """Return the differences of the features and logits that the steps gave."""
    found = {}
    for name, parts, expected in zip(
        (FEATURES, LOGITS),
        zip(*outputs, strict=True),
        (reference.features, reference.logits),
        strict=True,
    ):
        first, second, branches, last = parts
        values = np.zeros_like(expected)
        values[:, : PREFIX - 1] = np.concatenate((first, second))
        values[:, PREFIX - 1 :] = branches[_paths()]
        values[1, -1] = last[0]
        found[name] = difference(values, expected)
    return found


def _run(session: TargetSession, steps: Sequence[Step]) -> list[tuple[Array, Array]]:
    """Return features and logits of every step."""
    session.reset()
    outputs = list[tuple[Array, Array]]()
    for step in steps:
        output = session.forward(step.tree)
        outputs.append((output.features.copy(), output.logits.copy()))  # the next call overwrites its own
        session.commit(step.path)
    return outputs


def _paths() -> Ints:
    """Return the nodes of the two branches, the root first."""
    paths = np.arange(1, 2 * BRANCH + 1).reshape(BRANCH, 2).T
    return np.concatenate(([[0], [0]], paths), axis=1)


def compare_trees(session: DraftSession, reference: Reference) -> float:
    """Return the largest difference of the drafter's scores: behind a prompt, then behind accepted rows."""
    errors = []
    session.reset()
    for rows, drawn in zip(DRAFTED, reference.trees, strict=True):
        following = slice(rows.start + 1, rows.stop + 1)
        found = session.propose(reference.ids[0, following], reference.features[0, rows])
        errors.append(tree_difference(found, DraftTree.with_root(int(found.tokens[0]), *drawn)))
    return largest(errors)


def _two_branches(left: NDArray[np.int64], right: NDArray[np.int64]) -> DraftTree:
    """Return the tree of two paths with one root, their nodes in turn: a parent is two nodes before."""
    tokens = np.stack((left, right), axis=1).flatten()[2:]
    parents = np.maximum(np.arange(len(tokens)) - 1, 0)
    return DraftTree.with_root(int(left[0]), tokens, parents, np.zeros(len(tokens), np.float32))
