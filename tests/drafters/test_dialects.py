"""Which dialect a checkpoint is taken for, and the one clear message for everything that is not right."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from poss_export.config import DrafterConfig, RopeConfig
from poss_export.drafters.checkpoint import load_drafter, save_drafter, shipped_drafters
from poss_export.drafters.dialects import Tensors, recognise
from poss_export.drafters.releases import POSS_RELEASES, read_release
from poss_export.errors import CheckpointError, InputError, PossExportError
from tests.fixtures.public_checkpoints import (
    TINY,
    Layout,
    Shapes,
    Sizes,
    eagle,
    fspad,
    griffin,
    parallelspec,
    poss,
    speculators,
    vllm,
    write,
)
from tests.fixtures.random_drafter import random_drafter

HIDDEN, VOCAB = TINY.hidden, TINY.vocab


def shapes(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def norms(*names: str) -> Shapes:
    return {f"{name}.weight": (HIDDEN,) for name in names}


def eagle3(layer: str = "midlayer", **config: Any) -> Layout:
    """EAGLE-3 as released, with a draft vocabulary of 20."""
    tensors = shapes(
        TINY.fc(bias=False, reads=3),
        TINY.layer(layer, reads=2),
        norms(f"{layer}.hidden_norm", f"{layer}.input_layernorm", "norm"),
        {"lm_head.weight": (20, HIDDEN), "d2t": (20,), "t2d": (VOCAB,)},
    )
    return Layout({**TINY.config, **config}, tensors)


def deep(prefix: str, count: int, *extra: str) -> Layout:
    """`count` layers with an input norm and the norms `extra`, behind an fc that reads three vectors."""
    layers = [TINY.layer(f"{prefix}.{i}", reads=2) for i in range(count)]
    names = [f"{prefix}.{i}.{name}" for i in range(count) for name in ("input_layernorm", *extra)]
    return Layout(TINY.config, shapes(TINY.fc(bias=False, reads=3), *layers, norms(*names, "norm")))


def with_(layout: Layout, tensors: Shapes | None = None, **config: Any) -> Layout:
    return Layout({**layout.config, **config}, {**layout.shapes, **(tensors or {})})


LANGUAGE_MODEL = Layout(
    TINY.config,
    shapes(
        TINY.layer("layers.0"), norms("layers.0.input_layernorm", "norm"), {"embed_tokens.weight": TINY.table}
    ),
)


@pytest.mark.parametrize(
    ("layout", "name", "reason"),
    [
        (speculators(), "speculators EAGLE", "config.json has speculators_model_type 'eagle'"),
        (vllm(), "vLLM EAGLE", "config.json has model_type 'eagle' and a model inside"),
        (parallelspec(), "ParallelSpec-style", "config.json has num_masks"),
        (fspad(), "FSPAD", "there is fc.fc.weight and fc.mlp.gate_proj.weight"),
        (griffin(), "GRIFFIN", "there is fc.fc.weight and fc.mlp.input_layernorm.weight"),
        (poss(), "PosS", "fc.weight reads 2 vectors, and none of its 3 layers has input_layernorm"),
        (eagle(), "EAGLE", "fc.weight reads 2 vectors, and there is one layer"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_supported_dialects(layout: Layout, name: str, reason: str) -> None:
    release = read_release(Path("drafter"), layout.config, layout.meta(), 3 if name == "PosS" else None)
    assert (release.dialect.name, release.dialect.reason, release.dialect.refusal) == (name, reason, None)


@pytest.mark.parametrize("name", shipped_drafters())
def test_shipped_drafters_are_in_our_own_format(name: str) -> None:
    dialect = load_drafter(name).dialect
    assert (dialect.name, dialect.reason) == ("poss-export", "config.json has positions_per_specialist")


REFUSED = {
    "speculators with norms": (
        with_(speculators(), layernorms=True),
        r"speculators EAGLE with extra norms \(config.json has layernorms: true\)",
    ),
    "speculators with norms, says the file": (
        with_(speculators(), norms("embedding_layernorm")),
        r"speculators EAGLE with extra norms \(there is embedding_layernorm.weight\)",
    ),
    "speculators eagle3": (
        eagle3("layers.0", speculators_model_type="eagle3"),
        "another speculators drafter .config.json has speculators_model_type 'eagle3'.",
    ),
    "speculators peagle": (
        with_(eagle3("layers.0", speculators_model_type="peagle"), {"mask_hidden": (1, 3 * HIDDEN)}),
        "another speculators drafter .config.json has speculators_model_type 'peagle'.",
    ),
    "DFlash": (
        with_(eagle3(), dflash_config={"mask_token_id": 5}),
        r"DFlash \(config.json has dflash_config\)",
    ),
    "DSpark": (
        with_(LANGUAGE_MODEL, architectures=["DSparkDraftModel"]),
        r"DFlash \(config.json has architecture 'DSparkDraftModel'\)",
    ),
    "P-EAGLE": (
        with_(deep("layers", 4), {"mask_hidden": (1, 1, 3 * HIDDEN)}),
        r"P-EAGLE \(there is mask_hidden\)",
    ),
    "P-EAGLE, says the architecture": (
        with_(deep("layers", 4), architectures=["PEagleDraftModel"]),
        r"P-EAGLE \(config.json has architecture 'PEagleDraftModel'\)",
    ),
    "P-EAGLE, says a flag": (
        with_(eagle3(), parallel_drafting=True),
        r"P-EAGLE \(config.json has parallel_drafting\)",
    ),
    "PosS-E3": (
        deep("layers", 3, "hidden_norm"),
        r"PosS-E3 \(each of its 3 layers has hidden_norm and reads two vectors\)",
    ),
    "PosS-E3 of older revisions": (
        deep("midlayers", 3, "hidden_norm"),
        r"PosS-E3 \(each of its 3 layers has hidden_norm and reads two vectors\)",
    ),
    "Model-Optimizer": (
        with_(eagle3("layers.0"), eagle_config={}, draft_vocab_size=20),
        r"Model-Optimizer EAGLE-3 \(config.json has eagle_config, and there is layers.0.hidden_norm.weight\)",
    ),
    "EAGLE-3, by draft_vocab_size": (
        eagle3(draft_vocab_size=20),
        r"EAGLE-3 \(config.json has draft_vocab_size\)",
    ),
    "EAGLE-3, by names": (eagle3(), r"EAGLE-3 \(tensors are named midlayer.*\)"),
    "EAGLE-3, by fc": (eagle3("layers.0"), r"EAGLE-3 \(fc.weight reads 3 vectors\)"),
    "EAGLE-3, by an fc of another width": (
        with_(eagle3("layers.0"), {"fc.weight": (HIDDEN, 3 * 48)}, target_hidden_size=48),
        r"EAGLE-3 \(fc.weight reads 3 vectors\)",
    ),
    "EAGLE-3, by architecture": (
        with_(
            eagle3("layers.0"), {"fc.weight": (HIDDEN, 4 * HIDDEN)}, architectures=["LlamaForCausalLMEagle3"]
        ),
        r"EAGLE-3 \(config.json has architecture 'LlamaForCausalLMEagle3'\)",
    ),
    "EAGLE of several layers": (
        with_(poss(), norms("layers.1.input_layernorm", "layers.2.input_layernorm")),
        r"EAGLE of several layers \(of its 3 layers, some have input_layernorm\)",
    ),
    "PARD": (
        with_(LANGUAGE_MODEL, pard_token=47),
        r"PARD \(config.json has pard_token, and the tensors are a whole language model's\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_recognised_and_refused(name: str) -> None:
    layout, reason = REFUSED[name]
    with pytest.raises(
        CheckpointError, match=f"^drafter: this drafter is {reason}, which is not supported: .+"
    ):
        read_release(Path("drafter"), layout.config, layout.meta())


def test_what_nobody_knows_is_listed() -> None:
    layout = Layout({"model_type": "medusa", "medusa_num_heads": 4}, {"0.0.linear.weight": (2, 2)})
    message = (
        "^drafter: not a drafter of a known dialect; its config.json has medusa_num_heads, model_type; its "
        r"tensors are \*\.\*\.linear\.weight; docs/checkpoints\.md lists what is known$"
    )
    with pytest.raises(CheckpointError, match=message):
        read_release(Path("drafter"), layout.config, layout.meta())


def test_a_target_is_no_drafter() -> None:
    assert recognise(LANGUAGE_MODEL.config, LANGUAGE_MODEL.meta()) is None


# What a file can lack, have too much of, or have in another shape.
LAYOUTS = {
    "EAGLE": eagle(),
    "speculators EAGLE": speculators(),
    "vLLM EAGLE": vllm(),
    "ParallelSpec-style": parallelspec(layers=2),
    "FSPAD": fspad(),
    "GRIFFIN": griffin(),
    "PosS": poss(),
}
OPTIONAL = {"embed_tokens.weight", "lm_head.weight", "fc.bias"}
# They decide what the dialect is.
DECISIVE = {"fc.weight", "fc.fc.weight", "fc.mlp.gate_proj.weight", "fc.mlp.input_layernorm.weight"}


def read(name: str, tensors: Tensors) -> None:
    read_release(Path("x"), LAYOUTS[name].config, tensors, 3 if name == "PosS" else None)


def ours(name: str) -> str:
    """Return the name that messages use, ours."""
    return re.sub(r"^transformer\.", "layers.0.", re.sub(r"^fusion_fc\.", "fc.", name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_missing_tensor_is_named(name: str) -> None:
    tensors = LAYOUTS[name].meta()
    for one in tensors.keys() - OPTIONAL - DECISIVE:
        fewer = {other: tensor for other, tensor in tensors.items() if other != one}
        with pytest.raises(
            CheckpointError, match=rf"missing: {re.escape(ours(one))}; fetch the checkpoint again"
        ):
            read(name, fewer)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_wrong_shape_is_named(name: str) -> None:
    tensors = LAYOUTS[name].meta()
    for one in tensors.keys() - DECISIVE:
        shape = [*tensors[one].shape[:-1], tensors[one].shape[-1] + 1]
        wrong = {**tensors, one: torch.empty(shape, device="meta")}
        message = f"of another shape: {ours(one)} {shape}, expected {list(tensors[one].shape)}; fetch"
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read(name, wrong)


@pytest.mark.parametrize("name", ["FSPAD", "GRIFFIN"])
def test_a_bias_that_the_layout_always_has(name: str) -> None:
    tensors = LAYOUTS[name].meta()
    del tensors["fc.fc.bias"]
    with pytest.raises(CheckpointError, match=rf"^x \({name}\): .*; missing: fc\.fc\.bias; "):
        read(name, tensors)


def test_all_problems_are_listed_at_once() -> None:
    tensors = LAYOUTS["EAGLE"].meta()
    del tensors["layers.0.mlp.up_proj.weight"], tensors["layers.0.self_attn.v_proj.weight"]
    tensors["norm.weight"] = tensors["layers.0.input_layernorm.weight"] = torch.empty(HIDDEN, device="meta")
    tensors["fc.bias"] = torch.empty(3, device="meta")
    tensors["layers.0.mlp.down_proj.weight"] = torch.empty(HIDDEN, 40, dtype=torch.int8, device="meta")
    with pytest.raises(CheckpointError) as refused:
        read("EAGLE", tensors)
    assert str(refused.value) == (
        "x (EAGLE): its tensors are not those of its dialect and configuration; "
        "missing: layers.0.mlp.up_proj.weight, layers.0.self_attn.v_proj.weight; "
        "unknown: layers.0.input_layernorm.weight, norm.weight; "
        "of another shape: fc.bias [3], expected [32]; "
        "of another type: layers.0.mlp.down_proj.weight torch.int8; "
        "fetch the checkpoint again, as it was released"
    )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, "rope scaling 'yarn' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; this version knows 'silu' only"),
        ({"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ({"num_attention_heads": "4"}, "'num_attention_heads' is '4'; expected a whole number above 0"),
        ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"num_key_value_heads": 4}, r"k_proj.weight \[16, 32\], expected \[32, 32\]"),
        ({"head_dim": 16}, r"q_proj.weight \[32, 32\], expected \[64, 32\]"),
        ({"vocab_size": 50}, r"embed_tokens.weight \[48, 32\], expected \[50, 32\]"),
    ],
)
def test_facts_that_cannot_be(facts: dict[str, Any], message: str) -> None:
    layout = eagle()
    with pytest.raises(CheckpointError, match=message):
        read_release(Path("x"), {**layout.config, **facts}, layout.meta())


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
    assert "tensors fc.weight are there twice" in refused(write(tmp_path / "x", eagle().config, tensors))


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
    assert "drafter positions_per_specialist is 0; it must be at least 1" in refused(tmp_path / "x")


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


LLAMA3 = Sizes(hidden=4096, inner=14336, heads=32, kv_heads=8, vocab=128256)
LAYER = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336 + 4096


def full_size() -> tuple[dict[str, Any], dict[str, Tensor]]:
    layout = poss(LLAMA3, specialists=4)
    return {**layout.config, "rope_theta": 500000.0}, {
        **layout.meta(),
        "embed_tokens.weight": meta(128256, 4096),
    }


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def test_full_size_poss_3_for_llama_3_fits_without_its_memory() -> None:
    config, tensors = full_size()
    release = read_release(Path("PosS3-Llama3-8B-Instruct"), config, tensors)
    assert release.config == DrafterConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        vocab_size=128256,
        draft_vocab_size=128256,
        rope=RopeConfig(500000.0),
        fusion_bias=True,
        num_specialists=4,
        positions_per_specialist=3,
    )
    weights = {name: tensor for name, tensor in release.tensors.items() if name != "embed_tokens.weight"}
    assert all(tensor.is_meta for tensor in weights.values())
    assert sum(tensor.numel() for tensor in weights.values()) == 4 * LAYER + 2 * 4096**2 + 4096


def test_full_size_shapes_are_checked_too() -> None:
    config, tensors = full_size()
    tensors["layers.3.self_attn.k_proj.weight"] = meta(4096, 4096)  # 32 key and value heads
    with pytest.raises(
        CheckpointError, match=r"layers\.3\.self_attn\.k_proj\.weight \[4096, 4096\], expected \[1024"
    ):
        read_release(Path("PosS3-Llama3-8B-Instruct"), config, tensors)
