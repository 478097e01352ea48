"""What an export takes, told before it begins, and refused where it is not there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poss_export.bundling import estimate
from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import Plan, plan_build
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.config import Precision, TargetConfig, TreeShape
from poss_export.errors import InputError
from poss_export.evaluation.laws import run_together
from poss_export.quantisation.decisions import GraphRequest
from poss_export.targets.checkpoint import open_target

GB = 1e9
LLAMA3_8B = TargetConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 1e-5, 8192)
LLAMA3_1B = TargetConfig("llama", 128256, 2048, 8192, 16, 32, 8, 64, 1e-5, 131072, tied_embeddings=True)


@pytest.fixture
def make_plan(tiny_folder: Callable[[str], Path]) -> Callable[..., Plan]:
    def make(precision: Precision = "fp32", config: TargetConfig | None = None) -> Plan:
        target = open_target(str(tiny_folder("llama")))
        shape: Any = {"capacity": 48, "precision": precision, "cache_form": "shared"}
        plan = plan_build(target, None, tree=TreeShape(2, 2, 4), **shape)
        return plan if config is None else replace(plan, target=replace(target, config=config))

    return make


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("config", [LLAMA3_1B, LLAMA3_8B])
def test_memory_does_not_grow_with_the_target(
    make_plan: Callable[..., Plan], precision: Precision, config: TargetConfig
) -> None:
    """At most 3 GB, and 1.1 times the largest weight of the graph."""
    largest = config.vocab_size * config.hidden_size * (4 if precision == "fp32" else 2)
    assert estimate._peak_memory(make_plan(precision, config)) <= 3 * GB + 1.1 * largest


def test_what_is_learned_takes_whole_graphs(make_plan: Callable[..., Plan]) -> None:
    """A quantised target is judged beside the one in floating point."""
    plan = replace(make_plan("fp32", LLAMA3_1B), quantise=QuantiseRequest({"target": GraphRequest("int8")}))
    parameters = plan.target.parameters
    more = estimate._learning(plan) - estimate._PROCESS
    assert 5 * parameters < more < 9 * parameters
    assert estimate._peak_memory(plan) >= estimate._learning(plan)
    assert estimate.disk_bytes(plan) > sum(plan.to_dict()["files"].values()) + 4 * parameters


def test_what_memory_does_not_hold_is_judged_in_pieces(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("fp32", LLAMA3_8B)
    weights_only = replace(plan, quantise=QuantiseRequest({"target": GraphRequest("int4")}))
    from_samples = replace(plan, quantise=QuantiseRequest({"target": GraphRequest("w8a8")}))
    monkeypatch.setattr(estimate, "memory", lambda: (24 * GB, 20 * GB))
    assert [estimate.runs_whole(one) for one in (plan, weights_only, from_samples)] == [True, False, True]
    assert estimate._peak_memory(weights_only) < 16 * GB < 32 * GB < estimate._peak_memory(from_samples)
    monkeypatch.setattr(estimate, "memory", lambda: (64 * GB, 60 * GB))
    assert estimate.runs_whole(weights_only)


def test_the_disk_holds_what_was_estimated(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its peak: while answers beside others are measured, behind whose weights nothing is written."""
    plan, peaks = make_plan(), list[int]()
    run = run_together

    def noting(*arguments: Any) -> Any:
        sizes = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
        peaks.append(sum(size for path, size in sizes.items() if path.suffix != ".onnx"))
        return run(*arguments)

    monkeypatch.setattr("poss_export.evaluation.beside.run_together", noting)
    build_bundle(plan, tmp_path / "out")
    assert estimate.estimate_export(plan).disk == pytest.approx(max(peaks), rel=0.25)


def test_a_build_that_cannot_fit_does_not_begin(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    free: dict[str, Any] = {"memory": (10**12, 10**12), "disk": 10**12}
    monkeypatch.setattr(estimate, "memory", lambda: free["memory"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free["disk"]))
    plan = make_plan("fp16", LLAMA3_8B)
    free["disk"] = 10 * 10**9
    with pytest.raises(InputError, match=r"the build writes 16\.1 GB, but '.*' has 10\.0 GB free: make room"):
        build_bundle(plan, tmp_path / "new/out", report=told.append)
    free["disk"], free["memory"] = 10**12, (2 * 10**9, 10**9)
    with pytest.raises(InputError, match=r"takes 3\.9 GB of memory, and this machine has 2\.0 GB"):
        build_bundle(plan, tmp_path / "new/out", report=told.append)
    assert not told
    assert not list(tmp_path.iterdir())
    free["memory"] = (10**10, 10**9)
    estimate.check_room(plan, tmp_path / "out", told.append)
    assert [line.partition(",")[0] for line in told] == ["warning: the build takes 3.9 GB of memory"]
