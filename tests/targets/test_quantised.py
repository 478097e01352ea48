"""Quantised checkpoints: the values of their weights are codes times scales, or they are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from poss_export.errors import CheckpointError
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend
from poss_export.targets.grids import unpack
from tests.fixtures.quantised import (
    Maker,
    awq,
    compressed,
    float8,
    gptq,
    words,
    write_quantised,
)

TABLE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text().splitlines()
IDS = torch.randint(0, 96, (1, 24), generator=torch.Generator().manual_seed(1))
UP = "model.layers.1.mlp.up_proj"


def group(bits: int = 4, **more: Any) -> dict[str, Any]:
    """Return a group of all linear layers."""
    targets, weights = more.pop("targets", ["Linear"]), {"num_bits": bits, "type": "int", "symmetric": True}
    outer: dict[str, Any] = {name: more.pop(name) for name in ("format", "input_activations") if name in more}
    return {"targets": targets, "weights": {**weights, **more}, **outer}


def packed(layout: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a configuration of compressed-tensors."""
    numbered = {f"group_{index}": one for index, one in enumerate(groups)}
    fixed = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": ["lm_head"]}
    return {**fixed, "format": layout, "config_groups": numbered, **more}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
INT4 = packed("pack-quantized", group(4, strategy="group", group_size=32))
INT8 = packed("int-quantized", group(8, strategy="channel", input_activations={"num_bits": 8}))
FLOAT8 = group(8, type="float", strategy="channel", input_activations={"num_bits": 8, "type": "float"})
INPUTS = -1  # all of them

CASES: dict[str, tuple[dict[str, Any], Maker]] = {
    **{f"gptq {n} bits": ({**GPTQ, "bits": n}, gptq(n)) for n in (2, 3, 4, 8)},
    "gptq reordered": ({**GPTQ, "desc_act": True}, gptq(4, ordered=True)),
    "gptq one group": ({**GPTQ, "group_size": -1}, gptq(4, -1)),
    "gptq second format": ({**GPTQ, "checkpoint_format": "gptq_v2"}, gptq(4, stored_less=0)),
    "gptq symmetric": ({**GPTQ, "sym": True}, gptq(4, even=True)),
    "awq": (AWQ, awq()),
    "awq narrow groups": ({**AWQ, "group_size": 16}, awq(16)),
    "fp8 blocks": ({**FP8, "weight_block_size": [48, 40]}, float8((48, 40))),
    "fp8 blocks of transformers": (FP8, float8((128, 128))),
    "fp8 scales of powers": (
        {**FP8, "weight_block_size": [32, 32], "scale_fmt": "ue8m0"},
        float8((32, 32), scale_type=torch.float8_e8m0fnu),
    ),
    "fp8 one scale": (
        {**FP8, "activation_scheme": "static"},
        float8(None, "weight_scale", extra=("input_scale",)),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, float8((1, INPUTS), "weight_scale")),
    "int4": (INT4, compressed(4, 32)),
    "int4 with zeros": (
        packed("pack-quantized", group(4, strategy="group", group_size=32, symmetric=False)),
        compressed(4, 32, zeros="words"),
    ),
    "int4 with zeros in bytes": (
        packed("pack-quantized", group(4, strategy="group", group_size=32, symmetric=False)),
        compressed(4, 32, zeros="bytes"),
    ),
    "int4 reordered": (
        packed("pack-quantized", group(4, strategy="group", group_size=32, actorder="group")),
        compressed(4, 32, ordered=True),
    ),
    "int2": (packed("pack-quantized", group(2, strategy="group", group_size=16)), compressed(2, 16)),
    "int8 in words": (packed("pack-quantized", group(8, strategy="channel")), compressed(8)),
    "int8": (INT8, compressed(8, packed=False)),
    "int8 with zeros": (
        packed("int-quantized", group(8, strategy="channel", symmetric=False)),
        compressed(8, packed=False, zeros="bytes"),
    ),
    "naive int8": (packed("naive-quantized", group(8, strategy="channel")), compressed(8, packed=False)),
    "float8": (packed("float-quantized", FLOAT8), float8((1, INPUTS), "weight_scale", torch.bfloat16)),
    "float8 one scale": (
        packed("float-quantized", group(8, type="float", strategy="tensor")),
        float8(None, "weight_scale"),
    ),
    "float8 blocks": (
        packed("naive-quantized", group(8, type="float", strategy="block", block_structure=[16, 32])),
        float8((16, 32), "weight_scale"),
    ),
}


def logits(folder: Path) -> Tensor:
    decoder = open_target(str(folder)).load_decoder()
    mask = causal_attend(decoder.config, IDS.shape[1], torch.float32)
    return decoder.head(decoder.hidden(IDS, mask))


@pytest.fixture
def write(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return write(stated, maker, ...): a quantised checkpoint, all but tables and head, and its values."""

    def folders(stated: dict[str, Any], maker: Maker, name: str = "llama3", **more: Any) -> tuple[Path, Path]:
        return write_quantised(
            tiny_folder(name),
            tmp_path,
            {"quantization_config": stated},
            lambda module: maker if module.startswith("model.layers.") else None,
            **more,
        )

    return folders


def restate(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change what a folder's quantization_config says."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))
    return folder


def retensor(folder: Path, **changes: Callable[[Tensor], Tensor] | None) -> Path:
    """Change tensors of one module, by the last part of their names; None takes one away."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for last, change in changes.items():
        if change is None:
            del tensors[f"{UP}.{last}"]
        else:
            tensors[f"{UP}.{last}"] = change(tensors.get(f"{UP}.{last}", torch.zeros(())))
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_values_are_codes_times_scales(name: str, write: Callable[..., tuple[Path, Path]]) -> None:
    stated, maker = CASES[name]
    quantised, floats = write(stated, maker)
    assert torch.equal(logits(quantised), logits(floats))
    assert f"| {name} | {open_target(str(quantised)).dequantised} | `{told(stated)}` |" in TABLE


def told(stated: dict[str, Any]) -> str:
    """Return what a row of the table says, beside what all of a method say."""
    groups = stated.get("config_groups", {}).values()
    said = {key: value for key, value in stated.items() if key not in ("ignore", "quantization_status")}
    said |= {"config_groups": [group["weights"] for group in groups]} if groups else {}
    return json.dumps(said)


def test_they_are_those_of_transformers_model_of_the_values(write: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write(*CASES["gptq 4 bits"])
    reference = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(logits(quantised), reference(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_rounded_to_the_type_of_the_checkpoint(
    dtype: torch.dtype, write: Callable[..., tuple[Path, Path]]
) -> None:
    quantised, floats = write(*CASES["fp8 blocks"], dtype=dtype)
    assert torch.equal(logits(quantised), logits(floats))
    path = quantised / "config.json"
    path.write_text(path.read_text().replace('"dtype"', '"torch_dtype"'))
    assert torch.equal(logits(quantised), logits(floats))
    path.write_text(path.read_text().replace('"torch_dtype"', '"not_stated"'))
    assert not torch.equal(logits(quantised), logits(floats))  # that of the scales: float32


def test_biases_of_zeros_beside_weights_of_gptq(write: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write(*CASES["gptq 4 bits"])
    assert torch.equal(logits(retensor(quantised, bias=lambda _: torch.zeros(96))), logits(floats))
    with pytest.raises(CheckpointError, match=r"unexpected tensors model\.layers\.1\.mlp\.up_proj\.bias"):
        logits(retensor(quantised, bias=lambda _: torch.ones(96)))


def test_a_head_and_a_table_are_quantised_too(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    stated = packed(
        "pack-quantized",
        group(4, strategy="group", group_size=32, targets=["Linear", "Embedding"]),
        ignore=[],
    )
    quantised, floats = write_quantised(
        tiny_folder("biased"), tmp_path, {"quantization_config": stated}, lambda _: compressed(4, 32)
    )
    assert torch.equal(logits(quantised), logits(floats))


def test_several_groups(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    stated = packed(
        "mixed-precision",
        group(4, strategy="group", group_size=32, format="pack-quantized"),
        {**FLOAT8, "targets": [r"re:.*layers\.1\..*"], "format": "float-quantized"},
        group(8, strategy="channel", format="int-quantized", targets=[UP]),
        ignore=["lm_head", "re:.*o_proj"],
    )

    def maker(module: str) -> Maker | None:
        if "o_proj" in module or not module.startswith("model.layers"):
            return None
        if module == UP:
            return compressed(8, packed=False)
        return float8((1, INPUTS), "weight_scale") if ".1." in module else compressed(4, 32)

    quantised, floats = write_quantised(
        tiny_folder("qwen2"), tmp_path, {"quantization_config": stated}, maker
    )
    assert torch.equal(logits(quantised), logits(floats))
    assert open_target(str(quantised)).dequantised == (
        "compressed-tensors (int4, groups of 32; float8, a scale an output; int8, a scale an output)"
    )


@pytest.mark.parametrize(("right", "wrong"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_what_is_said_of_zeros_counts(
    right: str, wrong: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    """The first format stores them less one."""
    maker = gptq(4, stored_less=int(right == "gptq"), even=True)
    quantised, floats = write({**GPTQ, "checkpoint_format": right}, maker)
    assert torch.equal(logits(quantised), logits(floats))
    restate(quantised, lambda stated: stated.update(checkpoint_format=wrong))
    assert not torch.allclose(logits(quantised), logits(floats), atol=1e-2)


def weights(**changes: Any) -> dict[str, Any]:
    """Return a change of a group's weights."""
    return {"config_groups": packed("", group(4, **{"strategy": "group", "group_size": 32, **changes}))[
        "config_groups"
    ]}  # fmt: skip


STATED: list[tuple[str, dict[str, Any], str]] = [
    ("gptq 4 bits", {"bits": 5}, r"has bits 5; this version reads 2, 3, 4, 8"),
    ("gptq 4 bits", {"bits": 8}, r"scales' has shape \[3, 64\]; expected \[2, 64\]"),
    ("gptq 4 bits", {"group_size": 64}, r"scales' has shape \[3, 64\]; expected \[2, 64\]"),
    ("gptq 4 bits", {"group_size": 0}, r"has group_size 0; expected a number of inputs"),
    ("gptq 4 bits", {"sym": True}, r"qzeros' holds other zeros than those of symmetric weights"),
    ("gptq reordered", {"desc_act": False}, r"g_idx' reorders the inputs, but desc_act is false"),
    ("gptq 4 bits", {"checkpoint_format": "marlin"}, r"checkpoint_format 'marlin'; this version reads gptq"),
    ("gptq 4 bits", {"dynamic": {"-:.*": {}}}, r"has dynamic .*quantises some layers in another way"),
    ("gptq 4 bits", {"rotation": "hadamard"}, r"has rotation 'hadamard'; its rotations are not computed"),
    ("gptq 4 bits", {"is_marlin_format": True}, r"has is_marlin_format True; this version does not know"),
    ("gptq 4 bits", {"quant_method": "gptq_marlin"}, r"\('gptq_marlin'\) are not supported"),
    ("awq", {"version": "gemv"}, r"has version 'gemv'; this version reads gemm"),
    ("awq", {"zero_point": False}, r"has zero_point False"),
    ("awq", {"bits": 8}, r"has bits 8"),
    ("awq", {"modules_to_not_convert": ["up_proj"]}, r"up_proj\.qweight' is quantised, but is listed"),
    ("fp8 blocks", {"weight_block_size": [64, 64]}, r"scale_inv' has shape \[2, 3\]; expected \[1, 2\]"),
    ("fp8 blocks", {"weight_block_size": None}, r"scale_inv' has shape \[2, 3\]; expected \[1, 1\]"),
    ("fp8 blocks", {"weight_block_size": [0]}, r"weight_block_size \[0\]; expected two sizes"),
    ("fp8 blocks", {"fmt": "e5m2"}, r"has fmt 'e5m2'"),
    ("fp8 blocks", {"ignored_layers": [UP]}, r"up_proj\.weight' is quantised, but is listed"),
    ("fp8 blocks", {"modules_to_convert": ["embed_tokens"]}, r"has modules_to_convert"),
    ("fp8 one scale", {"activation_scheme": "dynamic"}, r"unexpected tensors .*input_scale"),
    ("int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"has format 'sparse-24-bitmask'"),
    ("int4", {"transform_config": {"config_groups": {"R1": {}}}}, r"its rotations are not computed"),
    ("int4", {"format": "marlin-24"}, r"has format 'marlin-24'"),
    ("int4", {"format": "dense"}, r"this version reads pack-quantized, int-quantized"),
    ("int4", {"quantization_status": "calibration"}, r"quantization_status 'calibration'"),
    ("int4", {"ignore": [f"re:.*{UP[-7:]}"]}, r"up_proj' is quantised, but is in no group"),
    ("int4", {"ignore": ["re:("]}, r"expression '\('"),
    ("int4", {"config_groups": {}}, r"is quantised, but is in no group"),
    ("int4", {"config_groups": {"W4A16": ["Linear"]}}, r"config_groups\.W4A16 is \['Linear'\]; expected"),
    ("int4", weights(num_bits=3), r"weights has num_bits 3; this version reads 2, 4, 8, as"),
    ("int4", weights(num_bits=8), r"weight_packed' has shape \[64, 12\], which is not that of \[64, 96\]"),
    ("int4", weights(group_size=16), r"weight_scale' has shape \[64, 3\]; expected \[64, 6\]"),
    ("int4", weights(strategy="tensor_group"), r"has strategy 'tensor_group'"),
    ("int4", weights(symmetric=False), r"weight_zero_point' is missing"),
    ("int4", weights(actorder="group"), r"weight_g_idx' is missing"),
    ("int4", weights(dynamic=True), r"has dynamic True"),
    ("int4", weights(type="float"), r"has type 'float'"),
    ("int4 with zeros", weights(), r"weight_zero_point' is not zero, but its weight is said to be symmetric"),
    ("int8", {"config_groups": {"group_0": {**group(8, strategy="channel"), "output_activations": {"a": 1}}}},
     r"has output_activations"),
    ("int8", {"config_groups": {"a": group(8, strategy="channel"), "b": group(8, strategy="tensor")}},
     r"is in 2 groups of quantization_config"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), STATED)
def test_refused_by_what_is_stated(
    name: str, change: dict[str, Any], message: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    quantised, _ = write(*CASES[name])
    with pytest.raises(CheckpointError, match=message):
        logits(restate(quantised, lambda stated: stated.update(change)))


TENSORS: list[tuple[str, dict[str, Callable[[Tensor], Tensor] | None], str]] = [
    ("gptq 4 bits", {"qzeros": None}, r"tensor 'model\.layers\.1\.mlp\.up_proj\.qzeros' is missing"),
    ("gptq 4 bits", {"qzeros": lambda one: one * 0 - 1}, r"has a zero of 15.*read it as 0 or as 16"),
    ("gptq 4 bits", {"qweight": lambda one: one.short()}, r"qweight' is torch\.int16; expected torch\.int32"),
    ("gptq reordered", {"g_idx": None}, r"g_idx' is missing"),
    ("gptq reordered", {"g_idx": lambda one: one + 1}, r"g_idx' does not name one of 2 groups"),
    ("fp8 blocks", {"weight_scale_inv": None}, r"weight' is torch\.float8_e4m3fn, a type of quantised"),
    ("fp8 blocks", {"weight": lambda one: one.bfloat16()}, r"weight' is torch\.bfloat16; expected"),
    ("int4 reordered", {"weight_g_idx": lambda one: one * 0}, r"weight_g_idx' does not divide the inputs"),
    ("int8", {"weight": lambda one: one.half()}, r"weight' is torch\.float16; expected torch\.int8"),
    ("int4", {"weight_scale": lambda one: one.to(torch.float8_e4m3fn)}, r"weight_scale' is torch\.float8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), TENSORS)
def test_refused_by_its_tensors(
    name: str, changes: dict[str, Any], message: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    quantised, _ = write(*CASES[name])
    with pytest.raises(CheckpointError, match=message):
        logits(retensor(quantised, **changes))


@pytest.mark.parametrize("stated", [None, {}])
def test_codes_without_a_configuration(stated: Any, write: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write(stated, float8((128, 128)))
    with pytest.raises(CheckpointError, match=r"is torch\.float8_e4m3fn, a type of quantised weights"):
        open_target(str(quantised))
    (quantised / "model.safetensors").write_bytes((floats / "model.safetensors").read_bytes())
    assert torch.equal(logits(quantised), logits(floats))
    assert open_target(str(quantised)).dequantised is None


def test_what_runtimes_round_beside_is_told(write: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write(*CASES["int8"])
    opened = open_target(str(quantised))
    assert opened.dequantised == "compressed-tensors (int8, a scale an output)"
    assert [doubt.split(",")[0] for doubt in opened.doubts] == [
        "its runtimes round activations to 8 bits as well"
    ]
    restate(quantised, lambda stated: stated.update(kv_cache_scheme={"num_bits": 8}))
    tensors = load_file(quantised / "model.safetensors")
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, quantised / "model.safetensors")
    assert "keys and values in the cache" in open_target(str(quantised)).doubts[1]
    assert torch.equal(logits(quantised), logits(floats))


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_of_any_bits(bits: int) -> None:
    numbers = torch.randint(0, 1 << bits, (5, 64))
    assert torch.equal(unpack(words(numbers, bits), bits).long(), numbers)


@pytest.mark.parametrize("name", ["gptq 3 bits", "awq", "fp8 blocks", "int4 with zeros"])
def test_any_rows_can_be_read(name: str, write: Callable[..., tuple[Path, Path]]) -> None:
    quantised, _ = write(*CASES[name])
    for weight in open_target(str(quantised)).weights().values():
        for part in weight.parts:
            assert torch.equal(part.whole()[5:23], part.read(5, 23))
