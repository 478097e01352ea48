"""A decoder from named tensors: where checkpoint formats meet.

Formats offer their tensors under Hugging Face's names and in PyTorch's layout (`[out, in]`).
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from poss_export.config import TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.decoder import Decoder


def build_decoder(config: TargetConfig, names: Collection[str], read: Callable[[str], Tensor]) -> Decoder:
    """Return the decoder on the CPU, in eval mode, its float32 weights without gradients.

    Args:
        config: what the checkpoint says about itself.
        names: every tensor that the checkpoint has.
        read: returns one of them as float32; each is read once and packed at once, so that no
            weight is in memory twice for longer than its layer takes.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape than `config` says.
    """
    unread = set(names)

    def take(name: str, *shape: int) -> Tensor:
        if name not in unread:
            raise CheckpointError(
                f"tensor {name!r} is missing: the checkpoint is incomplete or is not what its "
                "configuration says; fetch it again"
            )
        unread.remove(name)
        tensor = read(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but its configuration says {list(shape)}: "
                "weights and configuration are of different models"
            )
        return tensor

    hidden, head_dim, inner = config.hidden_size, config.head_dim, config.intermediate_size
    rows = {"q": config.num_heads * head_dim, "k": config.num_kv_heads * head_dim}
    rows["v"] = rows["k"]
    halves = {"gate": inner, "up": inner}

    def packed(prefix: str, name: str, rows: dict[str, int]) -> Tensor:
        if config.architecture == "phi3":  # has them packed as we do
            return take(f"{prefix}.{name}_proj.weight", sum(rows.values()), hidden).T.contiguous()
        parts = [take(f"{prefix}.{part}_proj.weight", count, hidden) for part, count in rows.items()]
        return torch.cat(parts).T.contiguous()

    def biases(prefix: str, rows: dict[str, int]) -> Tensor:
        return torch.cat([take(f"{prefix}.{part}_proj.bias", count) for part, count in rows.items()])

    weights = {
        "embed_tokens": take("model.embed_tokens.weight", config.vocab_size, hidden),
        "norm.weight": take("model.norm.weight", hidden),
    }
    if not config.tied_embeddings:
        weights["lm_head"] = take("lm_head.weight", config.vocab_size, hidden)
    for index in range(config.num_layers):
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        weights[f"{ours}.qkv.weight"] = packed(attention, "qkv", rows)
        if config.qkv_bias:
            weights[f"{ours}.qkv.bias"] = biases(attention, rows)
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                weights[f"{ours}.{norm}.weight"] = take(f"{attention}.{norm}.weight", head_dim)
        output = take(f"{attention}.o_proj.weight", hidden, rows["q"])
        weights[f"{ours}.output.weight"] = output.T.contiguous()
        if config.output_bias:
            weights[f"{ours}.output.bias"] = biases(attention, {"o": hidden})
        weights[f"{ours}.mlp.gate_up.weight"] = packed(mlp, "gate_up", halves)
        down = take(f"{mlp}.down_proj.weight", hidden, inner)
        weights[f"{ours}.mlp.down.weight"] = down.T.contiguous()
        if config.mlp_bias:
            weights[f"{ours}.mlp.gate_up.bias"] = biases(mlp, halves)
            weights[f"{ours}.mlp.down.bias"] = biases(mlp, {"down": hidden})
        weights[f"{ours}.input_norm.weight"] = take(f"{theirs}.input_layernorm.weight", hidden)
        weights[f"{ours}.post_norm.weight"] = take(f"{theirs}.post_attention_layernorm.weight", hidden)
    if unread:
        raise CheckpointError(
            f"unexpected tensors {', '.join(sorted(unread)[:5])} ({len(unread)} in all): the checkpoint has "
            "parts that this decoder does not compute; use a plain checkpoint of a supported architecture"
        )
    return assign(config, weights)


def assign(config: TargetConfig, weights: dict[str, Tensor]) -> Decoder:
    """Return a decoder in eval mode that holds `weights` (names of its state dict) without a copy.

    With tied embeddings the head is the table, whatever "lm_head" says.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    if config.tied_embeddings:
        weights["lm_head"] = weights["embed_tokens"]
    decoder.load_state_dict(weights, assign=True)
    if config.tied_embeddings:
        decoder.lm_head = decoder.embed_tokens
    return decoder.eval().requires_grad_(False)
