"""Engines of tiny bundles, built without a GPU, and what is left of builds that fail."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling import engines, identity
from poss_export.bundling.build import build_bundle
from poss_export.bundling.engine_request import request_engines
from poss_export.bundling.graphs import library_versions
from poss_export.bundling.plan import Plan, plan_build
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import EngineEntry, EngineOptions, target_profiles
from poss_export.errors import InputError
from poss_export.exporters.engine_build import build_engine
from poss_export.manifest import Manifest, read_manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.fit import check_engine
from poss_export.targets.checkpoint import open_target
from tests.cli.command import done

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

CAPACITY = 48
PRECISIONS = ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.slow)]
SEVERAL = ("8.9", "12.0")


@pytest.fixture
def make_plan(tiny_folder: Any, random_drafter: Any) -> Callable[..., Plan]:
    """Return make_plan(*devices, precision="fp16", ...): `engine_bundle`'s, for other devices.

    `drafter_choices` are of `DrafterConfig`.
    """

    def make(
        *devices: str,
        precision: Any = "fp16",
        capacities: tuple[int, ...] = (),
        widths: tuple[int, ...] = (),
        slots: int = 1,
        drafter_choices: Any = None,
    ) -> Plan:
        target = open_target(str(tiny_folder("llama")))
        made = random_drafter(target.config, 3, **(drafter_choices or {}))
        if drafter_choices is not None:
            for weight in made.parameters():  # layers have no input norm: large ones add up beyond fp16
                weight.mul_(0.3)
        drafter = DrafterCheckpoint("random", "0" * 64, made, None)
        shape: Any = {"capacity": CAPACITY, "precision": precision, "cache_form": "static"}
        request = request_engines(
            "tensorrt-rtx", EngineOptions(devices), capacities, widths=widths, slots=slots
        )
        return plan_build(target, drafter, tree=TreeShape(4, 3, 8), engines=request, **shape)

    return make


def run_build(plan: Plan, folder: Path, force: bool = False, **rest: Any) -> Manifest:
    return build_bundle(plan, folder, argv=["test"], force=force, report=lambda _: None, **rest)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_has_the_engines_of_both_graphs(precision: str, engine_bundle: Callable[..., Path]) -> None:
    folder = engine_bundle(precision)
    manifest = read_manifest(folder, full=True)
    target, draft = manifest.engines
    assert [entry.spec.file for entry in manifest.engines] == [
        "target-tensorrt-rtx-sm89-sm120-48.engine",
        "draft-tensorrt-rtx-sm89-sm120-48.engine",
    ]
    assert (folder / target.spec.file).read_bytes()[:4] == b"vtrt"
    assert target.spec.version == trt.__version__
    assert target.spec.options.compute_capabilities == SEVERAL
    assert target.spec.profiles == target_profiles(CAPACITY, (2, 4, 8, 9))
    assert list(target.attention.values()) == 2 * ["decomposed" if precision == "fp32" else "fused"]
    assert draft.attention == {}  # written out in the graph
    names = [f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert target.aliases == {name: name.replace("past_key_values", "present") for name in names}
    assert len(draft.aliases) == 2 * 2  # specialists for four levels
    assert set(manifest.parity) == {"target_features", "target_logits", "draft_scores"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_estimates_are_near_what_builds_take(
    precision: str, engine_bundle: Callable[..., Path], make_plan: Callable[..., Plan]
) -> None:
    """Where there are few weights, kernels and libraries are all of it; docs/engines.md has a whole model."""
    manifest = read_manifest(engine_bundle(precision))
    estimates = make_plan(*SEVERAL, precision=precision).to_dict()["engines"]["estimates"]
    for entry in manifest.engines:
        planned, size = estimates[entry.spec.graph], manifest.files[entry.spec.file].size
        assert size / 2 < planned["engine"] < 2 * size, entry.spec.file
        assert entry.peak_memory / 2 < planned["peak_memory"] < 2 * entry.peak_memory, entry.spec.file


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param({"fusion": "gated", "alignment": "split"}, marks=pytest.mark.slow),
        {"drafting": "parallel", "num_masks": 3, "num_layers": 2, "mask_feature": "repeat_last"},
    ],
    ids=["fspad", "parallel"],
)
def test_every_kind_of_draft_round_builds(
    choices: dict[str, Any], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    manifest = run_build(make_plan("8.9", drafter_choices=choices), tmp_path / "bundle")
    _, draft = manifest.engines
    assert draft.spec.graph == "draft"
    assert len(draft.aliases) == 2 * (3 if choices.get("num_layers") else 2)
    assert manifest.files[draft.spec.file].size > 1_000_000


def test_what_is_there_is_not_built_again(
    engine_bundle: Callable[..., Path],
    make_plan: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(engine_bundle("fp16"), tmp_path / "out"))
    before = read_manifest(out)
    kept = {name: (out / name).stat().st_mtime_ns for name in before.files}
    built: list[str] = []

    def build_and_note(*arguments: Any, **options: Any) -> EngineEntry:
        built.append(arguments[3].name)
        return build_engine(*arguments, **options)

    monkeypatch.setattr(engines, "build_engine", build_and_note)
    assert run_build(make_plan(*SEVERAL), out) == before
    assert built == []
    steps: list[tuple[str, int, int, str]] = []
    more = run_build(make_plan("8.9"), out, progress=lambda *step: steps.append(step))
    assert built == ["target-tensorrt-rtx-sm89-48.engine", "draft-tensorrt-rtx-sm89-48.engine"]
    for file in built:
        ours = [step for step in steps if step[0] == f"building {file}"]
        assert len({note for *_, note in ours}) > 1
        assert [done for _, done, _, _ in ours] == sorted(done for _, done, _, _ in ours)
        assert ours[-1][1] == ours[-1][2] > 1
    assert more.engines[:2] == before.engines
    assert read_manifest(out, full=True) == more
    assert {name: (out / name).stat().st_mtime_ns for name in before.files} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in out.iterdir()} == {"manifest.json", *more.files}


def test_other_widths_replace_the_targets_engine(
    engine_bundle: Callable[..., Path], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(engine_bundle("fp16"), tmp_path / "out"))
    target, draft = read_manifest(out).engines
    manifest = run_build(make_plan(*SEVERAL, widths=(4,)), out)
    assert manifest.engines[0].spec == replace(target.spec, profiles=target_profiles(CAPACITY, (4, 9)))
    assert manifest.engines[1] == draft
    assert read_manifest(out, full=True) == manifest


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_for_calls_of_several_answers(
    precision: str, engine_bundle: Callable[..., Path], make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """Their attention is as that of one, and they share memory with their caches."""
    out = Path(shutil.copytree(engine_bundle(precision), tmp_path / "out"))
    before = read_manifest(out).engines
    manifest = run_build(make_plan(*SEVERAL, precision=precision, slots=4), out)
    for was, entry in zip(before, manifest.engines, strict=True):
        assert entry.spec.slots == 4
        assert entry.spec.profiles[: len(was.spec.profiles)] == was.spec.profiles
        assert (entry.attention, entry.aliases) == (was.attention, was.aliases)
        check_engine(out, manifest, contracts_of(manifest)[entry.spec.graph], entry)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"precision": "bf16"}, "precision"),
        ({"capacity": 64}, "capacity"),
        ({"tree": TreeShape(4, 3, 9)}, "tree"),
        ({"drafter": None}, "drafter"),
        ({"cache_form": "shared"}, "cache form"),
    ],
)
def test_another_bundle_is_not_added_to(
    other: dict[str, Any], name: str, engine_bundle: Callable[..., Path], make_plan: Callable[..., Plan]
) -> None:
    with pytest.raises(InputError, match=rf"exists, and it has another {name}"):
        run_build(replace(make_plan("8.9"), **other), engine_bundle("fp16"))


def test_graphs_of_another_pytorch_are_not_kept(
    engine_bundle: Callable[..., Path], make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = library_versions("transformers")
    monkeypatch.setattr(identity, "library_versions", lambda *_: {**versions, "torch": "9.9"})
    with pytest.raises(InputError, match="it has another version of torch"):
        run_build(make_plan("8.9"), engine_bundle("fp16"))
    # That only checked.
    monkeypatch.setattr(identity, "library_versions", lambda *_: {**versions, "onnxruntime": "9.9"})
    assert run_build(make_plan(*SEVERAL), engine_bundle("fp16")).engines


def test_engines_of_several_capacities(
    engine_bundle: Callable[..., Path], make_plan: Callable[..., Plan]
) -> None:
    folder = engine_bundle("fp32", 40)
    manifest = read_manifest(folder, full=True)
    assert [(entry.spec.graph, entry.spec.capacity) for entry in manifest.engines] == [
        (graph, capacity) for capacity in (48, 40) for graph in ("target", "draft")
    ]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files}
    assert manifest.engines[-2].spec.profiles == target_profiles(40, (2, 4, 8, 9))
    assert {entry.spec.graph_sha256 for entry in manifest.engines} == {
        manifest.graph_sha256("target"),
        manifest.graph_sha256("draft"),
    }


@pytest.mark.parametrize("smaller", [31, 48])
def test_a_smaller_capacity_is_one(smaller: int, make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(
        InputError, match=f"engine capacity is {smaller} tokens; beside a bundle of 48 it may"
    ):
        make_plan("8.9", capacities=(smaller,))


def test_a_full_disk_leaves_the_bundle_as_it_was(
    engine_bundle: Callable[..., Path],
    make_plan: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(engine_bundle("fp16"), tmp_path / "out"))
    before = read_manifest(out)

    def full(graph: Path, contract: Any, spec: Any, engine: Path, **_: Any) -> None:
        engine.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(engine))

    with monkeypatch.context() as patch:
        patch.setattr(engines, "build_engine", full)
        with pytest.raises(InputError, match=r"No space left on device: .*nothing was kept"):
            run_build(make_plan("8.9"), out)
    assert read_manifest(out, full=True) == before
    assert {path.name for path in out.iterdir()} == {"manifest.json", *before.files}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_build_leaves_nothing_and_can_be_repeated(tiny_folder: Any, tmp_path: Path) -> None:
    """The builder is one that never ends, so that it is surely interrupted."""
    program, out = tmp_path / "program", tmp_path / "work" / "out"
    program.write_text('#!/bin/sh\necho \'{"phase": "endless", "done": 0, "total": 6}\'\nexec sleep 600\n')
    program.chmod(0o755)
    options = ["--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--precision", "fp16"]
    arguments = ["build", str(tiny_folder("llama")), "-o", str(out), *options]
    code = "import sys; from poss_export.cli.main import main"
    # Whoever runs the tests in the background may have had interrupts ignored, which is inherited.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    endless = [sys.executable, "-c", f"{heed}; {code}; sys.executable = {str(program)!r}; main()", *arguments]
    process = subprocess.Popen(endless, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("building target-tensorrt-rtx-sm89-128.engine 0/6 endless"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert "Aborted!" in rest
    assert "Traceback" not in rest
    assert not list(out.parent.iterdir())
    done(*arguments)
    assert [entry.spec.file for entry in read_manifest(out, full=True).engines] == [
        "target-tensorrt-rtx-sm89-128.engine"
    ]
