"""The peers' models have the target's weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peers import Peers
from poss_export.errors import InputError
from poss_export.targets.checkpoint import open_target


@pytest.mark.parametrize("name", ["llama", "llama3", "linear", "mistral", "qwen2", "qwen3"])
def test_a_hugging_face_folder_survives_the_round_trip(
    tiny_folder: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = Peers(open_target(str(tiny_folder(name))), tmp_path).hugging_face()
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, tiny_folder(name)))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)
    assert open_target(str(folder)).config == open_target(str(tiny_folder(name))).config


def test_a_model_is_written_once(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path)
    written = (peers.hugging_face() / "model.safetensors").stat().st_mtime_ns
    assert (peers.hugging_face() / "model.safetensors").stat().st_mtime_ns == written


def test_a_failed_model_leaves_nothing(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path)
    with pytest.raises(InputError, match="GGUF"):
        peers.gguf()
    assert list(peers.folder.iterdir()) == []
