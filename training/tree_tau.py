"""Tokens that a round emits with trees, on held-out dialogues: the round that is exported, in PyTorch.

Answers are known, so no target runs: a round drafts a tree, follows the answer down the tree as far as it
goes, and begins again behind it. Every dialogue is one row of a batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from poss_export.config import TreeShape
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.drafters.model import Drafter
from poss_export.training.corpus import Corpus

DIALOGUES = 24  # held-out dialogues that are walked through


@torch.no_grad()
def tree_taus(drafter: Drafter, corpus: Corpus, trees: Sequence[TreeShape]) -> dict[TreeShape, float]:
    """Return tau of each tree that the drafter can draw, pooled over all rounds."""
    longest = drafter.config.longest_draft
    return {
        tree: _Walk(drafter, corpus, tree).tau() for tree in trees if longest is None or tree.depth <= longest
    }


class _Walk:
    """A walk through the answers of some dialogues, all at once."""

    def __init__(self, drafter: Drafter, corpus: Corpus, tree: TreeShape) -> None:
        dialogues, config = corpus.dialogues, drafter.config
        held_out = np.flatnonzero(dialogues.validation)[:DIALOGUES]
        self.corpus, self.depth = corpus, tree.depth
        self.ends = torch.from_numpy(dialogues.offsets[held_out + 1])
        starts = torch.from_numpy(dialogues.offsets[held_out])
        self.ids = torch.from_numpy(dialogues.ids)
        answers = torch.from_numpy(dialogues.answer_mask)
        # The target has read the prompt and said the first token of the answer: the first root.
        self.roots = torch.tensor(
            [int(s + answers[s:e].int().argmax()) for s, e in zip(starts, self.ends, strict=True)]
        )
        self.read = starts  # rows before these are in the caches
        self.past = torch.zeros_like(starts)
        self.embeddings = corpus.embeddings.cpu()
        draft_round = make_round(drafter, tree, self.embeddings[drafter.draft_ids], corpus.head.float().cpu())
        capacity = int(dialogues.lengths[held_out].max()) + tree.depth + 1
        self.graph = DraftGraph(draft_round, "static", capacity)
        self.noise = torch.zeros(1, tree.depth, config.draft_vocab_size)
        shape = (len(held_out), config.num_kv_heads, capacity, config.head_dim)
        self.caches = [torch.zeros(shape) for _ in range(2 * config.num_caches(tree.depth))]

    def tau(self) -> float:
        rounds = emitted = 0
        while self._drop_ended():
            tokens, parents = self._draft()
            accepted = self._accepted(tokens, parents)
            rounds += len(accepted)
            emitted += int(torch.minimum(accepted + 1, self.ends - 1 - self.roots).sum())
            self.roots = self.roots + accepted + 1
        return emitted / max(1, rounds)

    def _draft(self) -> tuple[Tensor, Tensor]:
        """Return tokens and parents of a tree behind every root."""
        counts = self.roots - self.read
        rows = self.read[:, None] + torch.arange(int(counts.max()))
        rows = torch.minimum(rows, self.roots[:, None] - 1)  # padding repeats the last row
        embeddings = self.embeddings[self.ids[rows + 1]]
        features = self.corpus.view.features[rows.to(self.corpus.device)].float().cpu()
        reads = embeddings, features, counts, self.past, self.noise.expand(len(counts), -1, -1)
        tokens, parents, _, *self.caches = self.graph(*reads, *self.caches)
        self.read, self.past = self.roots, self.past + counts
        return tokens, parents

    def _accepted(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Return how many tokens of each answer are in its tree."""
        node, accepted = torch.zeros_like(self.roots), torch.zeros_like(self.roots)
        for step in range(1, self.depth + 1):
            place = self.roots + step
            truth = self.ids[place.clamp(max=len(self.ids) - 1)]
            found = (parents == node[:, None]) & (tokens == truth[:, None]) & (place < self.ends)[:, None]
            alive = found.any(1) & (accepted == step - 1)
            accepted += alive
            node = torch.where(alive, found.int().argmax(1) + 1, node)
        return accepted

    def _drop_ended(self) -> int:
        """Drop the dialogues whose answers have ended; return how many are left."""
        staying = self.roots < self.ends - 1
        self.roots, self.ends, self.read, self.past = (
            x[staying] for x in (self.roots, self.ends, self.read, self.past)
        )
        if not staying.all():
            self.caches = [cache[staying] for cache in self.caches]
        return len(self.roots)
