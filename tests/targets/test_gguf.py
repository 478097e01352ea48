"""GGUF files of every supported kind, written from the tiny folders' tensors."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from poss_export.config import RopeConfig
from poss_export.errors import CheckpointError
from poss_export.targets.checkpoint import open_target
from tests.fixtures.write_gguf import write_gguf


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("llama", "llama"), ("biased", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
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
        "output_bias",
        "mlp_bias",
        "vocab_size",
    ):
        assert getattr(target.config, fact) == getattr(folder.config, fact), fact
    expected = folder.load_decoder().state_dict()
    for key, weight in target.load_decoder().state_dict().items():
        assert torch.equal(weight, expected[key]), key
    assert target.text.encode("cabb") == [3, 0, 2]


def test_unsupported_gguf_files(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("gemma", {}, r"'gemma' is not supported.*llama, qwen2, qwen3"),
        ("llama", {"rope__scaling__type": "yarn"}, "rope scaling 'yarn' by 1.0 is not supported"),
        ("llama", {"rope__dimension_count": 8}, "rope.dimension_count is 8, but a head has 16 values"),
        ("llama", {"attention__value_length": 32}, "attention.value_length is 32, but a head has 16"),
        ("llama", {"expert_count": 8}, "expert_count 8 is not supported"),
        ("llama", {"logit_scale": 0.5}, "logit_scale 0.5 is not supported"),
    ]
    for number, (architecture, facts, message) in enumerate(cases):
        file = write_gguf(tmp_path / f"{number}.gguf", folder, architecture, **facts)
        with pytest.raises(CheckpointError, match=message):
            open_target(str(file))


def test_rotary_embeddings(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    for facts, expected in (
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, RopeConfig(1e4, "linear", 4.0)),
        ({"rope__scale_linear": 2.0}, RopeConfig(1e4, "linear", 2.0)),
        ({"rope__scaling__type": "none", "rope__dimension_count": 16}, RopeConfig(1e4)),
    ):
        assert (
            open_target(str(write_gguf(tmp_path / "a.gguf", folder, "llama", **facts))).config.rope
            == expected
        )
    tiny_llama3 = write_gguf(tmp_path / "b.gguf", tiny_folder("llama3"), "llama")  # made for 16 positions
    with pytest.raises(
        CheckpointError, match=r"rope_freqs\.weight holds other factors than those of Llama 3"
    ):
        open_target(str(tiny_llama3))


def test_a_sliding_window_caps_the_positions(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    for window, positions in ((32, 32), (0, 128), (500, 128)):
        file = write_gguf(
            tmp_path / "a.gguf", tiny_folder("llama"), "llama", attention__sliding_window=window
        )
        assert open_target(str(file)).config.max_positions == positions


def test_split_files(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    whole = open_target(str(write_gguf(tmp_path / "whole.gguf", tiny_folder("llama"), "llama")))
    first = write_gguf(tmp_path / "tiny.gguf", tiny_folder("llama"), "llama", tensors_a_file=8)
    second, third = (first.with_name(f"tiny-0000{part}-of-00003.gguf") for part in (2, 3))
    for file in (first, third):
        target = open_target(str(file))
        assert target.name == "tiny"
        assert target.weight_files == (first, second, third)
    expected = whole.load_decoder().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in target.load_decoder().state_dict().items())
    with pytest.raises(CheckpointError, match=r"one of 3 files.*which ends in -00001-of-00003\.gguf"):
        open_target(str(first.rename(tmp_path / "renamed.gguf")))
    with pytest.raises(CheckpointError, match=r"tiny-00001-of-00003\.gguf is missing of 3 files"):
        open_target(str(second))
    (tmp_path / "renamed.gguf").rename(first)
    shutil.copy(third, second)
    with pytest.raises(CheckpointError, match=r"hold \d+ tensors, their header says 20"):
        open_target(str(first))


@pytest.mark.parametrize("name", ["tiny.GGUF", "sha256-0a1b2c"])
def test_files_are_known_by_their_first_bytes(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", tiny_folder("llama"), "llama").rename(tmp_path / name)
    assert open_target(str(tmp_path / name)).config.num_layers == 2


def test_heads_that_do_not_fit_the_weights(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", tiny_folder("llama"), "llama", attention__head_count_kv=4)
    with pytest.raises(CheckpointError, match=r"k_proj\.weight' has shape \[32, 64\].*says \[64, 64\]"):
        open_target(str(file)).load_decoder()
    file = write_gguf(tmp_path / "b.gguf", tiny_folder("llama"), "llama", attention__key_length=96)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' has shape \[64, 64\].*says \[384, 64\]"):
        open_target(str(file)).load_decoder()
