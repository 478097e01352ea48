"""Configurations of targets: each is computed as transformers computes it, or refused."""

import json
import re
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
from tests.fixtures.configurations import EQUAL, REFUSED, SIZES, Case, row, stated_values

TABLE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text().splitlines()


@pytest.fixture
def write(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return write(model_type, **stated): a random model whose config.json states this and no more."""

    def folder(model_type: str, **stated: Any) -> Path:
        values = stated_values(stated)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(AutoConfig.for_model(model_type, **deepcopy(values)))
        torch.manual_seed(0)
        gain = float(not model_type.startswith("gemma"))  # whose norms add 1
        for weight in model.parameters():  # large enough that every part of the decoder shows
            torch.nn.init.normal_(weight, mean=gain if weight.dim() == 1 else 0, std=0.3)
        model.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **values}))
        named = next((name for name in ("qwen2", "gemma2") if name[:4] in model_type), "llama")
        for file in tiny_folder(named).glob("tokenizer*.json"):
            shutil.copy(file, tmp_path)
        return tmp_path

    return folder


def assert_equal(folder: Path) -> int:
    """Compare logits with those of transformers, at as many positions as the target is said to have.

    Returns how many these are.
    """
    decoder = open_target(str(folder)).load_decoder()
    seq = decoder.config.max_positions
    ids = torch.randint(0, SIZES["vocab_size"], (1, seq), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(ids).logits
        logits = decoder.head(decoder.hidden(ids, causal_attend(decoder.config, seq, torch.float32)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    return seq


@pytest.mark.parametrize("case", EQUAL, ids=lambda case: f"{case[0]} {case[1]}")
def test_equal_to_transformers(case: Case, write: Callable[..., Path]) -> None:
    model_type, _, stated = case
    positions = assert_equal(write(model_type, **stated))
    end = "" if positions == SIZES["max_position_embeddings"] else f", up to {positions} tokens"
    assert row(case, f"equal{end}") in TABLE


@pytest.mark.parametrize(
    ("model_type", "stated", "windowed", "window"),
    [
        ("mistral", {}, (0, 1), 4096),
        ("mistral", {"sliding_window": 64, "use_sliding_window": False}, (0, 1), 64),
        ("mistral", {"sliding_window": None}, (), None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, (0, 1), 4096),
        ("qwen2", {"use_sliding_window": True}, (), None),  # its first 28 layers have none
        ("gemma2", {}, (0,), 4096),
        ("gemma3_text", {"num_hidden_layers": 7}, (0, 1, 2, 3, 4, 6), 4096),
    ],
)
def test_which_layers_have_a_window(
    model_type: str,
    stated: dict[str, Any],
    windowed: tuple[int, ...],
    window: int | None,
    tmp_path: Path,
) -> None:
    values = {**SIZES, "max_position_embeddings": 8192, "model_type": model_type, **stated}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_config(tmp_path)
    assert (config.windowed_layers, config.window, config.max_positions) == (windowed, window, 8192)


def test_no_further_than_a_window_that_transformers_passes_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "llama", "sliding_window": 64}))
    config = read_config(tmp_path)
    assert (config.windowed_layers, config.window, config.max_positions) == ((), None, 64)


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
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].bfloat16()
    save_file(tensors, folder / "model.safetensors")
    assert_equal(folder)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[1]}")
def test_refused(case: Case, tmp_path: Path) -> None:
    model_type, _, stated = case
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": model_type, **stated_values(stated)}))
    with pytest.raises(CheckpointError) as refused:
        read_config(tmp_path)
    told = str(refused.value).removeprefix(f"{path}: ")
    assert row(case, re.sub(r"(transformers cannot read it) \(.*\)", r"\1 (...)", told)) in TABLE


def test_the_words_of_transformers_name_the_value(tmp_path: Path) -> None:
    values = {"model_type": "llama", **SIZES, "num_key_value_heads": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"'num_key_value_heads' with value 2\.0 doesn't match"):
        read_config(tmp_path)


def test_the_table_has_no_other_rows() -> None:
    assert sum(line.startswith("| `") for line in TABLE) == len(EQUAL) + len(REFUSED)


@pytest.mark.parametrize("model_type", hf_config._ARCHITECTURES)
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
