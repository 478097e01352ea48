"""Tree drafting: the whole round, level by level, as one tensor-only module.

Nothing in the round depends on data except values: beam, candidates and tree have fixed sizes, so a
trace of it is one graph. Who holds the caches (a graph's buffers) and attends is the caller's matter.

Letters: B batch, R new rows, k beam width, D levels, H hidden size, V draft vocabulary, L committed
prefix (rows of target features in the caches after this call).
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter


class Caches(Protocol):
    """Keys and values of the used specialists: the prefix, and behind it the tree rows of this round."""

    def append(self, key_value: Tensor) -> None:
        """Cache the new prefix rows `[B, R, 2 * used * kv_heads * head_dim]`: all keys, then all values."""

    def attend(
        self, specialist: int, query: Tensor, key_value: tuple[Tensor, Tensor], first_level: int, mask: Tensor
    ) -> Tensor:
        """Return mixed values `[B, k, heads * head_dim]`."""


class TreeDrafting(nn.Module):
    """A round of EAGLE-2 drafting with position specialists (PosS, arXiv 2506.03566, and EAGLE-2, 2406.16858).

    With one specialist it is EAGLE-2's round.
    """

    draft_ids: Tensor
    roots: Tensor

    def __init__(self, drafter: Drafter, tree: TreeShape, embed_rows: Tensor, head_rows: Tensor) -> None:
        """Take a drafter's parts, and the `[V, H]` rows of the target's embedding table and head."""
        super().__init__()
        self.tree = tree
        self.config = drafter.config
        self.used = drafter.config.specialist(tree.depth) + 1
        self.fusion = drafter.fusion
        self.specialists = nn.ModuleList(drafter.specialists[: self.used])
        halves = [s.kv.weight.chunk(2, dim=1) for s in self.specialists]
        self.key_value = nn.Parameter(torch.cat([h[i] for i in (0, 1) for h in halves], dim=1))
        self.embed_rows = nn.Parameter(embed_rows, requires_grad=False)
        self.head_rows = self.embed_rows
        if head_rows is not embed_rows:
            self.head_rows = nn.Parameter(head_rows, requires_grad=False)
        self.register_buffer("draft_ids", drafter.draft_ids)
        self.register_buffer("roots", torch.arange(-1, tree.top_k)[None])

    def forward(
        self, embeddings: Tensor, features: Tensor, row_count: Tensor, caches: Caches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draft one tree.

        Args:
            embeddings: `[B, R, H]`, of the token after each new row.
            features: `[B, R, H]`, target features of the new rows.
            row_count: int64 `[B]`, rows that are not padding.
            caches: every used specialist's keys and values.

        Returns:
            Target token ids, parent nodes (root 0) and fp32 cumulative log-probabilities, each
            `[B, nodes]`; node i + 1 is column i and a parent comes before its children.
        """
        depth, k = self.tree.depth, self.tree.top_k
        x = self.fusion(embeddings, features)
        caches.append(x @ self.key_value)

        root = take(x, row_count[:, None] - 1)
        specialist = self.specialist(0)
        predict, feature = specialist.finish(root, caches.attend(0, specialist.q(root), None, 1, None))
        score, token = self.likeliest(predict)  # [B, k]
        feature = feature.expand(-1, k, -1)
        own = torch.eye(k, dtype=torch.bool, device=x.device).expand(x.shape[0], -1, -1)
        mask, levels, previous = own, [], -1
        scores, tokens, beams = [score], [token], []
        for level in range(1, depth):
            x = self.fusion(F.embedding(token, self.embed_rows), feature)
            levels.append(x)
            s = self.config.specialist(level + 1)
            first = level if s == previous else 1
            specialist, previous = self.specialist(s), s
            key_value = specialist.key_value(torch.cat(levels[first - 1 :], dim=1))
            predict, feature = specialist.finish(
                x, caches.attend(s, specialist.q(x), key_value, first, mask)
            )
            gain, child = self.likeliest(predict)  # [B, k * k], row-major
            total = score.repeat_interleave(k, dim=1) + gain
            scores.append(total)
            tokens.append(child)
            if level + 1 < depth:
                score, flat = largest(total, k)
                beams.append(flat + (k + (level - 1) * k * k))
                parent = flat // k
                token = child.gather(1, flat)
                feature = take(feature, parent)
                mask = torch.cat((take(mask, parent), own), dim=-1)
        return self.select(torch.cat(scores, dim=1), torch.cat(tokens, dim=1), beams)

    def specialist(self, index):
        return self.specialists[index]

    def likeliest(self, predict: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and draft ids of each row's k best tokens, `[B, rows * k]` each."""
        logits = F.linear(predict.flatten(0, 1), self.head_rows)
        score, token = largest(logits.float().log_softmax(-1), self.tree.top_k)
        return (x.reshape(predict.shape[0], -1) for x in (score, token))

    def select(self, scores: Tensor, tokens: Tensor, beams: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, parents and scores of the best candidates, in candidate order.

        Candidate c was drafted from slot c // k: slot 0 is the root, then k slots for each beam.
        """
        _, best = largest(scores, self.tree.nodes)
        keep = best.sort(dim=-1).values
        slots = torch.cat((self.roots.expand(scores.shape[0], -1), *beams), dim=1)  # candidate index, root -1
        parents = slots.gather(1, keep // self.tree.top_k)
        nodes = (keep[:, None] <= parents[:, :, None]).sum(-1)
        return self.draft_ids[tokens.gather(1, keep)], nodes, scores.gather(1, keep)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return rows `index` [B, M] of `x` [B, N, C] as `[B, M, C]`."""
    offsets = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return F.embedding(index + offsets, x.flatten(0, 1))


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of the last dimension and their indices; of equal values the first comes first."""
    if torch.compiler.is_exporting():
        return values.topk(count)  # ONNX TopK orders equal values by index; PyTorch's does not
    ordered, index = values.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :count], index[..., :count]
