"""Parallel drafting: mask rows stand for the tokens to come, and one pass drafts them all."""

import torch
from torch import Tensor, nn

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.drafters.round import DraftRound, RoundCaches, largest, take
from poss_export.drafters.specialist import AnyLayer


class ParallelRound(DraftRound):
    """A round in the manner of ParallelSpec (arXiv 2410.05589); what the paper leaves open is ours.

    Position 1 is drafted from the last real row, position d + 1 from mask row d. A specialist takes the
    rows of its positions. No position knows which tokens were drafted before it, so every node of a depth
    has the same children: a node is a tuple of ranks, its score the sum of their log-probabilities, and
    the tree is the set of the best tuples.

    `constant_rows` `[1, depth - 1, row_size]` are the fused mask rows where they depend on nothing.
    """

    constant_rows: Tensor | None

    def __init__(self, drafter: Drafter, tree: TreeShape, head_rows: Tensor) -> None:
        """Take what `make_round` takes; no token is fed back, so no embedding is looked up."""
        beams = [1]  # the best tuples of a depth extend best tuples of the depth before, at most `nodes`
        while len(beams) < tree.depth:
            beams.append(min(beams[-1] * tree.top_k, tree.nodes))
        super().__init__(drafter, tree, head_rows, beams)
        assert drafter.masks is not None
        self.masks = drafter.masks
        count = tree.depth - 1
        constant = None
        if drafter.config.mask_feature != "repeat_last":
            constant = self._mask_rows(torch.zeros(1, drafter.config.feature_size)).detach()
        self.register_buffer("constant_rows", constant)
        # Mask row d sees mask rows 1 .. d, the last real row none.
        hidden = torch.ones(count + 1, count, dtype=torch.bool).triu()
        self.order = nn.Buffer(torch.zeros(count + 1, count).masked_fill(hidden, float("-inf")))

    def forward(
        self, embeddings: Tensor, features: Tensor, row_count: Tensor, noise: Tensor, caches: RoundCaches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implement `DraftRound.forward`."""
        last = row_count[:, None] - 1
        real = self.fusion(embeddings, self.fusion.project(features))
        if self.constant_rows is None:
            masks = self._mask_rows(take(features, last)[:, 0])
        else:
            masks = self.constant_rows.expand(row_count.shape[0], -1, -1)
        real, masks = self._pass_shared_layers(real, masks, self.order[1:], caches)
        first = len(self.shared_layers)
        caches.append(first, self._key_value(real))

        rows = torch.cat((take(real, last), masks), dim=1)  # [B, depth, H]
        positions = caches.length[:, None] + torch.arange(-1, self.tree.depth - 1)
        order = self.order.expand(row_count.shape[0], -1, -1)
        predicted = []
        for s, module in enumerate(self.specialists):
            specialist, mine = module, self._rows_of(s)
            assert isinstance(specialist, AnyLayer)
            drafted = None
            if mine.stop > 1:
                seen = slice(1, mine.stop)  # mask rows up to its last
                drafted = specialist.kv(rows[:, seen]), positions[:, seen], order[:, mine, : mine.stop - 1]
            mixed = caches.attend(first + s, specialist.q(rows[:, mine]), positions[:, mine], drafted)
            predicted.append(specialist.finish(rows[:, mine], mixed)[0])
        return self._best_tuples(*self._likeliest(torch.cat(predicted, dim=1), noise))

    def _mask_rows(self, last_feature: Tensor) -> Tensor:
        """Return fused mask rows `[B, depth - 1, row_size]` behind a last row with features `[B, ...]`."""
        rows = [self.masks.row(i, last_feature, self.fusion) for i in range(1, self.tree.depth)]
        if not rows:
            return last_feature.new_zeros(last_feature.shape[0], 0, self.fusion.row_size)
        return torch.stack(rows, dim=1)

    def _rows_of(self, specialist: int) -> slice:
        """Return which of the rows (last real, masks) a specialist drafts from."""
        positions = range(1, self.tree.depth + 1)
        mine = [p - 1 for p in positions if self.config.specialist(p) == specialist]
        return slice(mine[0], mine[-1] + 1)

    def _best_tuples(self, gain: Tensor, child: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tree of the best rank tuples; gain, child: `[B, depth, k]`, by position and rank."""
        score = torch.zeros_like(gain[:, 0, :1])
        scores, tokens, beams = list[Tensor](), list[Tensor](), list[Tensor]()
        for level, width in enumerate(self.beams):
            total = (score[:, :, None] + gain[:, level, None]).flatten(1)
            scores.append(total)
            tokens.append(child[:, level].repeat(1, width))
            if level + 1 < self.tree.depth:
                score, beam = largest(total, self.beams[level + 1])
                beams.append(beam)
        return self._select(scores, tokens, beams)
