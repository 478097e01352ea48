"""GGUF files of every supported kind, written from the tiny folders' tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from poss_export.errors import CheckpointError
from poss_export.targets.checkpoint import open_target
from tests.fixtures.write_gguf import write_gguf


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


def test_bos_in_front_where_the_header_asks_for_it(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    facts: dict[str, Any] = {"bos_token_id": 1, "add_bos_token": True}
    folder = tiny_folder("llama")
    text = open_target(str(write_gguf(tmp_path / "bos.gguf", folder, "llama", **facts))).text
    assert text.encode("cabb") == [1, 3, 0, 2]
    facts["add_bos_token"] = False
    text = open_target(str(write_gguf(tmp_path / "no.gguf", folder, "llama", **facts))).text
    assert text.encode("cabb") == [3, 0, 2]


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
