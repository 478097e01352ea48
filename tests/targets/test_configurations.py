"""Configurations of targets: each is computed as transformers computes it, or refused."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from poss_export.errors import CheckpointError
from poss_export.targets import hf_config
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend
from poss_export.targets.hf_config import read_config

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ABSENT = object()  # leave a field out


@pytest.fixture
def write(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return write(model_type, **stated): a random model whose config.json states this and no more."""

    def folder(model_type: str, **stated: Any) -> Path:
        values = {key: value for key, value in {**SIZES, **stated}.items() if value is not ABSENT}
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(AutoConfig.for_model(model_type, **deepcopy(values)))
        torch.manual_seed(0)
        for weight in model.parameters():  # large enough that every part of the decoder shows
            torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.3)
        model.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **values}))
        shutil.copy(tiny_folder("qwen2" if "qwen" in model_type else "llama") / "tokenizer.json", tmp_path)
        return tmp_path

    return folder


def assert_equal(folder: Path) -> None:
    """Compare logits with those of transformers, at as many positions as the target is said to have."""
    decoder = open_target(str(folder)).load_decoder()
    seq = decoder.config.max_positions
    ids = torch.randint(0, SIZES["vocab_size"], (1, seq), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(ids).logits
        logits = decoder.head(decoder.hidden(ids, causal_attend(decoder.config, seq, torch.float32)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
EQUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, a window and a flag it does not know": (
        "mistral",
        {"sliding_window": 64, "use_sliding_window": False},
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, a window": ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
    "qwen2, a window that no layer has": ("qwen2", {"use_sliding_window": True, "sliding_window": 32}),
    "qwen2, a window that is not used": ("qwen2", {"sliding_window": 32}),
    "qwen3, layer_types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen3, no head_dim": ("qwen3", {}),
    "qwen2, no num_key_value_heads": ("qwen2", {"num_key_value_heads": ABSENT, "num_attention_heads": 32}),
    "llama, both rope_scaling and rope_parameters": (
        "llama",
        {
            "rope_theta": 500.0,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "llama, no rms_norm_eps": ("llama", {}),
    "llama, yarn": ("llama", {"rope_theta": 500.0, "rope_scaling": YARN}),
    "llama, yarn, everything stated": (
        "llama",
        {"rope_scaling": {**YARN, "beta_fast": 4.0, "beta_slow": 2.0, "attention_factor": 1.5}},
    ),
    "qwen3, yarn of DeepSeek's kind": (
        "qwen3",
        {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}},
    ),
    "qwen2, yarn without the original positions": (
        "qwen2",
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    ),
    "llama, yarn in a narrow band": ("llama", {"rope_scaling": {**YARN, "beta_fast": 1.0}}),
    "llama, dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "llama, swish": ("llama", {"hidden_act": "swish"}),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_transformers(name: str, write: Callable[..., Path]) -> None:
    model_type, stated = EQUAL[name]
    assert_equal(write(model_type, **stated))


@pytest.mark.parametrize(
    ("model_type", "stated", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": 64, "use_sliding_window": False}, 64),
        ("mistral", {"sliding_window": None}, 8192),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ("qwen2", {"use_sliding_window": True}, 8192),  # its first 28 layers have none
    ],
)
def test_no_further_than_the_window(
    model_type: str, stated: dict[str, Any], window: int, tmp_path: Path
) -> None:
    values = {**SIZES, "max_position_embeddings": 8192, "model_type": model_type, **stated}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path).max_positions == window


def test_a_stored_head_is_not_the_table_that_the_configuration_says(write: Callable[..., Path]) -> None:
    """transformers compares the two, and unties them."""
    folder = write("llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    assert open_target(str(folder)).config.tied_embeddings
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert open_target(str(folder)).config.tied_embeddings
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors")
    assert not open_target(str(folder)).config.tied_embeddings
    assert_equal(folder)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another architecture": ("gpt2", {}, "'gpt2' is not supported.*llama, mistral, qwen2, qwen3"),
    "a size is missing": ("llama", {"hidden_size": None}, "'hidden_size' is missing"),
    "heads that share unevenly": ("llama", {"num_key_value_heads": 3}, "4 is not a multiple of num_key_val"),
    "heads without halves": (
        "llama",
        {"head_dim": 15},
        "transformers cannot read it .*even rotary dimension",
    ),
    "another activation": ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'.*'silu' only"),
    "biases": ("llama", {"attention_bias": True}, "attention_bias True"),
    "quantised": ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantised weights.*'awq'"),
    "rope lacks a field": (
        "llama",
        {"rope_scaling": {"rope_type": "llama3"}},
        "transformers cannot read it .*Missing required keys",
    ),
    "longrope": (
        "llama",
        {
            "rope_scaling": {
                "type": "longrope",
                "factor": 4.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
            }
        },
        "'longrope' is not supported.*knows default, dynamic, linear, llama3, yarn",
    ),
    "part of each head is rotated": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "rope by layer type": (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "rope parameters {.*expected one set, the same in every layer",
    ),
    "attention in both directions": ("llama", {"is_causal": False}, "is_causal False is not supported"),
    "chunked layers": (
        "qwen3",
        {"layer_types": ["full_attention", "chunked_attention"]},
        "layer_types chunked_attention are not supported",
    ),
    "sliding layers without a window": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "there is no sliding_window",
    ),
    "a field of granite": ("llama", {"attention_multiplier": 0.1}, "attention_multiplier 0.1, which transf"),
    "a field of gemma": ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0, which"),
    "experts": (
        "mistral",
        {"num_local_experts": 8},
        "num_local_experts 8.*of type 'mistral'.*take the field",
    ),
    "a part of another kind": (
        "llama",
        {"text_config": {"hidden_size": 64}},
        "text_config {'hidden_size': 64}, wh",
    ),
    "text for a number": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": "4"}},
        "factor is '4'; expected",
    ),
    "text for a window": ("llama", {"sliding_window": "64"}, "sliding_window is '64'; expected a number"),
    "text for a token": (
        "llama",
        {"eos_token_id": "2"},
        "'eos_token_id' with value '2' doesn't match any type",
    ),
    "text for a set": ("llama", {"rope_scaling": "linear"}, "'rope_parameters' with value 'linear' doesn't"),
    "a fraction for a size": (
        "llama",
        {"num_key_value_heads": 2.0},
        "'num_key_value_heads' with value 2.0 does",
    ),
    "no size for a head": ("llama", {"head_dim": 0}, "head_dim is 0; expected a whole number from 1"),
    "quantised, without a method": ("llama", {"quantization_config": "awq"}, "quantised weights.*'awq'"),
    "sizes by layer": ("llama", {"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    model_type, stated, words = REFUSED[name]
    values = {"model_type": model_type, **SIZES, **stated}
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not ABSENT})
    )
    with pytest.raises(CheckpointError, match=words):
        read_config(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_fields_of_this_release_of_transformers_are_known(model_type: str) -> None:
    declared: set[str] = set(type(AutoConfig.for_model(model_type)).__annotations__)
    assert declared <= hf_config._KNOWN


def test_a_field_of_a_later_release_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_config, "_KNOWN", hf_config._KNOWN - {"attention_dropout"})
    values = {"model_type": "llama", **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(values))
    read_config(tmp_path)  # its value is transformers' default
    (tmp_path / "config.json").write_text(json.dumps({**values, "attention_dropout": 0.1}))
    with pytest.raises(CheckpointError, match=r"attention_dropout 0\.1 is not known to this version"):
        read_config(tmp_path)


def test_no_quantisation_may_be_stated(write: Callable[..., Path]) -> None:
    assert open_target(str(write("llama", quantization_config=None))).load_decoder()


def test_code_of_a_folder_is_not_run(write: Callable[..., Path]) -> None:
    folder = write("llama", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert "auto_map" in open_target(str(folder)).doubts[0]
    assert open_target(str(write("llama", auto_map={"AutoTokenizer": ["own.Own", None]}))).doubts == ()
