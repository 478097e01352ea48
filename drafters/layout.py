"""Tensor names of a drafter's checkpoint: those of the public EAGLE, PosS, FSPAD and GRIFFIN releases.

Drafters that read taps have those of EAGLE-3 as speculators writes them, `layers.0` for `midlayer`.

Matrices are `[out, in]` in files and `[in, out]` in our modules, so most slots are transposed views.
"""

from collections.abc import Iterator

from torch import Tensor

from poss_export.drafters.fusion import AnyFusion, GatedFusion, GuidedFusion, LinearFusion, TapsFusion
from poss_export.drafters.model import Drafter
from poss_export.drafters.specialist import Specialist, TapsLayer
from poss_export.targets.decoder import MLP, Linear, RMSNorm

EMBEDDINGS, HEAD = "embed_tokens.weight", "lm_head.weight"  # the target's, or a drafter's own


def named_tensors(drafter: Drafter) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the file, view of the weight in the file's shape) of every weight."""
    yield from _fusion(drafter.fusion)
    for index, layer in enumerate(drafter.layers()):
        for name, tensor in _layer(layer) if isinstance(layer, Specialist) else _taps_layer(layer):
            yield f"layers.{index}.{name}", tensor
    if drafter.final_norm is not None:
        yield "norm.weight", drafter.final_norm.weight
    if drafter.head is not None:
        yield HEAD, drafter.head
    if drafter.embeddings is not None:
        yield EMBEDDINGS, drafter.embeddings
    if drafter.masks is not None:
        yield "mask_embed.weight", drafter.masks.embeddings
        if drafter.masks.feature is not None:
            yield "mask_hidden", drafter.masks.feature[None]


def _fusion(fusion: AnyFusion) -> Iterator[tuple[str, Tensor]]:
    if isinstance(fusion, TapsFusion):
        yield "fc.weight", fusion.fc.weight.T
        for index, norm in enumerate(fusion.norms):
            assert isinstance(norm, RMSNorm)
            name = "input_norm.weight" if fusion.config.tap_norm == "joint" else f"fc_norm.{index}.weight"
            yield name, norm.weight
        return
    fc = "fc" if type(fusion) is LinearFusion else "fc.fc"
    yield f"{fc}.weight", fusion.fc.weight.T
    if fusion.fc.bias is not None:
        yield f"{fc}.bias", fusion.fc.bias
    if isinstance(fusion, GatedFusion | GuidedFusion):
        yield "fc.post_attention_layernorm.weight", fusion.norm.weight
        yield "fc.mlp.up_proj.weight", fusion.up.weight.T
        yield "fc.mlp.down_proj.weight", fusion.down.weight.T
    if isinstance(fusion, GatedFusion):
        yield "fc.mlp.gate_proj.weight", fusion.gate.weight.T
    if isinstance(fusion, GuidedFusion):
        yield "fc.mlp.input_layernorm.weight", fusion.input_norm.weight


def _layer(layer: Specialist) -> Iterator[tuple[str, Tensor]]:
    yield from _attention(layer.q, layer.kv, layer.output)
    yield from _mlp(layer.alignment.mlp, layer.alignment.norm)


def _taps_layer(layer: TapsLayer) -> Iterator[tuple[str, Tensor]]:
    yield "input_layernorm.weight", layer.input_norm.weight
    if layer.hidden_norm is not None:
        yield "hidden_norm.weight", layer.hidden_norm.weight
    yield from _attention(layer.q_proj, layer.kv_proj, layer.output)
    if layer.q_norm is not None and layer.k_norm is not None:
        yield "self_attn.q_norm.weight", layer.q_norm.weight
        yield "self_attn.k_norm.weight", layer.k_norm.weight
    yield from _mlp(layer.mlp, layer.norm)


def _attention(q: Linear, kv: Linear, output: Linear) -> Iterator[tuple[str, Tensor]]:
    key, value = kv.weight.T.chunk(2)
    yield "self_attn.q_proj.weight", q.weight.T
    yield "self_attn.k_proj.weight", key
    yield "self_attn.v_proj.weight", value
    yield "self_attn.o_proj.weight", output.weight.T
    if q.bias is not None and kv.bias is not None:
        key_bias, value_bias = kv.bias.chunk(2)
        yield "self_attn.q_proj.bias", q.bias
        yield "self_attn.k_proj.bias", key_bias
        yield "self_attn.v_proj.bias", value_bias


def _mlp(mlp: MLP, norm: RMSNorm) -> Iterator[tuple[str, Tensor]]:
    gate, up = mlp.gate_up.weight.T.chunk(2)
    yield "mlp.gate_proj.weight", gate
    yield "mlp.up_proj.weight", up
    yield "mlp.down_proj.weight", mlp.down.weight.T
    yield "post_attention_layernorm.weight", norm.weight
