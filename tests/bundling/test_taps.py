"""A bundle whose drafter reads inner layers, with tables of its own: sizes, contract, answers, checks."""

from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.build import build_bundle
from poss_export.bundling.facts import facts_of
from poss_export.bundling.plan import Plan, plan_build
from poss_export.bundling.verify import verify
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter, save_drafter
from poss_export.errors import CheckpointError
from poss_export.manifest import read_manifest
from poss_export.prompts import as_prompts
from poss_export.runtime.bundle import contracts_of, open_bundle
from poss_export.targets.checkpoint import open_target
from tests.fixtures.graphs import CAPACITY

TREE = TreeShape(4, 3, 8)
OWN: dict[str, Any] = {"own_head": True, "own_embeddings": True, "tap_norm": "each"}


def plan(target: Any, drafter: Any, specialists: int = 1, **choices: Any) -> Plan:
    made = drafter(target.config, specialists, fusion="taps", **choices)
    checkpoint = DrafterCheckpoint("random", "0" * 64, made, None)
    return plan_build(target, checkpoint, tree=TREE, capacity=CAPACITY, precision="fp32", cache_form="shared")


def test_a_bundle_of_taps(tiny_folder: Any, random_drafter: Any, tmp_path: Path) -> None:
    target = open_target(str(tiny_folder("llama")))
    made = random_drafter(target.config, 1, fusion="taps", taps=(0, 1), **OWN)
    save_drafter(tmp_path / "drafter", made, target.sha256, made.fusion.fc.weight.dtype)
    checkpoint = load_drafter(str(tmp_path / "drafter"))
    assert checkpoint.drafter.config == made.config
    planned = plan_build(
        target, checkpoint, tree=TREE, capacity=CAPACITY, precision="fp32", cache_form="shared"
    )
    folder = tmp_path / "bundle"
    build_bundle(planned, folder)
    expected = planned.to_dict()["files"]["draft.onnx.data"]  # besides it, small tables
    assert (folder / "draft.onnx.data").stat().st_size == pytest.approx(expected, rel=0.02)
    manifest = read_manifest(folder)
    assert manifest.drafter is not None
    assert manifest.drafter.config.taps == (0, 1)
    target_outputs = {spec.name: spec.shape for spec in contracts_of(manifest)["target"].outputs}
    assert target_outputs["taps"] == ("batch", "seq", 2 * target.config.hidden_size)
    assert "features" not in target_outputs
    assert contracts_of(manifest)["draft"].inputs[0].name == "next_tokens"
    with open_bundle(folder, threads=1) as bundle:
        ours, plain = (
            bundle.generate("<5> <9> <77>", raw=True, max_new_tokens=30, target_only=only)
            for only in (False, True)
        )
    assert ours.token_ids == plain.token_ids
    places: dict[str, Any] = {"target": str(tiny_folder("llama")), "drafter": str(tmp_path / "drafter")}
    prompts = as_prompts(["<5> <9>"])
    made = verify(folder, prompts=prompts, max_new_tokens=8, draws=200, threads=1, **places)
    assert {check.name: check.detail for check in made.checks if not check.passed} == {}
    assert facts_of(str(tmp_path / "drafter")).to_dict()["config"]["taps"] == (0, 1)


def test_taps_that_the_target_lacks(tiny_folder: Any, random_drafter: Any) -> None:
    target = open_target(str(tiny_folder("llama")))
    with pytest.raises(CheckpointError, match=r"layers \[1, 2\], the target has 2 layers"):
        plan(target, random_drafter, taps=(1, 2))
    with pytest.raises(CheckpointError, match="a target of 2 layers lacks the usual taps"):
        plan(target, random_drafter)
