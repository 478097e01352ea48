"""Public drafter checkpoints from the command line: inspect, build, verify."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from poss_export.manifest import read_manifest
from poss_export.targets.checkpoint import open_target
from tests.cli.command import done, refused, run
from tests.fixtures.public_checkpoints import Layout, Sizes, eagle, poss, vllm, write

SIZES = Sizes(hidden=64, inner=80, heads=4, kv_heads=2, vocab=96)  # for the tiny targets
SMALL = ("--capacity", 48, "--tree-depth", 4, "--top-k", 3, "--tree-nodes", 8)


@pytest.fixture(scope="module")
def target(tiny_folder: Callable[[str], Path]) -> Path:
    """A target whose head is not its embedding table."""
    return tiny_folder("llama3")


@pytest.fixture(scope="module")
def tables(target: Path) -> dict[str, Tensor]:
    """What releases copy of the target, rounded as they do."""
    decoder = open_target(str(target)).load_decoder()
    tables = {"embed_tokens.weight": decoder.embed_tokens, "lm_head.weight": decoder.lm_head}
    return {name: table.detach().half().clone() for name, table in tables.items()}


def release(folder: Path, layout: Layout, **tensors: Tensor) -> Path:
    return write(folder, layout.config, {**layout.random(), **tensors})


def test_inspect_names_the_dialect_and_why(tmp_path: Path) -> None:
    folder = release(tmp_path / "mine", eagle(SIZES))
    facts = json.loads(done("inspect", folder, "--json").stdout)
    assert (facts["kind"], facts["name"], facts["dialect"]) == ("drafter", "mine", "EAGLE")
    assert facts["recognised_by"] == "fc.weight reads 2 vectors, and there is one layer"
    assert facts["config"]["fusion_bias"] is True
    assert "dialect      EAGLE: fc.weight reads 2 vectors" in done("inspect", folder).stdout


def test_inspect_takes_positions(tmp_path: Path) -> None:
    folder = release(tmp_path / "mine", poss(SIZES))
    assert "state it, as 3 for PosS-3 (--positions-per-specialist)" in refused("inspect", folder)
    facts = json.loads(done("inspect", folder, "--positions-per-specialist", 2, "--json").stdout)
    assert facts["config"]["positions_per_specialist"] == 2
    assert run("inspect", folder, "--positions-per-specialist", 0).exit_code == 2


def test_inspect_refuses_by_name(tmp_path: Path) -> None:
    layout = eagle(SIZES)
    folder = release(tmp_path / "mine", Layout({**layout.config, "dflash_config": {}}, layout.shapes))
    assert "this drafter is DFlash (config.json has dflash_config), which is not" in refused(
        "inspect", folder
    )


@pytest.mark.parametrize("kind", ["target", "bundle"])
def test_positions_are_of_drafters(kind: str, target: Path, tiny_bundle: Path) -> None:
    thing = {"target": target, "bundle": tiny_bundle}[kind]
    message = refused("inspect", thing, "--positions-per-specialist", 2)
    assert f"is a {kind}; positions per specialist are of drafters: leave the option out" in message


def test_build_refuses_positions_of_no_drafter(target: Path, tmp_path: Path) -> None:
    message = refused("build", target, "-o", tmp_path / "out", "--positions-per-specialist", 2)
    assert "positions per specialist are a drafter's; name the drafter" in message


def test_a_poss_release_becomes_a_bundle_that_verifies(target: Path, tmp_path: Path) -> None:
    """`verify` takes the positions from the bundle, which records them."""
    drafter, bundle = release(tmp_path / "mine", poss(SIZES)), tmp_path / "bundle"
    positions = ("--positions-per-specialist", 2)
    plan = done("build", target, "--drafter", drafter, "-o", bundle, *SMALL, *positions, "--dry-run").stdout
    assert ["drafter.dialect", "PosS"] in [line.split() for line in plan.splitlines()]
    assert "--positions-per-specialist" in refused("build", target, "--drafter", drafter, "-o", bundle)
    # Quantised, it would be no more PyTorch's; which is faster on tiny models is chance.
    floating = ("--draft-precision", "float")
    done("build", target, "--drafter", drafter, "-o", bundle, *SMALL, *positions, *floating)
    options = ("--target", target, "--drafter", drafter, "--num-prompts", 2, "--max-new-tokens", 6)
    result = run("verify", bundle, *options, "--draws", 60, "--json")
    made = {check["name"]: check for check in map(json.loads, result.stdout.splitlines())}
    assert made["parity: draft scores"]["passed"] is True
    assert made["greedy: speculative = target-only"]["passed"] is True


def test_tables_of_the_target_are_let_go(target: Path, tables: dict[str, Tensor], tmp_path: Path) -> None:
    drafter, bundle = release(tmp_path / "mine", vllm(SIZES), **tables), tmp_path / "bundle"
    done("build", target, "--drafter", drafter, "-o", bundle, *SMALL)
    manifest = read_manifest(bundle)
    assert manifest.drafter is not None
    assert manifest.drafter.config.draft_vocab_size == SIZES.vocab


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_tables_of_another_target_are_refused(
    name: str, target: Path, tables: dict[str, Tensor], tmp_path: Path
) -> None:
    table = tables[name].clone()
    table[[5, 90]] += torch.tensor(0.01)
    drafter = release(tmp_path / "mine", vllm(SIZES), **{**tables, name: table})
    message = refused("build", target, "--drafter", drafter, "-o", tmp_path / "bundle", *SMALL)
    assert message.startswith(
        f"{name} of drafter 'mine' differs from the target's in 2 of 96 rows (the first: 5)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_sharded_bin_files_have_one_hash(tmp_path: Path) -> None:
    layout: Any = eagle(SIZES)
    hashes = set()
    for change in (0.0, 1.0):
        tensors = layout.random()
        tensors["layers.0.mlp.up_proj.weight"] += change
        folder = write(tmp_path / f"changed-{change}", layout.config, tensors, "bin-shards")
        hashes.add(json.loads(done("inspect", folder, "--json").stdout)["sha256"])
    assert len(hashes) == 2
