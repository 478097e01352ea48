"""Quantised checkpoints: the values of their weights are codes times scales."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from poss_export.errors import CheckpointError
from poss_export.targets import grids
from poss_export.targets.checkpoint import open_target
from poss_export.targets.grids import Grid, unpack
from poss_export.targets.methods import read_quantisation
from poss_export.targets.weights import in_memory
from tests.fixtures.quantised import (
    IDS,
    UP,
    Maker,
    compressed,
    float8,
    gptq,
    logits,
    restate,
    retensor,
    words,
    write_quantised,
)
from tests.fixtures.quantised_cases import CASES, FLOAT8, FP8, GPTQ, INPUTS, group, packed

TABLE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text().splitlines()


@pytest.mark.parametrize("name", CASES)
def test_values_are_codes_times_scales(name: str, write_case: Callable[..., tuple[Path, Path]]) -> None:
    stated, maker = CASES[name]
    quantised, floats = write_case(stated, maker)
    assert torch.equal(logits(quantised), logits(floats))
    assert f"| {name} | {open_target(str(quantised)).dequantised} | `{told(stated)}` |" in TABLE


def told(stated: dict[str, Any]) -> str:
    """Return what a row of the table says, beside what all of a method say."""
    groups = stated.get("config_groups", {}).values()
    said = {key: value for key, value in stated.items() if key not in ("ignore", "quantization_status")}
    said |= {"config_groups": [group["weights"] for group in groups]} if groups else {}
    return json.dumps(said)


def test_they_are_those_of_transformers_model_of_the_values(
    write_case: Callable[..., tuple[Path, Path]],
) -> None:
    quantised, floats = write_case(*CASES["gptq 4 bits"])
    reference = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(logits(quantised), reference(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_rounded_to_the_type_of_the_checkpoint(
    dtype: torch.dtype, write_case: Callable[..., tuple[Path, Path]]
) -> None:
    quantised, floats = write_case(*CASES["fp8 blocks"], dtype=dtype)
    assert torch.equal(logits(quantised), logits(floats))
    path = quantised / "config.json"
    path.write_text(path.read_text().replace('"dtype"', '"torch_dtype"'))
    assert torch.equal(logits(quantised), logits(floats))
    path.write_text(path.read_text().replace('"torch_dtype"', '"not_stated"'))
    assert not torch.equal(logits(quantised), logits(floats))  # that of the scales: float32


def test_biases_of_zeros_beside_weights_of_gptq(write_case: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write_case(*CASES["gptq 4 bits"])
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
    right: str, wrong: str, write_case: Callable[..., tuple[Path, Path]]
) -> None:
    """The first format stores them less one."""
    maker = gptq(4, stored_less=int(right == "gptq"), even=True)
    quantised, floats = write_case({**GPTQ, "checkpoint_format": right}, maker)
    assert torch.equal(logits(quantised), logits(floats))
    restate(quantised, lambda stated: stated.update(checkpoint_format=wrong))
    assert not torch.allclose(logits(quantised), logits(floats), atol=1e-2)


@pytest.mark.parametrize("stated", [None, {}])
def test_codes_without_a_configuration(stated: Any, write_case: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write_case(stated, float8((128, 128)))
    with pytest.raises(CheckpointError, match=r"is torch\.float8_e4m3fn, a type of quantised weights"):
        open_target(str(quantised))
    (quantised / "model.safetensors").write_bytes((floats / "model.safetensors").read_bytes())
    assert torch.equal(logits(quantised), logits(floats))
    assert open_target(str(quantised)).dequantised is None


def test_what_runtimes_round_beside_is_told(write_case: Callable[..., tuple[Path, Path]]) -> None:
    quantised, floats = write_case(*CASES["int8"])
    opened = open_target(str(quantised))
    assert opened.dequantised == "compressed-tensors (int8, a scale an output)"
    assert [doubt.split(",")[0] for doubt in opened.doubts] == [
        "runtimes of its quantised weights round activations"
    ]
    restate(quantised, lambda stated: stated.update(kv_cache_scheme={"num_bits": 8}))
    tensors = load_file(quantised / "model.safetensors")
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, quantised / "model.safetensors")
    assert "round cached keys and values" in open_target(str(quantised)).doubts[1]
    assert torch.equal(logits(quantised), logits(floats))


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_of_any_bits(bits: int) -> None:
    numbers = torch.randint(0, 1 << bits, (5, 64))
    assert torch.equal(unpack(words(numbers, bits), bits).long(), numbers)


@pytest.mark.parametrize("name", ["gptq 3 bits", "awq", "fp8 blocks", "int4 with zeros"])
def test_any_rows_can_be_read(
    name: str, write_case: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised, floats = write_case(*CASES[name])
    monkeypatch.setattr(grids, "_AT_ONCE", most := 500)  # values: some rows
    sizes, dequantise = list[int](), Grid.rows

    def watched(grid: Grid, first: int, last: int) -> torch.Tensor:
        sizes.append((last - first) * len(grid.columns))
        return dequantise(grid, first, last)

    monkeypatch.setattr(Grid, "rows", watched)
    expected = open_target(str(floats)).weights()
    for key, weight in open_target(str(quantised)).weights().items():
        for part, plain in zip(weight.parts, expected[key].parts, strict=True):
            assert torch.equal(part.read(5, 23), plain.read(5, 23))
            assert torch.equal(part.whole(), plain.whole())
    assert 0 < max(sizes) <= most


def test_blocks_that_are_not_stated() -> None:
    """They are 128 x 128."""
    parts, weight = float8((128, 128))((200, 300))
    tensors = {f"m.{name}": in_memory(tensor).parts[0] for name, tensor in parts.items()}
    quantisation = read_quantisation({"quantization_config": FP8})
    assert quantisation is not None
    assert torch.equal(quantisation.dequantise(tensors, None)["m.weight"].whole(), weight)
