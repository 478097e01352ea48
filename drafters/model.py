"""One drafter built of parts: a fusion shared by all rows, and specialists by draft position."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.fusion import FUSIONS
from poss_export.drafters.masks import Masks
from poss_export.drafters.specialist import AnyLayer, Specialist, TapsLayer
from poss_export.targets.decoder import RMSNorm


class Drafter(nn.Module):
    """Weights of a drafter; tables that it does not own are the target's and live elsewhere.

    `shared_layers` come before the specialists, for all positions; `masks` is None where drafting goes level
    by level. `draft_ids`: int64 `[draft_vocab]`, ascending target ids that the drafter can propose. `head`
    `[draft_vocab, hidden]` and `embeddings` `[vocab, hidden]` are None where the target's tables serve.
    """

    draft_ids: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate without initialising."""
        super().__init__()
        self.config = config
        self.fusion = FUSIONS[config.fusion](config)
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if config.reads_taps else None
        shared, specialists = config.num_layers - 1, config.num_specialists
        self.shared_layers = nn.ModuleList(self._layer(i == 0, last=False) for i in range(shared))
        self.specialists = nn.ModuleList(self._layer(shared == 0, last=True) for _ in range(specialists))
        self.masks = Masks(config) if config.drafting == "parallel" else None
        self.head = self.embeddings = None
        if config.own_head:
            self.head = nn.Parameter(torch.empty(config.draft_vocab_size, config.hidden_size))
        if config.own_embeddings:
            self.embeddings = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.register_buffer("draft_ids", torch.arange(config.draft_vocab_size))

    def _layer(self, first: bool, last: bool) -> AnyLayer:
        if self.config.reads_taps:
            return TapsLayer(self.config, first, self.final_norm if last else None)
        return Specialist(self.config if last else replace(self.config, alignment="joint"))

    def specialist(self, position: int) -> AnyLayer:
        """Return the specialist that drafts `position` (1-based)."""
        specialist = self.specialists[self.config.specialist(position)]
        assert isinstance(specialist, AnyLayer)
        return specialist

    def layers(self) -> Iterator[AnyLayer]:
        """Yield the shared layers, then the specialists."""
        for layer in (*self.shared_layers, *self.specialists):
            assert isinstance(layer, AnyLayer)
            yield layer

    def settle(self, config: DrafterConfig) -> None:
        """Take a configuration that differs in what a file left open: taps, and what is fed back."""
        self.config = config
        for layer in self.layers():
            if isinstance(layer, TapsLayer):
                layer.feed_back_normed = config.feed_back_normed

    def propose_only(self, ids: Tensor) -> None:
        """Propose `ids` alone, int64 `[draft_vocab]`, ascending; until now it could propose every token."""
        self.config = replace(self.config, draft_vocab_size=len(ids))
        self.draft_ids = ids
        if self.head is not None:
            self.head = nn.Parameter(self.head[ids], requires_grad=False)

    def scale_embeddings(self, factor: float) -> None:
        """Read embeddings as if they had been multiplied by `factor`."""
        self.fusion.scale_embedding_rows(factor)
        if self.masks is not None:
            self.masks.keep_embeddings(1 / factor)
