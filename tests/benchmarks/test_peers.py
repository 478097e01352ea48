"""The peers' models have the target's weights."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.peers import Peers, genai_builder
from poss_export.errors import InputError
from poss_export.targets.checkpoint import open_target
from tests.fixtures.write_gguf import write_gguf


@pytest.mark.parametrize("name", ["llama", "llama3", "biased", "mistral", "qwen2", "qwen3"])
def test_a_hugging_face_folder_survives_the_round_trip(
    tiny_folder: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = Peers(open_target(str(tiny_folder(name))), tmp_path).hugging_face()
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, tiny_folder(name)))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)
    assert open_target(str(folder)).config == open_target(str(tiny_folder(name))).config


def test_what_peers_would_compute_otherwise_is_not_written(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    peers = Peers(open_target(str(tiny_folder("gemma2"))), tmp_path)
    with pytest.raises(InputError, match="a target of type 'gemma2' cannot be written for peers"):
        peers.hugging_face()
    assert list(peers.folder.iterdir()) == []


def test_a_model_is_written_once(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path)
    written = (peers.hugging_face() / "model.safetensors").stat().st_mtime_ns
    assert (peers.hugging_face() / "model.safetensors").stat().st_mtime_ns == written


def test_a_failed_model_leaves_nothing(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path)
    with pytest.raises(InputError, match="GGUF"):
        peers.gguf()
    assert list(peers.folder.iterdir()) == []


def test_only_gguf_files_are_quantised(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path / "cache")
    with pytest.raises(InputError, match="GGUF"):
        peers.quantised_gguf("Q8_0")
    assert not peers.folder.exists()


def test_a_file_that_is_of_the_kind_is_taken_itself(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import gguf

    file = write_gguf(
        tmp_path / "t.gguf", tiny_folder("llama"), "llama", file_type=gguf.LlamaFileType.MOSTLY_Q4_1
    )
    assert Peers(open_target(str(file)), tmp_path / "cache").quantised_gguf("Q4_1") == file


@pytest.mark.skipif(
    find_spec("llama_cpp") is None,
    reason="needs llama-cpp-python: pip install -c constraints.txt -r benchmarks/requirements.txt",
)
def test_llama_cpp_quantises(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    import gguf

    file = write_gguf(tmp_path / "t.gguf", tiny_folder("llama"), "llama")
    made = Peers(open_target(str(file)), tmp_path / "cache").quantised_gguf("Q8_0")
    reader = gguf.GGUFReader(made)
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if tensor.name.startswith("blk.0.ffn_down")}
    assert kinds == {"Q8_0"}


def test_the_builder_is_told_the_precision() -> None:
    assert genai_builder("int8")[-4:] == ["-p", "int8", "-e", "cpu"]


def test_a_converter_that_is_not_there_is_named(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path)
    with pytest.raises(InputError, match=r"converter/bin/optimum-cli', which does not exist: run `python -m"):
        peers.openvino()
    assert list(peers.folder.iterdir()) == []


def test_a_converter_that_fails_says_why_and_leaves_nothing(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    peers = Peers(open_target(str(tiny_folder("llama"))), tmp_path)
    converter = tmp_path / "converter/bin/optimum-cli"
    converter.parent.mkdir(parents=True)
    converter.write_text('#!/bin/sh\necho "no such thing: $*" >&2\nexit 3\n')
    converter.chmod(0o755)
    with pytest.raises(InputError, match=r"failed: no such thing: export .*--weight-format int8"):
        peers.openvino("int8")
    assert [path.name for path in peers.folder.iterdir()] == ["hugging-face"]
