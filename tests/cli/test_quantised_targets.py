"""Targets whose checkpoints are quantised, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from poss_export.manifest import read_manifest
from poss_export.targets.checkpoint import open_target
from tests.cli.command import done
from tests.fixtures.quantised import compressed, write_quantised

KIND = "compressed-tensors (int8, a scale an output)"
STATED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}


@pytest.fixture
def folders(tiny_folder: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of 8-bit integers, and one of its values."""
    return write_quantised(
        tiny_folder("llama3"),
        tmp_path,
        {"quantization_config": STATED},
        lambda module: compressed(8, packed=False) if module.startswith("model.layers.") else None,
    )


def test_a_build_tells_from_what_it_dequantised(folders: tuple[Path, Path], tmp_path: Path) -> None:
    quantised, floats = folders
    common = ("--capacity", 48, "--force")
    bundle = tmp_path / "bundle"
    asked = json.loads(done("inspect", quantised, "--json").stdout)
    assert (asked["kind"], asked["dequantised"]) == ("target", KIND)
    planned = done("build", quantised, "-o", bundle, *common, "--dry-run")
    assert KIND in " ".join(planned.stdout.split())
    built = done("build", quantised, "-o", bundle, *common)
    assert f"dequantised: from {KIND}\n" in built.stdout
    assert "runtimes of its quantised weights round activations, too" in " ".join(built.stderr.split())
    assert "dequantised  from compressed-tensors" in done("inspect", bundle).stdout
    manifest = read_manifest(bundle)
    assert manifest.target.dequantised == KIND
    assert manifest.target.config == open_target(str(floats)).config
    other = done("build", floats, "-o", tmp_path / "other", *common)
    assert "dequantised" not in other.stdout
    data = "target.onnx.data"
    assert manifest.files[data] == read_manifest(tmp_path / "other").files[data]
