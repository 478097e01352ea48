"""A draft round in plain PyTorch, written from the papers' definition: no cache, no tree mask, no batch.

Every drafted token is computed from scratch: its path is appended to the whole prefix, and one
specialist's layer runs over that sequence causally.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from poss_export.config import TreeShape
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


def first_largest(values: Tensor, count: int) -> list[tuple[Tensor, int]]:
    """Return the largest values with their indices, of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (-float(values[i]), i))
    return [(values[i], i) for i in order[:count]]


def run_layer(drafter: Drafter, position: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (predict, feedback) of the last of the fused rows `x` [n, hidden]."""
    config = drafter.config
    specialist = drafter.specialist(position)
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
    return specialist.finish(x[-1], (weights @ v).flatten())
