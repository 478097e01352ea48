"""Tree drafting: a whole round, level by level, as one tensor-only module.

Only values depend on data: beam, candidates and tree have fixed sizes, so a trace of the round is
one graph. The round knows nothing of cache buffers; whoever calls it hands in `RoundCaches`.

Letters: B batch, R new rows, k beam width, H hidden size, V draft vocabulary, L rows of target
features that the drafter has seen, new ones included.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.drafters.specialist import Specialist
from poss_export.errors import InputError


class RoundCaches(Protocol):
    """Keys and values of each used specialist: of the prefix, and of this round's tree rows."""

    def append(self, key_value: Tensor) -> None:
        """Cache the new prefix rows `[B, R, 2 * used * kv_heads * head_dim]`: all keys, then all values."""

    def attend(
        self, specialist: int, query: Tensor, level: int, key_value: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Attend to the prefix and, from level 1 on, to tree rows.

        Args:
            specialist: whose keys and values to read.
            query: `[B, M, heads * head_dim]`, not rotated, at position L - 1 + level.
            level: 0 for the row that drafts from the prefix alone.
            key_value: `[B, n, 2 * kv_heads * head_dim]`, not rotated: the latest tree rows, which are
                those that this specialist was not given yet in this round.
            bias: `[B, k, level * k]`, added to the scores of tree rows.

        Returns:
            Mixed values, shaped as `query`.
        """


class TreeDrafting(nn.Module):
    """A round of EAGLE-2 (arXiv 2406.16858) by position specialists (PosS, 2506.03566; EAGLE-2 has one)."""

    def __init__(self, drafter: Drafter, tree: TreeShape, embed_rows: Tensor, head_rows: Tensor) -> None:
        """Take a drafter's parts and the `[V, H]` rows of the target's embedding table and LM head.

        Pass one tensor as both where the target's tables are tied: it then stays one in the graph.
        Raises InputError where the draft vocabulary is smaller than the tree's top-k.
        """
        super().__init__()
        if tree.top_k > drafter.config.draft_vocab_size:
            raise InputError(
                f"tree top-k is {tree.top_k}, but the drafter knows {drafter.config.draft_vocab_size} words: "
                "ask for fewer"
            )
        self.config, self.tree = drafter.config, tree
        self.fusion = drafter.fusion
        used = drafter.config.specialist(tree.depth) + 1
        self.specialists = nn.ModuleList(drafter.specialists[:used])
        # Prefix rows need every specialist's key and value: one matmul, then one rotation of all keys.
        halves = [specialist.kv.weight.chunk(2, dim=1) for specialist in self.specialists]  # type: ignore[union-attr, operator]
        self.key_value = nn.Buffer(torch.cat([half[i] for i in (0, 1) for half in halves], dim=1))
        self.embed_rows = nn.Parameter(embed_rows, requires_grad=False)
        self.head_rows = self.embed_rows
        if head_rows is not embed_rows:
            self.head_rows = nn.Parameter(head_rows, requires_grad=False)
        self.draft_ids = nn.Buffer(drafter.draft_ids)
        # Candidates are k from the root, then k * k of each level, row-major.
        k = tree.top_k
        firsts = [0] + [k + level * k * k for level in range(tree.depth - 2)]
        self.beam_offsets = nn.Buffer(torch.tensor([-1, *(f for f in firsts for _ in range(k))]))
        self.own = nn.Buffer(torch.zeros(k, k).masked_fill(~torch.eye(k, dtype=torch.bool), float("-inf")))

    def forward(
        self, embeddings: Tensor, features: Tensor, row_count: Tensor, caches: RoundCaches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draft one tree.

        Args:
            embeddings: `[B, R, H]`, of the token that follows each new row.
            features: `[B, R, H]`, the target's, of the new rows.
            row_count: int64 `[B]`, rows that are not padding.
            caches: of the rows before these; the new rows are appended.

        Returns:
            Target token ids, parent nodes (0 is the root) and float32 cumulative log-probabilities,
            each `[B, nodes]`: column i is node i + 1, and parents come before their children.
        """
        batch, k = row_count.shape[0], self.tree.top_k
        prefix = self.fusion(embeddings, features)
        caches.append(prefix @ self.key_value)

        x = _take(prefix, row_count[:, None] - 1)  # [B, 1, H]; [B, k, H] from level 1 on
        score = torch.zeros(batch, 1)
        own = self.own.expand(batch, -1, -1)
        levels, key_value, bias, previous = list[Tensor](), None, None, -1
        scores, tokens, beams = list[Tensor](), list[Tensor](), [torch.zeros_like(row_count)[:, None]]
        for level in range(self.tree.depth):  # drafts position level + 1
            s = self.config.specialist(level + 1)
            specialist = self.specialists[s]
            assert isinstance(specialist, Specialist)
            if level > 0:
                levels.append(x)
                key_value = specialist.kv(x if s == previous else torch.cat(levels, dim=1))
            previous = s
            mixed = caches.attend(s, specialist.q(x), level, key_value, bias)
            predict, feature = specialist.finish(x, mixed)

            gain, children = self._likeliest(predict)  # [B, M, k]
            total, children = (score[:, :, None] + gain).flatten(1), children.flatten(1)
            scores.append(total)
            tokens.append(children)
            if level + 1 < self.tree.depth:
                score, beam = _largest(total, k)
                beams.append(beam)
                parent = beam // k
                bias = own if bias is None else torch.cat((_take(bias, parent), own), dim=-1)
                embedding = F.embedding(children.gather(1, beam), self.embed_rows)
                x = self.fusion(embedding, _take(feature, parent))
        return self._select(torch.cat(scores, dim=1), torch.cat(tokens, dim=1), torch.cat(beams, dim=1))

    def _likeliest(self, predict: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and draft ids `[B, M, k]` of the best children of rows `[B, M, H]`."""
        logits = F.linear(predict.flatten(0, 1), self.head_rows).float()
        score, child = _largest(logits.log_softmax(-1), self.tree.top_k)
        shape = (*predict.shape[:2], self.tree.top_k)
        return score.reshape(shape), child.reshape(shape)

    def _select(self, scores: Tensor, tokens: Tensor, beams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidates in candidate order.

        Candidate c comes from slot c // k: slot 0 is the root, behind it lie k slots for each beam.
        """
        keep = _largest(scores, self.tree.nodes)[1].sort(dim=-1).values
        parent = (beams + self.beam_offsets).gather(1, keep // self.tree.top_k)  # as candidate, -1 the root
        nodes = (keep[:, None] <= parent[:, :, None]).sum(-1)  # the kept up to it, so its node; 0 the root
        return self.draft_ids.take(tokens.gather(1, keep)), nodes, scores.gather(1, keep)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return rows `index` [B, M] of `x` [B, N, C], as [B, M, C]."""
    first = torch.arange(x.shape[0])[:, None] * x.shape[1]
    return F.embedding(index + first, x.flatten(0, 1))


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of the last dimension and their indices; of equal values, the first."""
    if torch.compiler.is_exporting():
        return values.topk(count)  # ONNX TopK puts the first of equal values first; PyTorch's does not
    ordered, index = values.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :count], index[..., :count]
