"""What is stated of quantised weights and not computed is refused, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from poss_export.errors import CheckpointError
from poss_export.targets.methods import read_quantisation
from tests.fixtures.quantised import UP, logits, restate, retensor
from tests.fixtures.quantised_cases import CASES, PUBLISHED, group, packed


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
    name: str, change: dict[str, Any], message: str, write_case: Callable[..., tuple[Path, Path]]
) -> None:
    quantised, _ = write_case(*CASES[name])
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
    ("gptq 4 bits", {"weight": lambda _: torch.ones(96, 64)}, r"weight' is there, and its codes too"),
    ("int4", {"weight": lambda _: torch.ones(96, 64)}, r"weight' is there, and weight_packed too"),
    ("int4", {"weight_packed": None}, r"weight_packed' is missing"),
    ("fp8 blocks", {"weight_scale": lambda _: torch.ones(())}, r"scale_inv' is there, and weight_scale too"),
    ("int4 reordered", {"weight_g_idx": lambda one: one * 0}, r"weight_g_idx' does not divide the inputs"),
    ("int8", {"weight": lambda one: one.half()}, r"weight' is torch\.float16; expected torch\.int8"),
    ("int4", {"weight_scale": lambda one: one.to(torch.float8_e4m3fn)}, r"weight_scale' is torch\.float8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), TENSORS)
def test_refused_by_its_tensors(
    name: str, changes: dict[str, Any], message: str, write_case: Callable[..., tuple[Path, Path]]
) -> None:
    quantised, _ = write_case(*CASES[name])
    with pytest.raises(CheckpointError, match=message):
        logits(retensor(quantised, **changes))


@pytest.mark.parametrize(("stated", "kind"), PUBLISHED)
def test_configurations_as_tools_write_them(stated: dict[str, Any], kind: str) -> None:
    for field in ("quantization_config", "compression_config"):
        found = read_quantisation({field: stated})
        assert found is not None
        assert found.kind == kind
