"""Parity: what a bundle's graphs compute in ONNX Runtime against what PyTorch computes.

PyTorch reads whole sequences without a cache; the graphs read the same tokens the way the loop does:
in chunks, as a tree, and behind rows that a commit moved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from poss_export.config import Precision, TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter
from poss_export.drafters.make_round import make_round
from poss_export.drafters.round import DraftRound
from poss_export.errors import InputError, ParityError, PossExportError
from poss_export.evaluation.checks import NO_DRAFTER, Check
from poss_export.evaluation.differences import SCORE_TOLERANCE, TOLERANCE, difference, tree_difference
from poss_export.evaluation.laws import append
from poss_export.exporters.drafter import DraftGraph
from poss_export.manifest import DrafterEntry, Manifest, TargetEntry
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sessions.base import DraftSession, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.targets.checkpoint import Target, open_target
from poss_export.targets.decoder import Decoder, causal_attend

PREFIX, BRANCH = 24, 4  # tokens that the two sequences share, and have of their own
ROWS = PREFIX + 2 * BRANCH  # that a cache must hold for the check

FEATURES, LOGITS, SCORES = "target_features", "target_logits", "draft_scores"

Floats = NDArray[np.float32]
Checkpoint = TypeVar("Checkpoint", Target, DrafterCheckpoint)


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for two sequences that part after `PREFIX` tokens, and the drafter's round.

    ids: int64 `[2, tokens]`. features: `[2, tokens, hidden]`. logits: `[2, tokens, vocab]`.
    embeddings: `[2, tokens, hidden]`, of `ids`. Of the target's tables, `drafting` has the rows of its
    draft vocabulary.
    """

    ids: NDArray[np.int64]
    features: Floats
    logits: Floats
    embeddings: Floats
    drafting: DraftRound | None


@torch.no_grad()
def make_reference(decoder: Decoder, drafter: DrafterCheckpoint | None, tree: TreeShape) -> Reference:
    """Run the decoder on random tokens; keep nothing of it that the drafter does not need."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(decoder.config.vocab_size, (2, PREFIX + BRANCH), generator=generator)
    ids[1, :PREFIX] = ids[0, :PREFIX]
    features = decoder.hidden(ids, causal_attend(decoder.config, ids.shape[1], torch.float32))
    logits, embeddings = decoder.head(features), decoder.embed_tokens[ids]
    drafting = None
    if drafter is not None:
        rows = drafter.drafter.draft_ids
        embed_rows = decoder.embed_tokens[rows]
        head_rows = embed_rows if decoder.config.tied_embeddings else decoder.lm_head[rows]
        drafting = make_round(drafter.drafter, tree, embed_rows, head_rows).eval().requires_grad_(False)
    return Reference(ids.numpy(), features.numpy(), logits.numpy(), embeddings.numpy(), drafting)


def compare(bundle: Bundle, reference: Reference) -> dict[str, float]:
    """Return the difference of each result of the graphs; `bundle` is entered."""
    figures = _compare_target(bundle.target, reference)
    if bundle.drafter is not None and reference.drafting is not None:
        figures |= _compare_draft(bundle.drafter, reference, reference.drafting)
    return figures


def require_parity(figures: Mapping[str, float], precision: Precision) -> None:
    """Raise ParityError where a difference is not allowed."""
    for name, value in figures.items():
        if not value <= (allowed := _allowed(name, precision)):
            raise ParityError(
                f"{name} of the graph differ from PyTorch's by {value:.1e}, allowed is {allowed:.0e}: "
                "the export is wrong; please report this with the checkpoint's config.json"
            )


def check_parity(bundle: Bundle, reference: Reference) -> list[Check]:
    """Return a check for each result of the graphs; `bundle` is entered."""
    precision = bundle.manifest.precision
    return [
        Check(
            _title(name),
            value <= (allowed := _allowed(name, precision)),
            f"difference {value:.1e}, allowed {allowed:.0e}",
        )
        for name, value in compare(bundle, reference).items()
    ]


def find_reference(
    manifest: Manifest, target: str | None, drafter: str | None
) -> tuple[Reference | None, list[Check]]:
    """Return PyTorch's results for the checkpoints a bundle was made from, and the checks to be skipped.

    Checkpoints are named as for a build; None takes the name in the manifest.

    Raises:
        PossExportError: a checkpoint that is named here cannot be opened, or is another one.
    """
    skipped = []
    opened, reason = _find(open_target, target, manifest.target, "--target")
    if opened is None:
        return None, [Check(_title(name), None, reason) for name in (FEATURES, LOGITS, SCORES)]
    checkpoint = None
    if manifest.drafter is not None:
        positions = manifest.drafter.config.positions_per_specialist  # not all checkpoints state it
        load = partial(load_drafter, positions_per_specialist=positions)
        checkpoint, reason = _find(load, drafter, manifest.drafter, "--drafter")
    if checkpoint is None:
        skipped.append(Check(_title(SCORES), None, reason or NO_DRAFTER))
    tree = TreeShape() if manifest.drafter is None else manifest.drafter.tree
    return make_reference(opened.load_decoder(), checkpoint, tree), skipped


def _find(
    opener: Callable[[str], Checkpoint], spec: str | None, entry: TargetEntry | DrafterEntry, option: str
) -> tuple[Checkpoint | None, str]:
    """Return the checkpoint that `entry` records, or None and why it cannot be had."""
    name = entry.name if spec is None else spec
    try:
        found = opener(name)
        if found.sha256 != entry.sha256:
            raise InputError(f"{name!r} is not the checkpoint that this bundle was made from")
    except PossExportError:
        if spec is not None:
            raise
        return None, f"{name!r} is not at hand, name its place with {option}"
    return found, ""


def _title(figure: str) -> str:
    return f"parity: {figure.replace('_', ' ')}"


def _allowed(figure: str, precision: Precision) -> float:
    return (SCORE_TOLERANCE if figure == SCORES else TOLERANCE)[precision]


def _compare_target(session: TargetSession, reference: Reference) -> dict[str, float]:
    left, right = reference.ids
    half, last = PREFIX // 2, PREFIX - 1
    features, logits = np.zeros_like(reference.features), np.zeros_like(reference.logits)
    session.reset()
    for rows in (slice(0, half), slice(half, last)):
        output = append(session, left[rows])
        features[:, rows], logits[:, rows] = output.features, output.logits
    output = session.forward(_two_branches(left[last:], right[last:]))
    paths = np.arange(1, 2 * BRANCH + 1).reshape(BRANCH, 2).T  # nodes of each branch
    paths = np.concatenate(([[0], [0]], paths), axis=1)
    features[:, last:], logits[:, last:] = output.features[paths], output.logits[paths]
    session.commit(paths[1, :-1].tolist())  # moves rows, which the last token must not notice
    output = append(session, right[-1:])
    features[1, -1], logits[1, -1] = output.features[0], output.logits[0]
    return {
        FEATURES: difference(features, reference.features),
        LOGITS: difference(logits, reference.logits),
    }


@torch.no_grad()
def _compare_draft(session: DraftSession, reference: Reference, drafting: DraftRound) -> dict[str, float]:
    config, rows = drafting.config, PREFIX + BRANCH
    graph = DraftGraph(drafting, "static", rows)
    shape = (1, config.num_kv_heads, rows, config.head_dim)
    caches = [torch.zeros(shape) for _ in range(2 * config.num_caches(drafting.tree.depth))]
    errors = []
    session.reset()
    for start, end in ((0, PREFIX), (PREFIX, rows - 1)):  # a prompt, then accepted rows
        new, following = slice(start, end), slice(start + 1, end + 1)
        features = reference.features[:1, new]
        found = session.propose(reference.ids[0, following], features[0])
        tokens, parents, scores, *caches = graph(
            torch.from_numpy(reference.embeddings[:1, following]),
            torch.from_numpy(features),
            torch.tensor([end - start]),
            torch.tensor([start]),
            *caches,
        )
        drawn = (result[0].numpy() for result in (tokens, parents, scores))
        errors.append(tree_difference(found, DraftTree.with_root(int(found.tokens[0]), *drawn)))
    return {SCORES: max(errors)}


def _two_branches(left: NDArray[np.int64], right: NDArray[np.int64]) -> DraftTree:
    """Return the tree of two paths with one root, their nodes in turn: a parent is two nodes before."""
    tokens = np.stack((left, right), axis=1).flatten()[2:]
    parents = np.maximum(np.arange(len(tokens)) - 1, 0)
    return DraftTree.with_root(int(left[0]), tokens, parents, np.zeros(len(tokens), np.float32))
