"""One small decoder for every supported target (docs/targets.md).

The decoder knows nothing of caches. Each layer hands its projected query, key and value to an
`Attend` function, and whoever calls decides what that is: a graph with shared or static caches
(`exporters`), a plain causal pass or an in-place cache (`training`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import TargetConfig
from poss_export.targets.mixing import capped, causal_masks, mix
from poss_export.targets.rope import rope_tables, rotate
from poss_export.targets.weights import Weight, weights_of

# attend(layer, query, key, value) -> mixed values, before the output projection.
#   query: [batch, seq, heads * head_dim]; key, value: [batch, seq, kv_heads * head_dim]; not rotated yet
#   result: as query
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class Linear(nn.Module):
    """`x @ weight (+ bias)` with the weight stored `[in, out]`, as ONNX MatMul reads it."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        """Allocate without initialising: checkpoints or the trainer fill it."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        """Start from a gain of one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., size]`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)  # autocast mixes dtypes


class MLP(nn.Module):
    """Gated units, gate and up projections in one matrix: one pass over the input, one matmul to launch."""

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        outputs: int | None = None,
        bias: bool = False,
        activation: Activation = F.silu,
    ) -> None:
        """Allocate the two matrices; `outputs` None is `hidden`."""
        super().__init__()
        self.activation = activation
        self.gate_up = Linear(hidden, 2 * intermediate, bias)
        self.down = Linear(intermediate, outputs or hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., hidden]` to `[..., outputs]`."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        down: Tensor = self.down(self.activation(gate) * up)
        return down


def _mlp(config: TargetConfig) -> MLP:
    sizes = config.hidden_size, config.intermediate_size
    return MLP(*sizes, bias=config.mlp_bias, activation=ACTIVATIONS[config.activation])


class Experts(nn.Module):
    """MLPs side by side as one large one, of which each token passes those that a router chooses for it.

    All are computed for every token; the units of an expert are weighted before the last product, which adds
    the experts up.
    """

    def __init__(self, config: TargetConfig) -> None:
        """Allocate the router and the matrices of all experts."""
        super().__init__()
        self.count, self.chosen, self.normed = (
            config.num_experts,
            config.experts_per_token,
            config.normed_experts,
        )
        self.activation = ACTIVATIONS[config.activation]
        units = config.num_experts * config.intermediate_size
        self.router = Linear(config.hidden_size, config.num_experts)
        self.gate_up = Linear(config.hidden_size, 2 * units)  # all gates, then all up projections
        self.down = Linear(units, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., hidden]` to `[..., hidden]`."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        units = (self.activation(gate) * up).unflatten(-1, (self.count, -1))
        mixed: Tensor = self.down((units * self._weights(x)[..., None]).flatten(-2))
        return mixed

    def _weights(self, x: Tensor) -> Tensor:
        """Return the weight of each expert `[..., experts]`, 0 of those that are not chosen."""
        best, chosen = self.router(x).float().softmax(-1).topk(self.chosen)
        if self.normed:
            best = best / best.sum(-1, keepdim=True)
        places = chosen[..., None] == torch.arange(self.count, device=x.device)  # [..., chosen, experts]
        return torch.where(places, best[..., None], 0.0).sum(-2).to(x.dtype)


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: TargetConfig) -> None:
        """Allocate the layer's matrices."""
        super().__init__()
        self.widths = [config.num_heads * config.head_dim] + 2 * [config.num_kv_heads * config.head_dim]
        self.head_dim = config.head_dim
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.qkv = Linear(config.hidden_size, sum(self.widths), bias=config.qkv_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.output = Linear(self.widths[0], config.hidden_size, bias=config.output_bias)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Experts(config) if config.num_experts else _mlp(config)
        self.behind_attention, self.behind_mlp = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) if config.outer_norms else nn.Identity()
            for _ in range(2)
        )

    def forward(self, x: Tensor, index: int, attend: Attend) -> Tensor:
        """Map the residual stream `[batch, seq, hidden]` through layer `index`."""
        query, key, value = self.qkv(self.input_norm(x)).split(self.widths, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query = self.q_norm(query.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            key = self.k_norm(key.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        x = x + self.behind_attention(self.output(attend(index, query, key, value)))
        x = x + self.behind_mlp(self.mlp(self.post_norm(x)))
        return x


class Decoder(nn.Module):
    """A target: token ids to features (`hidden`), features to logits (`head`)."""

    def __init__(self, config: TargetConfig) -> None:
        """Allocate all weights; with tied embeddings the head is the embedding table."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = self.embed_tokens
        if not config.tied_embeddings:
            self.lm_head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def weights(self) -> Mapping[str, Weight]:
        """Return the weights by their names in the state dict."""
        return weights_of(self)

    def layer(self, index: int) -> Layer:
        """Return layer `index`."""
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings `[..., hidden]` of `ids` `[...]`, as stored: drafters read them unscaled."""
        return F.embedding(ids, self.embed_tokens)

    def head_rows(self, ids: Tensor) -> Tensor:
        """Return the rows `[..., hidden]` of the head's table that score `ids` `[...]`."""
        return F.embedding(ids, self.lm_head)

    def hidden(self, input_ids: Tensor, attend: Attend) -> Tensor:
        """Return features `[batch, seq, hidden]`, the last hidden state after the final norm."""
        return self.hidden_and_read(input_ids, attend)[0]

    def hidden_and_read(
        self, input_ids: Tensor, attend: Attend, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return features, and what a drafter reads of each row.

        With `taps`, ascending, these are the residual streams that enter those layers, joined: `[batch, seq,
        taps * hidden]`; without, the features.
        """
        x, tapped = self.embed(input_ids), list[Tensor]()
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        for index in range(self.config.num_layers):
            if index in taps:
                tapped.append(x)
            x = self.layer(index)(x, index, attend)
        normed: Tensor = self.norm(x)
        return normed, torch.cat(tapped, dim=-1) if tapped else normed

    def head(self, features: Tensor) -> Tensor:
        """Return logits `[batch, rows, vocab]` of features `[batch, rows, hidden]`."""
        # Two dimensions make this one Gemm that reads the table as it lies: tied weights stay one tensor.
        scores = F.linear(features.flatten(0, 1), self.lm_head)
        return self.logits(scores.view(features.shape[0], features.shape[1], self.config.vocab_size))

    def logits(self, scores: Tensor) -> Tensor:
        """Return the logits of features whose products with the rows of the head are `scores`."""
        if self.config.logit_divisor != 1:
            scores = scores / self.config.logit_divisor
        return capped(scores, self.config.logit_cap)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """Return `[batch, heads, seq, head_dim]` of `[batch, seq, heads * head_dim]`."""
    return x.view(x.shape[0], x.shape[1], -1, head_dim).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return `[batch, seq, heads * head_dim]` of `[batch, heads, seq, head_dim]`."""
    return x.transpose(1, 2).flatten(2)


def causal_attend(
    config: TargetConfig, seq: int, dtype: torch.dtype, device: torch.device | None = None
) -> Attend:
    """Return an `Attend` over whole sequences from position 0, without caches."""
    tables = [
        [table.to(device, dtype) for table in rope_tables(rope, config.head_dim, seq)]
        for rope in config.ropes
    ]
    masks = causal_masks(config, seq, device)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (split_heads(x, config.head_dim) for x in (query, key, value))
        rope, mask = config.of_layer(layer, tables), config.of_layer(layer, masks)
        scale, cap = config.attention_scale, config.attention_cap
        return merge_heads(mix(rotate(q, *rope), rotate(k, *rope), v, mask, scale=scale, cap=cap))

    return attend
