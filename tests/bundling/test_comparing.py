"""Targets that are too large to be loaded are compared piece by piece, as well as others."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling import comparing, graphs, quantise
from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import Plan, plan_build
from poss_export.bundling.request import BuildRequest, QuantisationOptions, plan
from poss_export.config import CacheForm, Thresholds, TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.errors import ParityError
from poss_export.evaluation import pieces
from poss_export.manifest import read_manifest
from poss_export.runtime.sessions.load_graph import load_graph
from poss_export.targets.checkpoint import open_target
from poss_export.targets.streaming import StreamedDecoder
from poss_export.targets.weights import in_memory

CAPACITY = 48


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece has one weight."""
    monkeypatch.setattr(comparing, "LOADED", 0)
    monkeypatch.setattr(pieces, "MOST_BYTES", 1)


@pytest.fixture
def make_plan(tiny_folder: Callable[[str], Path], random_drafter: Callable[..., Any]) -> Callable[..., Plan]:
    def make(form: Any, precision: Any) -> Plan:
        target = open_target(str(tiny_folder("qwen3")))
        drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 2), None)
        shape: Any = {"capacity": CAPACITY, "precision": precision, "cache_form": form}
        return plan_build(target, drafter, tree=TreeShape(2, 2, 4), **shape)

    return make


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("shared", "fp32"),
        pytest.param("static", "fp32", marks=pytest.mark.slow),
        ("static", "fp16"),
        ("static", "bf16"),
    ],
)
def test_pieces_compute_what_the_whole_does(
    make_plan: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Any,
    precision: Any,
) -> None:
    plan = make_plan(form, precision)
    told = list[Any]()
    in_pieces = build_bundle(plan, tmp_path / "pieces", progress=lambda *facts: told.append(facts))
    assert (
        len([facts for facts in told if facts[0].startswith("comparing")]) > 2 * plan.target.config.num_layers
    )
    monkeypatch.setattr(comparing, "LOADED", 1 << 30)
    whole = build_bundle(plan, tmp_path / "whole")
    assert (in_pieces.in_pieces, whole.in_pieces) == (True, False)
    assert read_manifest(tmp_path / "pieces").in_pieces
    assert in_pieces.parity.keys() == whole.parity.keys()
    for name, value in whole.parity.items():
        assert in_pieces.parity[name] == pytest.approx(value, rel=0.5, abs=1e-6), name


def test_a_wrong_weight_is_seen_in_pieces(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the graph is not the checkpoint's."""
    plan = make_plan("shared", "fp32")
    right, name = plan.target.weights(), "layers.1.mlp.down.weight"
    wrong = {**right, name: in_memory(right[name].read() * 1.01)}
    monkeypatch.setattr(StreamedDecoder, "weights", lambda _: wrong)
    with pytest.raises(ParityError, match=r"target_\w+ of the graph differ from PyTorch's by"):
        build_bundle(plan, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_of_a_piece_is_kept(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array that ONNX Runtime returns keeps the memory of its whole session."""
    alive = list[weakref.ref[Any]]()

    class Watched:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            assert all(result() is None for result in alive)
            self.session = load_graph(*arguments, **options)

        def run(self, names: Any, feed: Any) -> Any:
            results = self.session.run(names, feed)
            alive.extend(map(weakref.ref, results))
            return results

    monkeypatch.setattr(pieces, "load_graph", Watched)
    build_bundle(replace(make_plan("shared", "fp32"), drafter=None), tmp_path / "out")
    assert alive


@pytest.mark.parametrize("form", ["shared", "static"])
def test_a_target_that_memory_does_not_hold_is_judged_beside_pieces(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: CacheForm
) -> None:
    """The text is the same, and so is what it says; answers and times would need the whole."""
    text = tmp_path / "text"
    text.write_text(" ".join(f"<{index % 90 + 3}>" for index in range(0, 900, 7)))
    loose = QuantisationOptions(held_out=text, thresholds=Thresholds(perplexity=9, agreement=0, tau=0))
    asked: Any = {"precision": "int4", "cache_form": form, "capacity": CAPACITY, "quantisation": loose}
    request = BuildRequest(str(tiny_folder("llama")), **asked)
    whole = build_bundle(plan(request), tmp_path / "whole").quality
    monkeypatch.setattr(graphs, "runs_whole", lambda _: False)
    beside = build_bundle(plan(request), tmp_path / "beside").quality
    assert whole is not None
    assert beside is not None
    assert (whole.get("in_pieces"), beside["in_pieces"], "ms" in beside) == (None, True, False)
    monkeypatch.setattr(quantise, "_FEW_WINDOWS", None)
    beside = build_bundle(plan(request), tmp_path / "all").quality
    assert beside is not None
    if form == "shared":
        assert beside["text"] == pytest.approx(whole["text"], rel=1e-4)
    assert beside["bytes"] == whole["bytes"]
