"""Builds of tiny bundles: what they leave behind, whatever happens."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from poss_export.bundling import graphs
from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import Plan, plan_build
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.errors import BundleError, CheckpointError, InputError, ParityError
from poss_export.exporters.target import export_target
from poss_export.manifest import Manifest, read_manifest
from poss_export.progress import Report, silent
from poss_export.runtime.bundle import open_bundle
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import Decoder
from poss_export.targets.streaming import load_decoder

CAPACITY = 48

MakePlan = Callable[..., Plan]


@pytest.fixture(scope="module")
def make_plan(tiny_folder: Any, random_drafter: Any) -> MakePlan:
    """Return make_plan(name, drafter=True, ...): of a tiny target, with a random drafter or without."""

    def make(name: str = "llama", drafter: bool = True, **shape: Any) -> Plan:
        target = open_target(str(tiny_folder(name)))
        checkpoint = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
        shape = {"capacity": CAPACITY, "precision": "fp32", "cache_form": "shared", **shape}
        return plan_build(target, checkpoint if drafter else None, tree=TreeShape(3, 2, 5), **shape)

    return make


def run_build(plan: Plan, folder: Path, force: bool = False, report: Report = silent) -> Manifest:
    return build_bundle(plan, folder, argv=["test"], force=force, report=report)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama3", {}),  # an untied head: the drafter's rows come from two tables
        ("llama", {"cache_form": "static"}),
        ("llama", {"precision": "fp16"}),
    ],
)
def test_every_form_is_built_and_answers(
    name: str, shape: dict[str, Any], make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan(name, **shape)
    manifest = run_build(plan, tmp_path / "out")
    assert read_manifest(tmp_path / "out", full=True) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    files, planned = manifest.files, plan.to_dict()["files"]
    for data in ("target.onnx.data", "draft.onnx.data"):  # besides weights it holds rotary tables, aligned
        assert planned[data] <= files[data].size <= 2 * planned[data]
    with open_bundle(tmp_path / "out", threads=1) as bundle:
        ours = bundle.generate("<5> <9>", raw=True, max_new_tokens=20)
        plain = bundle.generate("<5> <9>", raw=True, max_new_tokens=20, target_only=True)
    if manifest.precision == "fp32":
        assert ours.token_ids == plain.token_ids


def test_force_replaces_a_bundle_and_only_a_bundle(
    make_plan: MakePlan, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    plan = make_plan(drafter=False)
    with pytest.raises(InputError, match="choose another output folder, or replace it"):
        run_build(plan, out)
    assert run_build(plan, out, force=True).drafter is None
    assert read_manifest(out).drafter is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "manifest.json").unlink()
    with pytest.raises(InputError, match="exists and is not a bundle"):
        run_build(plan, out, force=True)


@pytest.mark.parametrize("graph", ["target", "draft"])
def test_a_wrong_graph_is_no_bundle(
    graph: str, make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is told to export a model whose last weights differ by one in a hundred."""
    name = "export_target" if graph == "target" else "export_drafter"
    export = getattr(graphs, name)

    def wrong(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        if isinstance(model, Decoder):
            model = load_decoder(model.config, model.weights())
        weights = list(model.parameters()) if graph == "draft" else [model.get_parameter("norm.weight")]
        for weight in weights:
            weight.mul_(1.01)
        result = export(model, *arguments, **options)
        for weight in weights:
            weight.div_(1.01)
        return result

    monkeypatch.setattr(graphs, name, wrong)
    with pytest.raises(
        ParityError, match=rf"{graph}_\w+ of the graph differ from PyTorch's by .*, allowed is"
    ):
        run_build(make_plan(drafter=graph == "draft"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_keeps_no_weights(tiny_folder: Any, tmp_path: Path) -> None:
    """A build loads its engines while PyTorch's copy of the weights would still be there."""
    decoder = open_target(str(tiny_folder("llama"))).load_decoder()
    weight = weakref.ref(decoder.layers[0].get_parameter("qkv.weight"))
    shape: Any = {"cache_form": "shared", "precision": "fp32", "capacity": CAPACITY}
    export_target(decoder, tmp_path / "target.onnx", **shape)
    del decoder
    gc.collect()
    assert weight() is None


def test_a_full_disk_leaves_nothing(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graphs, "export_target", write)
    with pytest.raises(InputError, match=r"No space left on device; nothing was kept"):
        run_build(make_plan(drafter=False), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_killed_build_leaves_no_bundle_and_can_be_repeated(
    make_plan: MakePlan, tiny_folder: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        "-c",
        "from poss_export.cli.main import main; main()",
        "build",
        tiny_folder("llama"),
        "-o",
        out,
    ]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("exporting"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".out.partial-")
    with pytest.raises(BundleError, match="it is not a bundle, or its build did not finish"):
        read_manifest(partial)
    manifest = run_build(make_plan(drafter=False), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(manifest.parity) == {"target_features", "target_logits"}
    with open_bundle(out, threads=1) as bundle:
        assert bundle.generate("<5>", raw=True, target_only=True, max_new_tokens=3).tokens == 3


@pytest.mark.parametrize("whose", ["target", "drafter"])
def test_weights_that_overflow_are_not_called_a_wrong_export(
    whose: str, make_plan: MakePlan, tmp_path: Path
) -> None:
    """As those of a drafter that was never trained."""
    plan = make_plan()
    if whose == "target":
        decoder = plan.target.load_decoder()
        decoder.norm.weight.fill_(3e38)
        plan = replace(plan, target=replace(plan.target, weights=decoder.weights))
    else:
        assert plan.drafter is not None
        for weight in plan.drafter.drafter.parameters():
            weight.mul_(1e20)
    with pytest.raises(CheckpointError, match=rf"of {whose} '.*' are no numbers in PyTorch"):
        run_build(plan, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_deep_tree_is_announced(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise InputError("stopped")

    told: list[str] = []
    monkeypatch.setattr(graphs, "export_drafter", stop)
    plan = replace(make_plan(), tree=TreeShape(depth=30, top_k=1, nodes=8))
    assert plan.drafter is not None
    for weight in plan.drafter.drafter.parameters():  # or random features grow beyond all bounds
        weight.mul_(0.1)
    with pytest.raises(InputError, match="stopped"):
        run_build(plan, tmp_path / "out", report=told.append)
    assert told[-1] == "exporting draft.onnx: 30 levels are traced one by one, which takes minutes"
