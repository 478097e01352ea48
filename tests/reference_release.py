"""The published methods on a release's own tensors, formula by formula; nothing of our modules.

The layers' attention and the tree are those of `tests/reference_round.py`, which takes this for a drafter.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from poss_export.config import RopeConfig
from tests.public_checkpoints import TINY, Sizes

EPS, ROPE = 1e-5, RopeConfig(500.0)  # of the releases in tests/public_checkpoints.py


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def eagle_fusion(weights: Mapping[str, Tensor], e: Tensor, f: Tensor, name: str = "fc") -> Tensor:
    return linear(weights, name, torch.cat((e, f), -1))


def fspad_fusion(weights: Mapping[str, Tensor], e: Tensor, f: Tensor) -> Tensor:
    z = torch.cat((e, f), -1) @ weights["fc.fc.weight"].T + weights["fc.fc.bias"]
    lifted = rms_norm(z, weights["fc.post_attention_layernorm.weight"]) @ weights["fc.mlp.up_proj.weight"].T
    gate = silu(e @ weights["fc.mlp.gate_proj.weight"].T)
    return z + (gate * lifted) @ weights["fc.mlp.down_proj.weight"].T


def griffin_fusion(weights: Mapping[str, Tensor], e: Tensor, f: Tensor) -> Tensor:
    z = torch.cat((e, f), -1) @ weights["fc.fc.weight"].T + weights["fc.fc.bias"]
    n1, n2 = weights["fc.post_attention_layernorm.weight"], weights["fc.mlp.input_layernorm.weight"]
    wide = torch.cat((rms_norm(rms_norm(z, n1), n2), rms_norm(e, n2)), -1)
    return z + silu(wide @ weights["fc.mlp.up_proj.weight"].T) @ weights["fc.mlp.down_proj.weight"].T


class Layer:
    """A decoder layer without input norm, by the names behind `prefix`."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    def project(self, name: str, x: Tensor) -> Tensor:
        return linear(self.weights, f"{self.prefix}.{name}_proj", x)

    def q(self, x: Tensor) -> Tensor:
        return self.project("self_attn.q", x)

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.project("self_attn.k", x), self.project("self_attn.v", x)

    def finish(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        h = x + self.project("self_attn.o", mixed)
        m = rms_norm(h, self.weights[f"{self.prefix}.post_attention_layernorm.weight"])
        moved = self.project("mlp.down", silu(self.project("mlp.gate", m)) * self.project("mlp.up", m))
        hidden = h.shape[-1]
        if moved.shape[-1] == hidden:
            return h + moved, h + moved
        return h + moved[..., :hidden], h + moved[..., hidden:]  # predict, regress


class ReleasedDrafter:
    """What `reference_round` asks of a drafter, from float32 `weights` of a release.

    `prefixes`: of the layers, the last ones being specialists of `positions` each.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        fusion: Any,
        prefixes: list[str],
        *,
        positions: int | None = None,
        masks: Mapping[str, Any] | None = None,
        rope: RopeConfig = ROPE,
        sizes: Sizes = TINY,
    ) -> None:
        layers = [Layer(weights, prefix) for prefix in prefixes]
        specialists = len(layers) if masks is None else 1
        self.shared_layers, self.specialists = layers[: len(layers) - specialists], layers[-specialists:]
        self.positions, self.masks = positions, None
        self.draft_ids = torch.arange(sizes.vocab)
        if masks is not None:
            feature = weights["mask_hidden"][0] if masks["mask_feature"] == "learned" else None
            self.masks = SimpleNamespace(embeddings=weights["mask_embed.weight"], feature=feature)
        self.fusion = lambda e, f: fusion(weights, e, f)
        self.config = SimpleNamespace(
            drafting="tree" if masks is None else "parallel",
            hidden_size=sizes.hidden,
            num_heads=sizes.heads,
            num_kv_heads=sizes.kv_heads,
            head_dim=sizes.hidden // sizes.heads,
            rope=rope,
            num_caches=lambda depth: len(self.shared_layers) + self.index(depth) + 1,
            **(masks or {}),
        )

    def index(self, position: int) -> int:
        """Return s(j) = min((j-1) // p, S-1)."""
        return (
            0 if self.positions is None else min((position - 1) // self.positions, len(self.specialists) - 1)
        )

    def specialist(self, position: int) -> Layer:
        return self.specialists[self.index(position)]
