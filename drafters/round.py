"""Drafting: a whole round as one tensor-only module, whatever the drafter.

Only values depend on data: beam, candidates and tree have fixed sizes, so a trace of the round is
one graph. The round knows nothing of cache buffers; whoever calls it hands in `RoundCaches`.

Letters: B batch, R new rows, k ranks of a level, H hidden size, V draft vocabulary, L rows of target
features that the drafter has seen, new ones included, n drafted rows that a cache was given this round.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.drafters.specialist import AnyLayer, Specialist, TapsLayer
from poss_export.errors import InputError


class RoundCaches(Protocol):
    """Keys and values of each shared layer and used specialist: of the prefix, and of drafted rows."""

    past_length: Tensor  # int64 [B], rows before this round's
    length: Tensor  # int64 [B], L

    def append(self, first: int, key_value: Tensor) -> None:
        """Write the new prefix rows of the caches from number `first` on.

        key_value: `[B, R, caches * 2 * kv_heads * head_dim]`, not rotated: all keys, then all values.
        """

    def attend(
        self,
        cache: int,
        query: Tensor,
        positions: Tensor,
        drafted: tuple[Tensor, Tensor, Tensor] | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Attend to the prefix and to drafted rows.

        Args:
            cache: number of the cache to read.
            query: `[B, M, heads * head_dim]`, not rotated.
            positions: int64 `[B, M]`, of the query rows.
            drafted: key and value `[B, m, 2 * kv_heads * head_dim]`, not rotated, of drafted rows that this
                cache was not given yet in this round; their positions `[B, m]`; a bias `[B, M, n]`, added to
                the scores of all n drafted rows.
            seen: int64 `[B, M]`, prefix rows that a query row sees; None: all L.

        Returns:
            Mixed values, shaped as `query`.
        """


class DraftRound(nn.Module, ABC):
    """What every way of drafting has: the drafter's parts, the target's LM head, the choice of nodes."""

    def __init__(self, drafter: Drafter, tree: TreeShape, head_rows: Tensor, beams: list[int]) -> None:
        """Take a drafter's parts and the `[V, H]` rows of the target's LM head.

        `beams`: how many nodes of each level are expanded, the root first.
        """
        super().__init__()
        check_tree(drafter, tree)
        self.config, self.tree = drafter.config, tree
        self.fusion, self.shared_layers = drafter.fusion, drafter.shared_layers
        self.specialists = nn.ModuleList(drafter.specialists[: drafter.config.specialist(tree.depth) + 1])
        # Prefix rows need every specialist's key and value: one matmul, then one rotation of all keys.
        used = [layer.kv for layer in self.specialists if isinstance(layer, Specialist)]
        self.key_value = nn.Buffer(_stacked([kv.weight for kv in used])) if used else None
        biases = [kv.bias for kv in used if kv.bias is not None]
        self.key_value_bias = nn.Buffer(_stacked(biases)) if biases else None
        self.embeddings = drafter.embeddings
        self.head_rows = nn.Parameter(head_rows, requires_grad=False)
        self.draft_ids = nn.Buffer(drafter.draft_ids)
        # Candidate c comes from slot c // k: slot 0 is the root, behind it lie the beams of each level. A
        # beam is numbered among its level's candidates, so the offset makes it a candidate: -1 is the root.
        self.beams = beams
        slots = [sum(beams[:level]) for level in range(tree.depth)]
        levels = range(1, tree.depth)
        offsets = [tree.top_k * slots[level - 1] for level in levels for _ in range(beams[level])]
        self.beam_offsets = nn.Buffer(torch.tensor([-1, *offsets]))

    @abstractmethod
    def forward(
        self, embeddings: Tensor, features: Tensor, row_count: Tensor, noise: Tensor, caches: RoundCaches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draft one tree.

        Args:
            embeddings: `[B, R, H]`, of the token that follows each new row.
            features: `[B, R, feature_size]`, the target's, of the new rows.
            row_count: int64 `[B]`, rows that are not padding.
            noise: float32 `[B, depth, V]`, added to the logits of the tokens of each depth.
            caches: of the rows before these; the new rows are appended.

        Returns:
            Target token ids, parent nodes (0 is the root) and float32 cumulative log-probabilities, with the
            noise, each `[B, nodes]`: column i is node i + 1, and parents come before their children.
        """

    def embed(self, tokens: Tensor) -> Tensor:
        """Return embeddings `[B, R, H]` of the first input of the draft graph: embeddings, or ids."""
        return tokens if self.embeddings is None else F.embedding(tokens, self.embeddings)

    def _pass_shared_layers(
        self, real: Tensor, masks: Tensor, order: Tensor, caches: RoundCaches
    ) -> tuple[Tensor, Tensor]:
        """Return new rows, and mask rows behind them, after the layers that come before the specialists.

        order: `[1, masks, masks]`, a bias: which mask rows see which; no row of the prefix sees one.
        """
        if not len(self.shared_layers):
            return real, masks
        count = real.shape[1]
        new = caches.past_length[:, None] + torch.arange(count)
        after = caches.length[:, None] + torch.arange(masks.shape[1])
        positions = torch.cat((new, after), dim=1)
        seen = torch.cat((new + 1, caches.length[:, None].expand_as(after)), dim=1)
        bias = F.pad(order, (0, 0, count, 0), value=float("-inf")).expand(real.shape[0], -1, -1)
        x = torch.cat((real, masks), dim=1)
        for index, layer in enumerate(self.shared_layers):
            assert isinstance(layer, AnyLayer)
            key_value = layer.kv(x)
            caches.append(index, key_value[:, :count])
            drafted = (key_value[:, count:], after, bias) if masks.shape[1] else None
            x, _ = layer.finish(x, caches.attend(index, layer.q(x), positions, drafted, seen))
        return x[:, :count], x[:, count:]

    def _key_value(self, prefix: Tensor) -> Tensor:
        """Return what `RoundCaches.append` takes, of all used specialists, of rows `[B, R, row_size]`."""
        if self.key_value is None:  # specialists share a cache, in which the first one writes the prefix
            first = self.specialists[0]
            assert isinstance(first, TapsLayer)
            return first.kv(prefix)
        key_value = prefix @ self.key_value
        return key_value if self.key_value_bias is None else key_value + self.key_value_bias

    def _likeliest(self, predict: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and draft ids `[B, M, k]` of the best children of rows `[B, M, H]`.

        noise: `[B, M, V]`, or `[B, 1, V]` of rows of one depth.
        """
        logits = F.linear(predict.flatten(0, 1), self.head_rows).float()
        noisy = logits.view(*predict.shape[:2], -1) + noise
        return largest(noisy.log_softmax(-1), self.tree.top_k)

    def _select(
        self, scores: list[Tensor], tokens: list[Tensor], beams: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidates in candidate order: target ids, parent nodes (0 the root), scores.

        Each list has a tensor a level: scores and draft ids of its candidates, `[B, width * k]`; which of
        them were expanded, `[B, width of the next level]`.
        """
        score, token = torch.cat(scores, dim=1), torch.cat(tokens, dim=1)
        root = torch.zeros_like(token[:, :1])
        slots = torch.cat((root, *beams), dim=1) + self.beam_offsets  # as candidate, -1 the root
        keep = largest(score, self.tree.nodes)[1].sort(dim=-1).values
        parent = slots.gather(1, keep // self.tree.top_k)
        nodes = (keep[:, None] <= parent[:, :, None]).sum(-1)  # the kept up to it, so its node; 0 the root
        return self.draft_ids.take(token.gather(1, keep)), nodes, score.gather(1, keep)


def check_tree(drafter: Drafter, tree: TreeShape) -> None:
    """Raise InputError where a drafter cannot draw such a tree."""
    config = drafter.config
    if tree.top_k > config.draft_vocab_size:
        raise InputError(
            f"tree top-k is {tree.top_k}, but the drafter knows {config.draft_vocab_size} words: "
            "ask for fewer",
            options=("top_k",),
        )
    if config.longest_draft is not None and tree.depth > config.longest_draft:
        raise InputError(
            f"tree depth is {tree.depth}, but the drafter drafts {config.longest_draft} positions in its one "
            f"pass: ask for a depth of at most {config.longest_draft}",
            options=("tree_depth",),
        )


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return rows `index` [B, M] of `x` [B, N, C], as [B, M, C]."""
    first = torch.arange(x.shape[0])[:, None] * x.shape[1]
    return F.embedding(index + first, x.flatten(0, 1))


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of the last dimension and their indices; of equal values, the first."""
    if torch.compiler.is_exporting():
        return values.topk(count)  # ONNX TopK puts the first of equal values first; PyTorch's does not
    best, index = values.topk(min(count + 1, values.shape[-1]))
    if (best[..., 1:] == best[..., :-1]).any():  # only then is the order in doubt, and worth a slow sort
        best, index = values.sort(dim=-1, descending=True, stable=True)
    return best[..., :count], index[..., :count]


def _stacked(projections: Sequence[Tensor]) -> Tensor:
    """Return projections to key and value, joined along the last dimension: all keys, then all values."""
    halves = [projection.chunk(2, dim=-1) for projection in projections]
    return torch.cat([half[i] for i in (0, 1) for half in halves], dim=-1)
