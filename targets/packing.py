"""The weights of our decoder, of the tensors of a checkpoint: where formats meet.

Formats offer their tensors under Hugging Face's names and in PyTorch's layout (`[out, in]`).
"""

from collections.abc import Mapping

from poss_export.config import TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.weights import Stored, Weight

GEMMA = ("gemma", "gemma2", "gemma3_text")  # whose norms multiply by 1 + weight
_NORMS = {"input_norm": "input", "post_norm": "post_attention"}
_OUTER_NORMS = {
    "input_norm": "input",
    "behind_attention": "post_attention",
    "post_norm": "pre_feedforward",
    "behind_mlp": "post_feedforward",
}


def plus_one(weight: Stored) -> Stored:
    """Return 1 + a stored weight, added in float32: bfloat16 would round it."""
    return Stored(weight.shape, lambda first, last: 1 + weight.read(first, last).float())


def pack(config: TargetConfig, tensors: Mapping[str, Stored]) -> dict[str, Weight]:
    """Return the weights of a decoder by their names in its state dict; none is read.

    Args:
        config: what the checkpoint says about itself.
        tensors: every tensor that the checkpoint has.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape than `config` says.
    """
    unused = dict(tensors)

    def take(name: str, *shape: int) -> Stored:
        if name not in unused:
            raise CheckpointError(
                f"tensor {name!r} is missing: the checkpoint is incomplete or is not what its "
                "configuration says; fetch it again"
            )
        tensor = unused.pop(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but its configuration says {list(shape)}: "
                "weights and configuration are of different models"
            )
        return tensor

    def plain(name: str, *shape: int) -> Weight:
        return Weight((take(name, *shape),))

    def gain(name: str, size: int) -> Weight:
        stored = take(name, size)
        return Weight((plus_one(stored) if config.architecture in GEMMA else stored,))

    def matrix(name: str, outputs: int, inputs: int) -> Weight:
        return Weight((take(name, outputs, inputs),), transposed=True)

    hidden, head_dim, inner = config.hidden_size, config.head_dim, config.intermediate_size
    rows = {"q": config.num_heads * head_dim, "k": config.num_kv_heads * head_dim}
    rows["v"] = rows["k"]
    halves = {"gate": inner, "up": inner}

    def packed(prefix: str, name: str, rows: dict[str, int]) -> Weight:
        if config.architecture == "phi3":  # has them packed as we do
            return matrix(f"{prefix}.{name}_proj.weight", sum(rows.values()), hidden)
        parts = (take(f"{prefix}.{part}_proj.weight", count, hidden) for part, count in rows.items())
        return Weight(tuple(parts), transposed=True)

    def biases(prefix: str, rows: dict[str, int]) -> Weight:
        return Weight(tuple(take(f"{prefix}.{part}_proj.bias", count) for part, count in rows.items()))

    weights = {
        "embed_tokens": plain("model.embed_tokens.weight", config.vocab_size, hidden),
        "norm.weight": gain("model.norm.weight", hidden),
    }
    weights["lm_head"] = weights["embed_tokens"]
    if not config.tied_embeddings:
        weights["lm_head"] = plain("lm_head.weight", config.vocab_size, hidden)
    for index in range(config.num_layers):
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        weights[f"{ours}.qkv.weight"] = packed(attention, "qkv", rows)
        if config.qkv_bias:
            weights[f"{ours}.qkv.bias"] = biases(attention, rows)
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                weights[f"{ours}.{norm}.weight"] = gain(f"{attention}.{norm}.weight", head_dim)
        weights[f"{ours}.output.weight"] = matrix(f"{attention}.o_proj.weight", hidden, rows["q"])
        if config.output_bias:
            weights[f"{ours}.output.bias"] = biases(attention, {"o": hidden})
        weights[f"{ours}.mlp.gate_up.weight"] = packed(mlp, "gate_up", halves)
        weights[f"{ours}.mlp.down.weight"] = matrix(f"{mlp}.down_proj.weight", hidden, inner)
        if config.mlp_bias:
            weights[f"{ours}.mlp.gate_up.bias"] = biases(mlp, halves)
            weights[f"{ours}.mlp.down.bias"] = biases(mlp, {"down": hidden})
        for norm, name in (_OUTER_NORMS if config.outer_norms else _NORMS).items():
            weights[f"{ours}.{norm}.weight"] = gain(f"{theirs}.{name}_layernorm.weight", hidden)
    if unused:
        raise CheckpointError(
            f"unexpected tensors {', '.join(sorted(unused)[:5])} ({len(unused)} in all): the checkpoint has "
            "parts that this decoder does not compute; use a plain checkpoint of a supported architecture"
        )
    return weights
