"""Drafters' folders: damaged files, names and draft ids that cannot be, and the positions of PosS."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from poss_export.drafters.checkpoint import load_drafter, refuse_drafter, save_drafter
from poss_export.drafters.facts import POSS_RELEASES
from poss_export.errors import InputError, PossExportError
from tests.fixtures.public_checkpoints import TINY, eagle, parallelspec, poss, write
from tests.fixtures.random_drafter import random_drafter

VOCAB = TINY.vocab


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(PossExportError) as error:
        load_drafter(str(folder), **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("d2t", "message"),
    [
        ([40, 41, 46], "maps 3 draft ids to 3 target ids from 40 to 48; expected each once, from 0 to 47"),
        ([0, -2, 0], "maps 3 draft ids to 3 target ids from -1 to 2"),
        ([5, 4, 0], "maps 3 draft ids to 2 target ids from 2 to 5"),
        ([0, 1, 1], "d2t and t2d name other target ids"),
        ([0.0, 1.0, 2.0], "of another type: d2t torch.float32"),
    ],
)
def test_a_bad_d2t(d2t: list[float], message: str, tmp_path: Path) -> None:
    layout = parallelspec()
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[[0, 2, 4]] = True
    tensors = {**layout.random(), "d2t": torch.tensor(d2t), "t2d": mask}
    assert message in refused(write(tmp_path / "drafter", layout.config, tensors))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_truncated_file(form: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "drafter", eagle().config, eagle().random(), form)
    (file,) = (path for path in folder.iterdir() if path.suffix != ".json")
    file.write_bytes(file.read_bytes()[:-100])
    message = refused(folder)
    assert message.startswith(f"{file}: not a readable weight file")
    assert message.endswith("it is damaged or incomplete: fetch it again")


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "drafter", eagle().config, eagle().random(), "bin-shards")
    (folder / "1-of-2-pytorch_model.bin").unlink()
    assert "1-of-2-pytorch_model.bin is missing of 2 weight files" in refused(folder)


class Payload:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("what", ["code", "other things"])
def test_a_bin_file_holds_tensors_only(what: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"code": Payload(tmp_path / "ran"), "other things": {"state_dict": {}}}
    folder = write(tmp_path / "drafter", eagle().config, {"fc.weight": values[what]}, "bin")
    assert "pytorch_model.bin: not a readable weight file" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    tensors = eagle().random()
    tensors["model.fc.weight"] = tensors["fc.weight"] + 1
    folder = write(tmp_path / "x", eagle().config, tensors)
    assert "tensor 'fc.weight' is there twice, also as 'model.fc.weight'" in refused(folder)


@pytest.mark.parametrize(
    "wrapper", ["model.", "module.", "ea_layer.", "_orig_mod.", "module._orig_mod.model."]
)
def test_what_trainers_wrap_a_drafter_in(wrapper: str, tmp_path: Path) -> None:
    tensors = eagle().random()
    plain = load_drafter(str(write(tmp_path / "plain", eagle().config, tensors))).drafter.state_dict()
    inside = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
    found = load_drafter(str(write(tmp_path / "inside", eagle().config, inside))).drafter.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in plain.items())


def test_double_precision_is_read(tmp_path: Path) -> None:
    """Trainers save it; it is no quantised checkpoint."""
    tensors = {name: tensor.double() for name, tensor in eagle().random().items()}
    loaded = load_drafter(str(write(tmp_path / "x", eagle().config, tensors))).drafter
    assert all(weight.dtype == torch.float32 for weight in loaded.parameters())


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    tensors, stated = eagle().random(), {"quantization_config": {"quant_method": "fp8"}}
    message = "has quantised weights ('fp8'), which are read of targets only; use the original"
    assert message in refused(write(tmp_path / "stated", {**eagle().config, **stated}, tensors))
    assert load_drafter(str(write(tmp_path / "none", {**eagle().config, "quantization_config": {}}, tensors)))
    tensors["fc.weight"] = tensors["fc.weight"].to(torch.float8_e4m3fn)
    message = "of another type: fc.weight torch.float8_e4m3fn"
    assert message in refused(write(tmp_path / "typed", eagle().config, tensors))


def test_what_is_no_drafter_is_called_by_its_name(
    tiny_bundle: Path, tiny_folder: Callable[[str], Path]
) -> None:
    assert "is a bundle, which was built already; give the drafter" in refused(tiny_bundle)
    message = "is a language model of its own, which can be a target; give the folder of a drafter"
    assert message in refused(tiny_folder("qwen2"))


@pytest.mark.parametrize("kind", ["release", "shipped"])
def test_a_drafter_is_no_target(kind: str, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    release = write(tmp_path / "x", eagle().config, eagle().random())
    with pytest.raises(
        InputError, match=r"is a drafter; give it as the drafter, beside the target"
    ) as caught:
        refuse_drafter({"release": str(release), "shipped": "poss-2"}[kind])
    assert caught.value.options == ("drafter",)
    (release / "model.safetensors").write_bytes(b"")
    for other in (str(tiny_folder("llama")), "nowhere", str(release)):
        refuse_drafter(other)


def test_a_cache_does_not_name_a_drafter(tmp_path: Path) -> None:
    place = tmp_path / "models--somebody--EAGLE-tiny" / "snapshots" / "0123abcd"
    assert load_drafter(str(write(place, eagle().config, eagle().random()))).name == "EAGLE-tiny"


def edit(folder: Path, **facts: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **facts}))


def test_our_own_format_is_checked_too(tmp_path: Path) -> None:
    save_drafter(tmp_path / "x", random_drafter(2, 2), None, torch.float32)
    tensors = load_file(tmp_path / "x/model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "d2t"}, tmp_path / "x/model.safetensors")
    assert "missing: d2t; fetch" in refused(tmp_path / "x")
    edit(tmp_path / "x", num_specialists=1)
    assert "unknown: layers.1.mlp.down_proj.weight, layers.1." in refused(tmp_path / "x")
    edit(tmp_path / "x", positions_per_specialist=0)
    assert "the drafter's positions_per_specialist is 0; expected a whole number from 1" in refused(
        tmp_path / "x"
    )


def released(folder: Path, specialists: int) -> Path:
    layout = poss(specialists=specialists)
    return write(folder, layout.config, layout.random())


@pytest.mark.parametrize("name", POSS_RELEASES)
def test_the_name_of_a_release_states_its_positions(name: str, tmp_path: Path) -> None:
    positions, specialists = POSS_RELEASES[name]
    assert name.startswith(f"PosS{positions}-")
    folder = released(tmp_path / name, specialists)
    cached = released(tmp_path / f"models--HINT-lab--{name}" / "snapshots" / "0123abcd", specialists)
    for place in (folder, cached):
        config = load_drafter(str(place)).drafter.config
        assert (config.num_specialists, config.positions_per_specialist) == (specialists, positions)
    assert load_drafter(str(folder), 7).drafter.config.positions_per_specialist == 7  # the user knows better


@pytest.mark.parametrize(
    ("name", "known"),
    [("mine", "no public release"), ("PosS3-Llama2-13B-Chat", "a release of 2 specialists")],
)
def test_positions_that_nobody_states(name: str, known: str, tmp_path: Path) -> None:
    message = refused(released(tmp_path / name, 4))
    assert message == (
        f"drafter {name!r} is PosS with 4 specialists, its files do not say how many draft positions each "
        f"one serves, and that is the name of {known}: state it, as 3 for PosS-3"
    )


def test_positions_that_contradict_the_drafter(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", eagle().config, eagle().random())
    with pytest.raises(
        InputError, match=r"is 2, but drafter 'one' \(EAGLE\) has one specialist for all positions"
    ):
        load_drafter(str(folder), 2)
    with pytest.raises(
        InputError, match=r"is 3, but drafter 'poss-2' .* has specialists of 2 positions: leave"
    ):
        load_drafter("poss-2", 3)
    assert load_drafter("poss-2", 2).drafter.config.positions_per_specialist == 2
