"""Tensors of every dialect, at full size too: what is missing, unknown or of another shape is named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from poss_export.config import RopeConfig
from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.dialects import Tensors
from poss_export.drafters.releases import read_release
from poss_export.errors import CheckpointError
from tests.fixtures.public_checkpoints import (
    TINY,
    Sizes,
    eagle,
    fspad,
    griffin,
    parallelspec,
    poss,
    speculators,
    speculators_eagle3,
    vllm,
)

HIDDEN = TINY.hidden

# What a file can lack, have too much of, or have in another shape.
LAYOUTS = {
    "EAGLE": eagle(),
    "speculators EAGLE": speculators(),
    "vLLM EAGLE": vllm(),
    "ParallelSpec-style": parallelspec(layers=2),
    "FSPAD": fspad(),
    "GRIFFIN": griffin(),
    "PosS": poss(),
    "speculators EAGLE-3": speculators_eagle3(layers=2),
}
OPTIONAL = {"embed_tokens.weight", "lm_head.weight", "fc.bias", "t2d"}
# They decide what the dialect is.
DECISIVE = {"fc.weight", "fc.fc.weight", "fc.mlp.gate_proj.weight", "fc.mlp.input_layernorm.weight", "d2t"}


def read(name: str, tensors: Tensors) -> None:
    read_release(Path("x"), LAYOUTS[name].config, tensors, 3 if name == "PosS" else None)


def ours(name: str) -> str:
    """Return the name that messages use, ours."""
    return re.sub(r"^transformer\.", "layers.0.", re.sub(r"^fusion_fc\.", "fc.", name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_missing_tensor_is_named(name: str) -> None:
    tensors = LAYOUTS[name].meta()
    for one in tensors.keys() - OPTIONAL - DECISIVE:
        fewer = {other: tensor for other, tensor in tensors.items() if other != one}
        with pytest.raises(
            CheckpointError, match=rf"missing: {re.escape(ours(one))}; fetch the checkpoint again"
        ):
            read(name, fewer)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_wrong_shape_is_named(name: str) -> None:
    tensors = LAYOUTS[name].meta()
    for one in tensors.keys() - DECISIVE:
        shape = [*tensors[one].shape[:-1], tensors[one].shape[-1] + 1]
        wrong = {**tensors, one: torch.empty(shape, dtype=tensors[one].dtype, device="meta")}
        message = f"of another shape: {ours(one)} {shape}, expected {list(tensors[one].shape)}; fetch"
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read(name, wrong)


@pytest.mark.parametrize("name", ["FSPAD", "GRIFFIN"])
def test_a_bias_that_the_layout_always_has(name: str) -> None:
    tensors = LAYOUTS[name].meta()
    del tensors["fc.fc.bias"]
    with pytest.raises(CheckpointError, match=rf"^x \({name}\): .*; missing: fc\.fc\.bias; "):
        read(name, tensors)


def test_all_problems_are_listed_at_once() -> None:
    tensors = LAYOUTS["EAGLE"].meta()
    del tensors["layers.0.mlp.up_proj.weight"], tensors["layers.0.self_attn.v_proj.weight"]
    tensors["norm.weight"] = tensors["layers.0.input_layernorm.weight"] = torch.empty(HIDDEN, device="meta")
    tensors["fc.bias"] = torch.empty(3, device="meta")
    tensors["layers.0.mlp.down_proj.weight"] = torch.empty(HIDDEN, 40, dtype=torch.int8, device="meta")
    with pytest.raises(CheckpointError) as refused:
        read("EAGLE", tensors)
    assert str(refused.value) == (
        "x (EAGLE): its tensors are not those of its dialect and configuration; "
        "missing: layers.0.mlp.up_proj.weight, layers.0.self_attn.v_proj.weight; "
        "unknown: layers.0.input_layernorm.weight, norm.weight; "
        "of another shape: fc.bias [3], expected [32]; "
        "of another type: layers.0.mlp.down_proj.weight torch.int8; "
        "fetch the checkpoint again, as it was released"
    )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn' lacks 'factor'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; this version knows 'silu' only"),
        ({"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ({"num_attention_heads": "4"}, "'num_attention_heads' is '4'; expected a whole number above 0"),
        ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"num_key_value_heads": 4}, r"k_proj.weight \[16, 32\], expected \[32, 32\]"),
        ({"head_dim": 16}, r"q_proj.weight \[32, 32\], expected \[64, 32\]"),
        ({"vocab_size": 50}, r"embed_tokens.weight \[48, 32\], expected \[50, 32\]"),
    ],
)
def test_facts_that_cannot_be(facts: dict[str, Any], message: str) -> None:
    layout = eagle()
    with pytest.raises(CheckpointError, match=message):
        read_release(Path("x"), {**layout.config, **facts}, layout.meta())


LLAMA3 = Sizes(hidden=4096, inner=14336, heads=32, kv_heads=8, vocab=128256)
LAYER = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336 + 4096


def full_size() -> tuple[dict[str, Any], dict[str, Tensor]]:
    layout = poss(LLAMA3, specialists=4)
    return {**layout.config, "rope_theta": 500000.0}, {
        **layout.meta(),
        "embed_tokens.weight": meta(128256, 4096),
    }


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def test_full_size_poss_3_for_llama_3_fits_without_its_memory() -> None:
    config, tensors = full_size()
    release = read_release(Path("PosS3-Llama3-8B-Instruct"), config, tensors)
    assert release.config == DrafterConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        vocab_size=128256,
        draft_vocab_size=128256,
        rope=RopeConfig(500000.0),
        fusion_bias=True,
        num_specialists=4,
        positions_per_specialist=3,
    )
    weights = {name: tensor for name, tensor in release.tensors.items() if name != "embed_tokens.weight"}
    assert all(tensor.is_meta for tensor in weights.values())
    assert sum(tensor.numel() for tensor in weights.values()) == 4 * LAYER + 2 * 4096**2 + 4096


def test_full_size_shapes_are_checked_too() -> None:
    config, tensors = full_size()
    tensors["layers.3.self_attn.k_proj.weight"] = meta(4096, 4096)  # 32 key and value heads
    with pytest.raises(
        CheckpointError, match=r"layers\.3\.self_attn\.k_proj\.weight \[4096, 4096\], expected \[1024"
    ):
        read_release(Path("PosS3-Llama3-8B-Instruct"), config, tensors)
