"""Parity: what a bundle's graphs compute in ONNX Runtime against what PyTorch computes.

PyTorch reads whole sequences without a cache; the graphs read the same tokens the way the loop does:
in chunks, as a tree, and behind rows that a commit moved. A figure is the largest difference over the
largest value of PyTorch's result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poss_export.config import Precision
from poss_export.contract import draft_contract, target_contract
from poss_export.drafters.drafting import TreeDrafting
from poss_export.errors import ParityError
from poss_export.exporters.drafter import DraftGraph
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, Manifest
from poss_export.runtime.ort import OrtDraftSession, OrtOptions, OrtTargetSession
from poss_export.runtime.session import DraftSession, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.targets.decoder import Decoder, causal_attend

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-2}

PREFIX, BRANCH = 24, 4  # tokens that the two sequences share, and have of their own
PROBE = PREFIX + 2 * BRANCH  # cache rows that the check needs

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TargetReference:
    """PyTorch's results for two sequences that part after `PREFIX` tokens.

    ids: int64 `[2, tokens]`. features: `[2, tokens, hidden]`. logits: `[2, tokens, vocab]`.
    embeddings: `[2, tokens, hidden]`, of `ids`.
    """

    ids: NDArray[np.int64]
    features: Floats
    logits: Floats
    embeddings: Floats


@torch.no_grad()
def target_reference(decoder: Decoder) -> TargetReference:
    """Run the decoder on two sequences of random tokens."""
    ids = torch.randint(
        decoder.config.vocab_size, (2, PREFIX + BRANCH), generator=torch.Generator().manual_seed(0)
    )
    ids[1, :PREFIX] = ids[0, :PREFIX]
    features = decoder.hidden(ids, causal_attend(decoder.config, ids.shape[1], torch.float32))
    results = (features, decoder.head(features), decoder.embed_tokens[ids])
    return TargetReference(ids.numpy(), *(result.numpy() for result in results))


def target_parity(bundle: Path, manifest: Manifest, reference: TargetReference) -> dict[str, float]:
    """Return the figures of the target graph of the bundle in folder `bundle`."""
    contract = target_contract(manifest.target.config, manifest.precision)
    session = OrtTargetSession(bundle / TARGET_GRAPH, contract, manifest.capacity, OrtOptions())
    with session:
        return _compare_target(session, reference)


def draft_parity(
    bundle: Path, manifest: Manifest, reference: TargetReference, drafting: TreeDrafting
) -> dict[str, float]:
    """Return the figures of the draft graph of the bundle in folder `bundle`, made of float32 `drafting`."""
    contract = draft_contract(drafting.config, drafting.tree, manifest.precision)
    table = manifest.target.embedding.open(bundle)
    session = OrtDraftSession(bundle / DRAFT_GRAPH, contract, manifest.capacity, OrtOptions(), table)
    with session:
        return _compare_draft(session, reference, drafting)


def refuse_difference(figures: Mapping[str, float], precision: Precision) -> None:
    """Raise ParityError where a figure is over the tolerance, or is no number."""
    tolerance = TOLERANCE[precision]
    if wrong := [f"{name} {value:.1e}" for name, value in figures.items() if not value <= tolerance]:
        raise ParityError(
            f"the graph differs from PyTorch by more than {tolerance:.0e}: {', '.join(wrong)}; no bundle is "
            "written: please report this with the target's configuration"
        )


def _compare_target(session: TargetSession, reference: TargetReference) -> dict[str, float]:
    left, right = reference.ids
    tree = _two_branches(int(left[PREFIX - 1]), left[PREFIX:], right[PREFIX:])
    left_nodes, right_nodes = [0, *range(1, len(tree), 2)], [0, *range(2, len(tree), 2)]
    features = np.zeros_like(reference.features)
    logits = np.zeros_like(reference.logits)

    def forward(tree: DraftTree, rows: slice | list[int], branches: Mapping[int, list[int]]) -> None:
        """Run `tree` and note the results of each branch's nodes at `rows` of the branch."""
        nodes = np.arange(len(tree))[None]
        output = session.forward(tree.tokens[None], tree.depths[None], tree.mask[None], nodes)
        for branch, path in branches.items():
            features[branch, rows], logits[branch, rows] = output.features[0, path], output.logits[0, path]

    for start, end in ((0, PREFIX // 2), (PREFIX // 2, PREFIX - 1)):
        chain = _chain(left[start:end])
        path = list(range(len(chain)))
        forward(chain, slice(start, end), {0: path, 1: path})
        session.commit([path])
    forward(tree, slice(PREFIX - 1, None), {0: left_nodes, 1: right_nodes})
    session.commit([right_nodes[:-1]])  # moves rows; what reads them now must not notice
    forward(_chain(right[-1:]), slice(-1, None), {1: [0]})
    return {
        "target_features": _difference(features, reference.features),
        "target_logits": _difference(logits, reference.logits),
    }


@torch.no_grad()
def _compare_draft(
    session: DraftSession, reference: TargetReference, drafting: TreeDrafting
) -> dict[str, float]:
    config = drafting.config
    graph = DraftGraph(drafting, "static", PREFIX + BRANCH)
    caches = [
        torch.zeros(1, config.num_kv_heads, PREFIX + BRANCH, config.head_dim)
        for _ in range(2 * len(drafting.specialists))
    ]
    errors = []
    for start, end in ((0, PREFIX), (PREFIX, PREFIX + BRANCH - 1)):  # a prompt, then accepted rows
        new, following = slice(start, end), slice(start + 1, end + 1)
        features = reference.features[:1, new]
        (tree,) = session.propose(reference.ids[:1, following], features)
        tokens, parents, scores, *caches = graph(
            torch.from_numpy(reference.embeddings[:1, following]),
            torch.from_numpy(features),
            torch.tensor([end - start]),
            torch.tensor([start]),
            *caches,
        )
        expected = _paths(*(_numpy(x) for x in (tokens, parents, scores)))
        found = _paths(tree.tokens[1:], tree.parents[1:], tree.scores[1:])
        errors.append(_tree_difference(found, expected))
    return {"draft_scores": max(errors)}


Paths = dict[tuple[int, ...], float]


def _paths(tokens: NDArray[np.int64], parents: NDArray[np.int64], scores: Floats) -> Paths:
    """Return the score of every node by the tokens that lead to it."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True):
        paths.append((*paths[parent], token))
    return dict(zip(paths[1:], scores.tolist(), strict=True))


def _tree_difference(found: Paths, expected: Paths) -> float:
    """Return the largest difference of scores; a node of one tree only counts as the other's last one.

    So trees may differ in nodes between which rounding decides, and in no others.
    """
    last_found, last_expected = min(found.values()), min(expected.values())
    pairs = [
        (found.get(path, last_found), expected.get(path, last_expected))
        for path in found.keys() | expected.keys()
    ]
    return _difference(*np.array(pairs).T)


def _difference(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _chain(tokens: NDArray[np.int64]) -> DraftTree:
    return DraftTree.with_root(
        int(tokens[0]), tokens[1:], np.arange(len(tokens) - 1), np.zeros(len(tokens) - 1)
    )


def _two_branches(root: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> DraftTree:
    """Return root, left[0], right[0], left[1], right[1], ...: every node's parent is two before it."""
    tokens = np.stack((left, right), axis=1).flatten()
    parents = np.maximum(np.arange(len(tokens)) - 1, 0)
    return DraftTree.with_root(root, tokens, parents, np.zeros(len(tokens)))


def _numpy(batch: Tensor) -> NDArray[np.generic]:
    return batch[0].numpy()
