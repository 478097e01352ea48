"""Weights of checkpoints become ours, in whatever layout and blocks they are read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from poss_export.targets import hf, weights
from poss_export.targets.checkpoint import open_target


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_one_by_one_and_in_one_tensor(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = tiny_folder(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path, save_original_format=False)
    fused = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in fused
    assert "model.layers.0.mlp.experts.gate_up_proj" not in load_file(folder / "model.safetensors")
    target = open_target(str(folder))
    ours = hf.read_weights(target.config, hf.open_weights((tmp_path / "model.safetensors",)))
    theirs = target.weights()
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key].read(), weight.read(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mixtral", "phi4", "granite", "gemma2"])
def test_blocks_of_any_size(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target = open_target(str(tiny_folder(name)))
    whole = {key: weight.read() for key, weight in target.weights().items()}
    monkeypatch.setattr(weights, "_BLOCK", 320)  # five rows of most weights, and no whole number of heads
    for key, weight in target.weights().items():
        torch.testing.assert_close(weight.read(), whole[key], rtol=0, atol=0)
        assert weight.shape == whole[key].shape
