"""The weights of our decoder, of the tensors of a checkpoint: where formats meet.

Formats offer their tensors under Hugging Face's names and in PyTorch's layout (`[out, in]`).
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from poss_export.config import TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.rope import halves_first
from poss_export.targets.weights import Stored, Weight, beside

GEMMA = ("gemma", "gemma2", "gemma3_text")  # whose norms multiply by 1 + weight
_NORMS = {"input_norm": "input", "post_norm": "post_attention"}
_OUTER_NORMS = {
    "input_norm": "input",
    "behind_attention": "post_attention",
    "post_norm": "pre_feedforward",
    "behind_mlp": "post_feedforward",
}
# How checkpoints name the router, and the gate, up and down projections of an expert.
_MIXTRAL, _QWEN = (
    [f"{block}.gate.weight", *(f"{block}.experts.{{}}.{name}.weight" for name in names)]
    for block, names in (
        ("block_sparse_moe", ("w1", "w3", "w2")),
        ("mlp", ("gate_proj", "up_proj", "down_proj")),
    )
)
_FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")  # of all experts
Named = Iterator[tuple[str, Weight]]


def pack(config: TargetConfig, tensors: Mapping[str, Stored]) -> dict[str, Weight]:
    """Return the weights of a decoder by their names in its state dict; none is read.

    Args:
        config: what the checkpoint says about itself.
        tensors: every tensor that the checkpoint has.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape than `config` says.
    """
    unused = _Unused(dict(tensors))
    table = config.vocab_size, config.hidden_size
    weights = {"embed_tokens": Weight((unused.take("model.embed_tokens.weight", *table),))}
    weights["lm_head"] = weights["embed_tokens"]
    if not config.tied_embeddings:
        weights["lm_head"] = Weight((unused.take("lm_head.weight", *table),))
    weights["norm.weight"] = _gain(config, unused.take("model.norm.weight", config.hidden_size))
    for index in range(config.num_layers):
        layer = unused.below(f"model.layers.{index}.")
        for part in (_attention, _experts if config.num_experts else _mlp, _norms):
            weights |= {f"layers.{index}.{name}": weight for name, weight in part(config, layer)}
    unused.check_empty()
    return weights


class _Unused:
    """The tensors that have not been taken yet, named by what follows a prefix."""

    def __init__(self, tensors: dict[str, Stored], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def below(self, prefix: str) -> "_Unused":
        """Return the same tensors, whose names go on with a prefix."""
        return _Unused(self.tensors, self.prefix + prefix)

    def has(self, name: str) -> bool:
        """Whether a tensor is there."""
        return self.prefix + name in self.tensors

    def take(self, name: str, *shape: int) -> Stored:
        """Return a tensor of this shape, which is used now."""
        name = self.prefix + name
        if name not in self.tensors:
            raise CheckpointError(
                f"tensor {name!r} is missing: the checkpoint is incomplete or is not what its "
                "configuration says; fetch it again"
            )
        tensor = self.tensors.pop(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but its configuration says {list(shape)}: "
                "weights and configuration are of different models"
            )
        return tensor

    def check_empty(self) -> None:
        """Raise CheckpointError where tensors are left that would add something."""
        if left := [name for name, tensor in sorted(self.tensors.items()) if not _adds_nothing(name, tensor)]:
            raise CheckpointError(
                f"unexpected tensors {', '.join(left[:5])} ({len(left)} in all): the "
                "checkpoint has parts that this decoder does not compute; use a plain checkpoint of a "
                "supported architecture"
            )


def _attention(config: TargetConfig, layer: _Unused) -> Named:
    own, hidden, head_dim = layer.below("self_attn."), config.hidden_size, config.head_dim
    rows = {"q": config.num_heads * head_dim, "k": config.num_kv_heads * head_dim}
    rows["v"] = rows["k"]
    yield "qkv.weight", Weight(_rotated(config, rows, _packed(config, own, "qkv", rows)), transposed=True)
    if config.qkv_bias:
        parts = tuple(own.take(f"{part}_proj.bias", count) for part, count in rows.items())
        yield "qkv.bias", Weight(_rotated(config, rows, parts))
    if config.qk_norm:
        for norm in ("q_norm", "k_norm"):
            yield f"{norm}.weight", _gain(config, own.take(f"{norm}.weight", head_dim))
    yield "output.weight", _added(config, own.take("o_proj.weight", hidden, rows["q"]), transposed=True)
    if config.output_bias:
        yield "output.bias", _added(config, own.take("o_proj.bias", hidden))


def _mlp(config: TargetConfig, layer: _Unused) -> Named:
    own, hidden, inner = layer.below("mlp."), config.hidden_size, config.intermediate_size
    halves = {"gate": inner, "up": inner}
    yield "mlp.gate_up.weight", Weight(_packed(config, own, "gate_up", halves), transposed=True)
    yield "mlp.down.weight", _added(config, own.take("down_proj.weight", hidden, inner), transposed=True)
    if config.mlp_bias:
        parts = tuple(own.take(f"{part}_proj.bias", count) for part, count in halves.items())
        yield "mlp.gate_up.bias", Weight(parts)
        yield "mlp.down.bias", _added(config, own.take("down_proj.bias", hidden))


def _experts(config: TargetConfig, layer: _Unused) -> Named:
    count, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
    router, *names = _MIXTRAL if layer.has(_MIXTRAL[0]) else _QWEN
    yield "mlp.router.weight", Weight((layer.take(router, count, hidden),), transposed=True)
    if layer.has(_FUSED[0]):  # as transformers 5 has them in memory
        both = layer.take(_FUSED[0], count, 2 * inner, hidden)
        gates, ups = (
            [both.item(expert).part(first, first + inner) for expert in range(count)] for first in (0, inner)
        )
        last = layer.take(_FUSED[1], count, hidden, inner)
        downs = [last.item(expert) for expert in range(count)]
    else:
        gates, ups, downs = (
            [layer.take(name.format(expert), *shape) for expert in range(count)]
            for name, shape in zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True)
        )
    yield "mlp.gate_up.weight", Weight((*gates, *ups), transposed=True)
    yield "mlp.down.weight", _added(config, beside(downs), transposed=True)


def _norms(config: TargetConfig, layer: _Unused) -> Named:
    for norm, name in (_OUTER_NORMS if config.outer_norms else _NORMS).items():
        yield f"{norm}.weight", _gain(config, layer.take(f"{name}_layernorm.weight", config.hidden_size))


def _packed(config: TargetConfig, own: _Unused, name: str, rows: Mapping[str, int]) -> tuple[Stored, ...]:
    """Return projections of one input, which some architectures store as one tensor."""
    if config.architecture == "phi3":
        return (own.take(f"{name}_proj.weight", sum(rows.values()), config.hidden_size),)
    return tuple(own.take(f"{part}_proj.weight", count, config.hidden_size) for part, count in rows.items())


def _rotated(config: TargetConfig, rows: Mapping[str, int], parts: tuple[Stored, ...]) -> tuple[Stored, ...]:
    """Return query, key and value with each head in the order that our rotation takes it in."""
    if config.rope.rotated is None:
        return parts
    if len(parts) == 1:
        ends = (0, rows["q"], rows["q"] + rows["k"], sum(rows.values()))
        parts = tuple(parts[0].part(*span) for span in pairwise(ends))
    order = halves_first(config.rope.rotated, config.head_dim)
    return parts[0].in_order(order), parts[1].in_order(order), parts[2]


def _gain(config: TargetConfig, stored: Stored) -> Weight:
    """Return the weight of a norm; what it lacks is added in float32, for bfloat16 would round it."""
    return Weight((stored.mapped(lambda rows: 1 + rows) if config.architecture in GEMMA else stored,))


def _added(config: TargetConfig, stored: Stored, transposed: bool = False) -> Weight:
    """Return a weight whose product is added to the residual stream."""
    scale = config.residual_scale
    return Weight((stored if scale == 1 else stored.mapped(lambda rows: scale * rows),), transposed)


def _adds_nothing(name: str, tensor: Stored) -> bool:
    """Whether a tensor is a bias of zeros: quantisers write some for layers that have none."""
    return name.endswith(".bias") and not bool(tensor.whole().any())
