"""Requests: what follows where something is left out, and what is refused before a checkpoint is opened."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.request import BuildRequest, QuantisationOptions, plan
from poss_export.config import Thresholds
from poss_export.engine_spec import EngineOptions
from poss_export.errors import InputError


@pytest.mark.parametrize(
    ("asked", "form", "float_type"),
    [
        ({}, "shared", "fp32"),
        ({"precision": "fp16"}, "shared", "fp16"),
        ({"precision": "int4"}, "shared", "fp32"),
        ({"backend": "tensorrt-rtx"}, "static", "fp32"),
        ({"backend": "tensorrt-rtx", "precision": "w8a8"}, "static", "fp16"),
        ({"cache_form": "static", "precision": "w8a8"}, "static", "fp16"),
    ],
)
def test_form_and_float_type_follow_the_backend(asked: dict[str, Any], form: str, float_type: str) -> None:
    request = BuildRequest("target", **asked)
    assert (request.form, request.float_type) == (form, float_type)


def test_schemes_are_of_quantised_graphs_only() -> None:
    assert BuildRequest("target", precision="fp16").schemes == {}
    assert BuildRequest("target", precision="int8").schemes == {"target": "int8"}
    assert BuildRequest("target", "drafter", draft_precision="int8").schemes == {"draft": "int8"}


@pytest.mark.parametrize(
    ("asked", "contest"),
    [
        ({"drafter": "d"}, True),
        ({"drafter": "d", "precision": "int4"}, True),
        ({}, False),
        ({"drafter": "d", "draft_precision": "float"}, False),
        ({"drafter": "d", "draft_precision": "w8a8"}, False),
        ({"drafter": "d", "precision": "fp16"}, False),
        ({"drafter": "d", "cache_form": "static"}, False),
        ({"drafter": "d", "backend": "tensorrt", "precision": "w8a8"}, False),
        ({"drafter": "d", "acceptance": False}, False),
    ],
)
def test_a_drafter_for_the_cpu_may_be_quantised_unasked(asked: dict[str, Any], contest: bool) -> None:
    request = BuildRequest("target", **asked)
    assert request.contest == contest
    assert request.schemes.get("draft") == ("w8a8" if contest else request.asked_schemes.get("draft"))


@pytest.mark.parametrize(
    ("asked", "message", "options"),
    [
        ({"positions_per_specialist": 2}, "positions per specialist are a drafter's", {"drafter"}),
        ({"acceptance": False}, "acceptance is a drafter's, and there is none", {"drafter", "acceptance"}),
        (
            {"drafter": "d", "acceptance": False, "precision": "int8"},
            "acceptance can be left out where no graph is quantised",
            {"acceptance", "precision"},
        ),
        ({"draft_precision": "float"}, "a draft precision needs a drafter", {"drafter", "draft_precision"}),
        ({"precision": "fp99"}, "precision is 'fp99'; expected one of fp32, fp16", {"precision"}),
        ({"draft_precision": "int3"}, "draft precision is 'int3'; expected one of w8a8", {"draft_precision"}),
        ({"cache_form": "paged"}, "cache form is 'paged'; expected one of shared, static", {"cache_form"}),
        ({"backend": "gpu"}, "backend is 'gpu'; expected one of onnxruntime, tensorrt", {"backend"}),
        (
            {"precision": "int8", "quantisation": QuantisationOptions(observer="most")},  # type: ignore[arg-type]
            "observer is 'most'; expected one of min-max",
            {"observer"},
        ),
        (
            {"precision": "int8", "quantisation": QuantisationOptions(budget=float("nan"))},
            "budget is nan nats; it must be 0 or more",
            {"budget"},
        ),
        ({"engine_capacities": (64,)}, "options of engines need a backend that builds some", {"backend"}),
        ({"engines": EngineOptions(("8.9",))}, "options of engines need a backend", {"backend"}),
        ({"timing_cache": Path("t")}, "options of engines need a backend", {"backend"}),
        ({"quantisation": QuantisationOptions(budget=0.1)}, "budget is of quantised graphs", {"budget"}),
        (
            {"quantisation": QuantisationOptions(thresholds=Thresholds(tau=0.5))},
            "thresholds is of quantised graphs",
            {"precision"},
        ),
        (
            {"quantisation": QuantisationOptions(layers=("head=int8",))},
            "precisions of layers are of a quantised target",
            {"precision"},
        ),
        (
            {"precision": "int8", "quantisation": QuantisationOptions(draft_layers=("head=int8",))},
            "precisions of layers are of a quantised draft",
            {"draft_precision"},
        ),
        (
            {"precision": "int8", "quantisation": QuantisationOptions(layers=("head=int3",))},
            "'head=int3': expected LAYER=PRECISION",
            {"layers"},
        ),
    ],
)
def test_what_does_not_suit_is_refused_without_flags(
    asked: dict[str, Any], message: str, options: set[str]
) -> None:
    with pytest.raises(InputError) as caught:
        plan(BuildRequest("there is no such target", **asked))
    assert message in str(caught.value)
    assert "--" not in str(caught.value)
    assert options <= set(caught.value.options)


@pytest.mark.parametrize(
    ("asked", "layers", "fallback"),
    [
        ({"precision": "int4"}, (("head", "int8"),), None),
        ({"precision": "w8a8"}, (), "w8a16"),
        ({"precision": "w8a24"}, (), None),
        ({"precision": "w8a8", "cache_form": "static"}, (), None),
        ({"precision": "int4", "cache_form": "static"}, (("head", None),), None),
    ],
)
def test_heads_and_fallbacks_follow_the_form(
    asked: dict[str, Any], layers: tuple[Any, ...], fallback: str | None, tiny_folder: Any
) -> None:
    quantise = plan(BuildRequest(str(tiny_folder("llama")), **asked)).quantise
    assert quantise is not None
    wanted = quantise.graphs["target"]
    assert (wanted.layers, wanted.fallback) == (layers, fallback)


def test_layers_of_ones_own_come_last(tiny_folder: Any) -> None:
    options = QuantisationOptions(layers=("*.down.*=int8", "head=float"))
    quantise = plan(BuildRequest(str(tiny_folder("llama")), precision="int4", quantisation=options)).quantise
    assert quantise is not None
    assert quantise.graphs["target"].layers == (("head", "int8"), ("*.down.*", "int8"), ("head", None))


def test_importing_it_is_cheap() -> None:
    code = "import sys, poss_export.bundling.request; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & {"numpy", "torch", "onnx", "onnxruntime"}
