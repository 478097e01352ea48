"""Tensor names of a drafter's checkpoint: those of the public EAGLE, PosS, FSPAD and GRIFFIN releases.

Matrices are `[out, in]` in files and `[in, out]` in our modules, so most slots are transposed views.
"""

from collections.abc import Iterator

from torch import Tensor

from poss_export.drafters.fusion import GatedFusion, GuidedFusion, LinearFusion
from poss_export.drafters.model import Drafter
from poss_export.drafters.specialist import Specialist


def named_tensors(drafter: Drafter) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the file, view of the weight in the file's shape) of every weight."""
    yield from _fusion(drafter.fusion)
    for index, layer in enumerate((*drafter.shared_layers, *drafter.specialists)):
        assert isinstance(layer, Specialist)
        for name, tensor in _layer(layer):
            yield f"layers.{index}.{name}", tensor
    if drafter.masks is not None:
        yield "mask_embed.weight", drafter.masks.embeddings
        if drafter.masks.feature is not None:
            yield "mask_hidden", drafter.masks.feature[None]


def _fusion(fusion: LinearFusion) -> Iterator[tuple[str, Tensor]]:
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
    key, value = layer.kv.weight.T.chunk(2)
    yield "self_attn.q_proj.weight", layer.q.weight.T
    yield "self_attn.k_proj.weight", key
    yield "self_attn.v_proj.weight", value
    yield "self_attn.o_proj.weight", layer.output.weight.T
    if layer.q.bias is not None and layer.kv.bias is not None:
        key_bias, value_bias = layer.kv.bias.chunk(2)
        yield "self_attn.q_proj.bias", layer.q.bias
        yield "self_attn.k_proj.bias", key_bias
        yield "self_attn.v_proj.bias", value_bias
    gate, up = layer.alignment.mlp.gate_up.weight.T.chunk(2)
    yield "mlp.gate_proj.weight", gate
    yield "mlp.up_proj.weight", up
    yield "mlp.down_proj.weight", layer.alignment.mlp.down.weight.T
    yield "post_attention_layernorm.weight", layer.alignment.norm.weight
