"""A draft round in plain PyTorch, written from the papers' definition: no cache, no tree mask, no batch.

Every drafted token is computed from scratch: its path (or the mask rows before it) is appended to the whole
prefix, and one specialist's layer runs over that sequence causally.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from poss_export.config import DrafterConfig, TreeShape
from poss_export.drafters.model import Drafter
from poss_export.targets.rope import rope_tables


@dataclass
class Candidate:
    score: Tensor  # float32 scalar, cumulative
    token: int  # draft id
    parent: int  # index of the parent candidate, -1: the root


@dataclass
class Beam:
    index: int  # of its candidate
    score: Tensor
    path: list[Tensor]  # fused rows from level 1 on


def reference_round(
    drafter: Drafter,
    tree: TreeShape,
    embed_rows: Tensor,
    head_rows: Tensor,
    embeddings: Tensor,
    features: Tensor,
) -> tuple[list[int], list[int], list[float]]:
    """Return tokens, parents and scores of the tree after `embeddings`, `features` `[L, hidden]`."""
    if drafter.config.drafting == "parallel":
        return reference_parallel_round(drafter, tree, head_rows, embeddings, features)
    k = tree.top_k
    prefix = list(drafter.fusion(embeddings, features))

    def draft(position: int, rows: list[Tensor]) -> tuple[list[tuple[Tensor, int]], Tensor]:
        predict, feedback = run_layer(drafter, position, torch.stack(rows))
        return first_largest(torch.log_softmax(head_rows @ predict, 0), k), feedback

    best, feedback = draft(1, prefix)
    candidates = [Candidate(score, token, -1) for score, token in best]
    beams = [
        Beam(i, c.score, [drafter.fusion(embed_rows[c.token], feedback)]) for i, c in enumerate(candidates)
    ]
    for level in range(1, tree.depth):
        first = len(candidates)
        feedbacks = []
        for beam in beams:
            best, feedback = draft(level + 1, prefix + beam.path)
            feedbacks.append(feedback)
            candidates += [Candidate(beam.score + score, token, beam.index) for score, token in best]
        grown = []
        for score, offset in first_largest(torch.stack([c.score for c in candidates[first:]]), k):
            row = offset // k
            fused = drafter.fusion(embed_rows[candidates[first + offset].token], feedbacks[row])
            grown.append(Beam(first + offset, score, [*beams[row].path, fused]))
        beams = grown

    keep = sorted(i for _, i in first_largest(torch.stack([c.score for c in candidates]), tree.nodes))
    node = {-1: 0} | {candidate: i + 1 for i, candidate in enumerate(keep)}
    tokens = [int(drafter.draft_ids[candidates[i].token]) for i in keep]
    return tokens, [node[candidates[i].parent] for i in keep], [float(candidates[i].score) for i in keep]


def reference_parallel_round(
    drafter: Drafter, tree: TreeShape, head_rows: Tensor, embeddings: Tensor, features: Tensor
) -> tuple[list[int], list[int], list[float]]:
    """Return tokens, parents and scores of the best tuples of ranks, chosen among all of them."""
    config, masks = drafter.config, drafter.masks
    assert masks is not None
    rows = list(drafter.fusion(embeddings, features))
    best = []  # of each position
    for position in range(1, tree.depth + 1):
        if position > 1:
            embedding = masks.embeddings[0 if config.shared_mask else position - 2]
            feature = {
                "learned": masks.feature,
                "repeat_last": features[-1],
                "zeros": torch.zeros(config.hidden_size),
                "none": None,
            }[config.mask_feature]
            rows.append(embedding if feature is None else drafter.fusion(embedding, feature))
        x = torch.stack(rows)
        for layer in drafter.shared_layers:
            x = torch.stack([run_one_layer(config, layer, x[: n + 1])[0] for n in range(len(x))])
        predict, _ = run_layer(drafter, position, x)
        best.append(first_largest(torch.log_softmax(head_rows @ predict, 0), tree.top_k))

    def score(ranks: Sequence[int]) -> float:
        return float(sum(position[rank][0] for position, rank in zip(best, ranks, strict=False)))

    depths = range(1, tree.depth + 1)
    every = [ranks for depth in depths for ranks in product(range(tree.top_k), repeat=depth)]
    kept = sorted(every, key=lambda ranks: -score(ranks))[: tree.nodes]
    # By depth, then by how good the parent is, then by rank: the order in which a round finds them.
    kept.sort(key=lambda ranks: (len(ranks), -score(ranks[:-1]), ranks[-1]))
    node = {(): 0} | {ranks: i + 1 for i, ranks in enumerate(kept)}
    tokens = [int(drafter.draft_ids[best[len(ranks) - 1][ranks[-1]][1]]) for ranks in kept]
    return tokens, [node[ranks[:-1]] for ranks in kept], [score(ranks) for ranks in kept]


def first_largest(values: Tensor, count: int) -> list[tuple[Tensor, int]]:
    """Return the largest values with their indices, of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (-float(values[i]), i))
    return [(values[i], i) for i in order[:count]]


def run_layer(drafter: Drafter, position: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (predict, feedback) of the last of the rows `x` [n, hidden]."""
    return run_one_layer(drafter.config, drafter.specialist(position), x)


def run_one_layer(config: DrafterConfig, specialist: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's two outputs for the last of the rows `x` [n, hidden]."""
    cos, sin = rope_tables(config.rope, config.head_dim, len(x))

    def heads(flat: Tensor, rotated: bool) -> Tensor:
        y = flat.view(len(x), -1, config.head_dim).transpose(0, 1)  # [heads, n, head_dim]
        if rotated:
            a, b = y.chunk(2, dim=-1)
            y = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return y.repeat_interleave(config.num_heads // y.shape[0], dim=0)

    key, value = specialist.key_value(x)
    q, k, v = heads(specialist.q(x), True), heads(key, True), heads(value, False)
    weights = torch.softmax(q[:, -1:] @ k.mT / config.head_dim**0.5, dim=-1)
    outputs: tuple[Tensor, Tensor] = specialist.finish(x[-1], (weights @ v).flatten())
    return outputs
