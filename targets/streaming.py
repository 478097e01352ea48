"""Decoders of weights that are stored: all of them in memory, or one layer at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TargetConfig
from poss_export.targets.decoder import Decoder, Layer
from poss_export.targets.weights import Weight


def load_decoder(config: TargetConfig, weights: Mapping[str, Weight]) -> Decoder:
    """Return a decoder on the CPU, in eval mode, its float32 weights read and without gradients."""
    decoder = hollow(config)
    own = dict(weights)
    if config.tied_embeddings:
        del own["lm_head"]
    state = {name: weight.read() for name, weight in own.items()}
    decoder.load_state_dict({"lm_head": state["embed_tokens"], **state}, assign=True)
    if config.tied_embeddings:
        decoder.lm_head = decoder.embed_tokens
    return decoder.eval().requires_grad_(False)


def hollow(config: TargetConfig) -> Decoder:
    """Return a decoder whose weights have shapes and no values."""
    with torch.device("meta"):
        return Decoder(config).eval().requires_grad_(False)


class StreamedDecoder(Decoder):
    """A decoder that reads each layer when a call comes to it, and keeps none: slow, and as large as a layer.

    It computes in float32, on the CPU, without gradients.
    """

    def __init__(self, config: TargetConfig, weights: Mapping[str, Weight]) -> None:
        """Keep `weights`, by their names in the state dict; but for the last norm none is read."""
        with torch.device("meta"):
            super().__init__(config)
        self._stored = weights
        self.norm.weight = nn.Parameter(weights["norm.weight"].read())
        self.eval().requires_grad_(False)

    def weights(self) -> Mapping[str, Weight]:
        """Return the weights by their names in the state dict."""
        return self._stored

    def layer(self, index: int) -> Layer:
        """Return layer `index`, read now."""
        with torch.device("meta"):
            layer = Layer(self.config)
        state = {name: self._stored[f"layers.{index}.{name}"].read() for name in layer.state_dict()}
        layer.load_state_dict(state, assign=True)
        return layer.eval().requires_grad_(False)

    def embed(self, ids: Tensor) -> Tensor:
        """Return rows of the embedding table; only they are read."""
        return self._stored["embed_tokens"].rows(ids)

    def head_rows(self, ids: Tensor) -> Tensor:
        """Return rows of the head's table; only they are read."""
        return self._stored["lm_head"].rows(ids)

    def head(self, features: Tensor) -> Tensor:
        """Return logits `[batch, rows, vocab]`, a block of the table after the other."""
        blocks = self._stored["lm_head"].row_blocks()
        return self.logits(torch.cat([F.linear(features, rows) for _, rows in blocks], dim=-1))
