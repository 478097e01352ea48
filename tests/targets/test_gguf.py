"""GGUF files of every supported kind, written here from the tiny folders' tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from poss_export.errors import CheckpointError
from poss_export.targets.checkpoint import open_target
from poss_export.targets.gguf import _HUGGING_FACE_NAMES


def write_gguf(path: Path, folder: Path, architecture: str, tokenizer: str = "gpt2", **facts: Any) -> Path:
    """Write the folder's target as llama.cpp's converter would."""
    config = open_target(str(folder)).config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_positions)
    writer.add_rope_freq_base(config.rope.theta)
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(value)
    tokens = ["ab", "a", "b", "c", *(f"<{i}>" for i in range(4, config.vocab_size))]
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    theirs = {name: ours for ours, name in _HUGGING_FACE_NAMES.items()}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):  # interleave the halves
            tensor = tensor.reshape(-1, 2, config.head_dim // 2, tensor.shape[1]).swapaxes(1, 2)
            tensor = tensor.reshape(-1, tensor.shape[-1]).contiguous()
        for long, short in theirs.items():
            name = name.replace(f"{long}.", f"{short}.")
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
)
def test_gguf_equals_the_folder(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str, architecture: str
) -> None:
    folder = open_target(str(tiny_folder(name)))
    target = open_target(str(write_gguf(tmp_path / f"{name}.gguf", tiny_folder(name), architecture)))
    assert target.name == name
    for fact in (
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "tied_embeddings",
        "qkv_bias",
        "qk_norm",
        "vocab_size",
    ):
        assert getattr(target.config, fact) == getattr(folder.config, fact), fact
    expected = folder.load_decoder().state_dict()
    for key, weight in target.load_decoder().state_dict().items():
        assert torch.equal(weight, expected[key]), key
    assert target.text.encode("cabb") == [3, 0, 2]


def test_unsupported_gguf_files(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    yarn: dict[str, Any] = {"rope_scaling_type": gguf.RopeScalingType.YARN}
    for file, message in (
        (write_gguf(tmp_path / "a.gguf", folder, "gemma"), r"'gemma' is not supported.*llama, qwen2, qwen3"),
        (write_gguf(tmp_path / "b.gguf", folder, "llama", **yarn), "rope scaling"),
        (
            write_gguf(tmp_path / "c.gguf", folder, "llama", tokenizer="llama"),
            "tokenizer 'llama' cannot be rebuilt",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_target(str(file))
