"""Tree drafting, level by level: each level's tokens and features are the input of the next."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.drafters.round import DraftRound, RoundCaches, largest, take
from poss_export.drafters.specialist import AnyLayer

Level = tuple[Tensor, Tensor]  # the rows of a level, and their positions [B, M]


class TreeRound(DraftRound):
    """A round of EAGLE-2 (arXiv 2406.16858) by position specialists (PosS, 2506.03566; EAGLE-2 has one).

    Each specialist has a cache of its own, and reads the rows of earlier levels with its own projections.
    """

    def __init__(self, drafter: Drafter, tree: TreeShape, embed_rows: Tensor, head_rows: Tensor) -> None:
        """Take what `make_round` takes."""
        k = tree.top_k
        super().__init__(drafter, tree, head_rows, [1, *[k] * (tree.depth - 1)])
        self.embed_rows: Tensor | None = self.head_rows
        if self.embeddings is not None:
            self.embed_rows = None
        elif embed_rows is not head_rows:
            self.embed_rows = nn.Parameter(embed_rows, requires_grad=False)
        self.own = nn.Buffer(torch.zeros(k, k).masked_fill(~torch.eye(k, dtype=torch.bool), float("-inf")))

    def forward(
        self, embeddings: Tensor, features: Tensor, row_count: Tensor, noise: Tensor, caches: RoundCaches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implement `DraftRound.forward`."""
        batch, k = row_count.shape[0], self.tree.top_k
        prefix = self.fusion(embeddings, self.fusion.project(features))
        prefix, _ = self._pass_shared_layers(prefix, prefix[:, :0], self.own[None, :0, :0], caches)
        caches.append(len(self.shared_layers), self._key_value(prefix))

        x = take(prefix, row_count[:, None] - 1)  # [B, 1, ...]; [B, k, ...] from level 1 on
        score = torch.zeros(batch, 1)
        own = self.own.expand(batch, -1, -1)
        levels, bias = list[Level](), own[:, :, :0]
        scores, tokens, beams = list[Tensor](), list[Tensor](), list[Tensor]()
        for level in range(self.tree.depth):  # drafts position level + 1
            positions = (caches.length[:, None] + (level - 1)).expand(-1, self.beams[level])
            levels.append((x, positions))
            predict, feature = self._draft(levels, bias, caches)
            gain, children = self._likeliest(predict, noise[:, level, None])  # [B, M, k]
            total, children = (score[:, :, None] + gain).flatten(1), children.flatten(1)
            scores.append(total)
            tokens.append(children)
            if level + 1 < self.tree.depth:
                score, beam = largest(total, k)
                beams.append(beam)
                parent = beam // k
                bias = own if level == 0 else torch.cat((take(bias, parent), own), dim=-1)
                x = self.fusion(self._embed_drafted(children.gather(1, beam)), take(feature, parent))
        return self._select(scores, tokens, beams)

    def _draft(self, levels: Sequence[Level], bias: Tensor, caches: RoundCaches) -> tuple[Tensor, Tensor]:
        """Return (predict, feedback) of the rows of the last level, each `[B, M, H]`.

        bias: `[B, M, n]`, added to the scores of all rows of the levels from 1 on.
        """
        x, positions = levels[-1]
        s = self.config.specialist(len(levels))
        specialist, drafted = self.specialists[s], None
        assert isinstance(specialist, AnyLayer)
        if len(levels) > 1:
            known = s == self.config.specialist(len(levels) - 1)  # its cache has the levels before
            rows, places = zip(*(levels[-1:] if known else levels[1:]), strict=True)
            drafted = specialist.kv(torch.cat(rows, dim=1)), torch.cat(places, dim=1), bias
        return specialist.finish(x, caches.attend(s, specialist.q(x), positions, drafted))

    def _embed_drafted(self, children: Tensor) -> Tensor:
        """Return embeddings `[B, M, H]` of draft ids `[B, M]`."""
        if self.embed_rows is None:
            return self.embed(self.draft_ids.take(children))
        return F.embedding(children, self.embed_rows)


class TapsRound(TreeRound):
    """A round of EAGLE-3 (arXiv 2503.01840), perhaps by specialists (PosS on EAGLE-3), or of several layers.

    Specialists share a cache: a row's key and value are those of the specialist that read it, of the prefix
    those of the first.
    """

    def _draft(self, levels: Sequence[Level], bias: Tensor, caches: RoundCaches) -> tuple[Tensor, Tensor]:
        """Implement `TreeRound._draft`; of the first level the shared layers are passed already."""
        x, positions = levels[-1]
        specialist, last = self.specialists[self.config.specialist(len(levels))], len(self.shared_layers)
        assert isinstance(specialist, AnyLayer)
        if len(levels) == 1:
            return specialist.finish(x, caches.attend(last, specialist.q(x), positions))
        for cache, layer in enumerate((*self.shared_layers, specialist)):
            assert isinstance(layer, AnyLayer)
            drafted = layer.kv(x), positions, bias
            x, feedback = layer.finish(x, caches.attend(cache, layer.q(x), positions, drafted))
        return x, feedback
