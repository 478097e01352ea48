"""Tree drafting, level by level: each level's tokens and features are the input of the next."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.drafters.round import DraftRound, RoundCaches, largest, take
from poss_export.drafters.specialist import Specialist


class TreeRound(DraftRound):
    """A round of EAGLE-2 (arXiv 2406.16858) by position specialists (PosS, 2506.03566; EAGLE-2 has one)."""

    def __init__(self, drafter: Drafter, tree: TreeShape, embed_rows: Tensor, head_rows: Tensor) -> None:
        """Take what `make_round` takes."""
        k = tree.top_k
        super().__init__(drafter, tree, head_rows, [1, *[k] * (tree.depth - 1)])
        self.embed_rows = self.head_rows
        if embed_rows is not head_rows:
            self.embed_rows = nn.Parameter(embed_rows, requires_grad=False)
        self.own = nn.Buffer(torch.zeros(k, k).masked_fill(~torch.eye(k, dtype=torch.bool), float("-inf")))

    def forward(
        self, embeddings: Tensor, features: Tensor, row_count: Tensor, caches: RoundCaches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implement `DraftRound.forward`."""
        batch, k = row_count.shape[0], self.tree.top_k
        prefix = self.fusion(embeddings, features)
        caches.append(0, self._key_value(prefix))

        x = take(prefix, row_count[:, None] - 1)  # [B, 1, H]; [B, k, H] from level 1 on
        score = torch.zeros(batch, 1)
        own = self.own.expand(batch, -1, -1)
        levels, places, bias, previous = list[Tensor](), list[Tensor](), own[:, :, :0], -1
        scores, tokens, beams = list[Tensor](), list[Tensor](), list[Tensor]()
        for level in range(self.tree.depth):  # drafts position level + 1
            s = self.config.specialist(level + 1)
            specialist = self.specialists[s]
            assert isinstance(specialist, Specialist)
            positions = (caches.length[:, None] + (level - 1)).expand(-1, self.beams[level])
            drafted = None
            if level > 0:
                levels.append(x)
                places.append(positions)
                first = level - 1 if s == previous else 0  # its cache has the levels before
                rows = torch.cat(levels[first:], dim=1)
                drafted = specialist.kv(rows), torch.cat(places[first:], dim=1), bias
            previous = s
            mixed = caches.attend(s, specialist.q(x), positions, drafted)
            predict, feature = specialist.finish(x, mixed)

            gain, children = self._likeliest(predict)  # [B, M, k]
            total, children = (score[:, :, None] + gain).flatten(1), children.flatten(1)
            scores.append(total)
            tokens.append(children)
            if level + 1 < self.tree.depth:
                score, beam = largest(total, k)
                beams.append(beam)
                parent = beam // k
                bias = own if level == 0 else torch.cat((take(bias, parent), own), dim=-1)
                embedding = F.embedding(children.gather(1, beam), self.embed_rows)
                x = self.fusion(embedding, take(feature, parent))
        return self._select(scores, tokens, beams)
