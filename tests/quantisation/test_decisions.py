"""What happens to each weight: overrides, fallbacks, and names that hold for every export of a model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from poss_export.config import Scheme
from poss_export.errors import InputError
from poss_export.quantisation.decisions import Decisions, GraphRequest, decide
from poss_export.quantisation.gains import COPY, untie
from poss_export.quantisation.observers import HEADROOM
from poss_export.quantisation.sites import find_sites
from poss_export.quantisation.smoothing import find_migrations
from poss_export.quantisation.statistics import Statistics, observe
from tests.fixtures.graphs import call, initializers, make_feed, run

LAYERS = {
    f"decoder.layers.{layer}.{name}.weight"
    for layer in (0, 1)
    for name in ("qkv", "output", "mlp.gate_up", "mlp.down")
}
DOWN, QKV = "decoder.layers.1.mlp.down.weight", "decoder.layers.0.qkv.weight"


@pytest.fixture
def target(target_graph: Callable[..., Path]) -> onnx.ModelProto:
    return onnx.load(target_graph("llama", "shared"))


@pytest.fixture(scope="module")
def statistics(target_graph: Callable[..., Path]) -> dict[str, Statistics]:
    path = target_graph("llama", "shared")
    return observe(path, [make_feed(onnx.load(path), 9)], threads=1)


def table(model: onnx.ModelProto) -> str:
    return next(site.weight for site in find_sites(model) if site.role == "head")


def costing(costs: Mapping[str, float], seen: list[Mapping[str, float]] | None = None) -> Any:
    """Return a sweep that finds these costs, by weight, and 0 for all others."""

    def sweep(model: onnx.ModelProto, limits: Mapping[str, float]) -> dict[str, float]:
        if seen is not None:
            seen.append(limits)
        by_input = {site.input: costs.get(site.weight.removesuffix(COPY), 0.0) for site in find_sites(model)}
        return {name: by_input[name] for name in limits}

    return sweep


def schemes(model: onnx.ModelProto, *layers: Any, scheme: Any = "w8a8", **others: Any) -> dict[str, Any]:
    return dict(decide(model, GraphRequest(scheme, tuple(layers), **others), None).schemes)


def test_everything_gets_the_scheme(target: onnx.ModelProto) -> None:
    head = table(target) + COPY
    assert schemes(target) == dict.fromkeys({*LAYERS, head}, "w8a8")
    assert head in initializers(target)  # the model has a head of its own now


def test_the_last_override_that_fits_counts(target: onnx.ModelProto) -> None:
    found = schemes(
        target,
        ("*.mlp.*", "int4"),
        ("decoder.layers.1.*", None),
        (DOWN, "fp8"),
        ("head", None),
        scheme="int8",
    )
    assert found == {
        **{name: "int8" for name in LAYERS if ".0." in name},
        **{name: "int4" for name in LAYERS if ".0.mlp." in name},
        DOWN: "fp8",
    }
    assert table(target) + COPY not in initializers(target)  # it stays as it is


def test_roles_of_a_drafter(draft_graph: Callable[..., Path]) -> None:
    model = onnx.load(draft_graph("gated"))
    found = schemes(model, ("head", "int4"), ("fusion", "int8"))
    assert {name for name, scheme in found.items() if scheme == "int4"} == {"drafting.embed_rows/head"}
    fusion = {f"drafting.fusion.{name}.weight" for name in ("fc", "gate", "up", "down")}
    assert {name for name, scheme in found.items() if scheme == "int8"} == fusion
    assert {scheme for name, scheme in found.items() if "specialists" in name} == {"w8a8"}


@pytest.mark.parametrize("pattern", ["heads", "fusion", "layers.0.qkv", "decoder.layers.7.*", ""])
def test_unknown_layers_are_refused(pattern: str, target: onnx.ModelProto) -> None:
    before = target.SerializeToString(deterministic=True)
    with pytest.raises(InputError, match=f"no layer fits '.*{pattern[-4:-1]}.*': use head, fusion, or"):
        schemes(target, ("head", "int8"), (pattern, "int8"))
    assert target.SerializeToString(deterministic=True) == before


def test_ranges_and_scales_are_of_the_sites(
    target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    outputs = ["logits", "features"]
    before = call(target, outputs)
    made = decide(target, GraphRequest("w8a8", (("*.output.*", "int8"),)), statistics)
    rounded = {site.name for site in find_sites(target) if ".output." not in site.weight}
    assert made.limits.keys() == rounded
    assert made.scales
    for now, was in zip(call(target, outputs), before, strict=True):  # scales were moved on both sides
        np.testing.assert_allclose(now, was, atol=1e-4 * np.abs(was).max())
    inputs = {site.name: site.input for site in find_sites(target)}
    reach = call_maxima(target, [inputs[name] for name in made.limits])
    for name, limit in made.limits.items():
        assert limit == pytest.approx(HEADROOM * reach[inputs[name]], rel=1e-3)


def call_maxima(model: onnx.ModelProto, names: list[str]) -> dict[str, float]:
    """What the call that was observed brings to tensors of the changed graph."""
    values = run(model, names, **make_feed(model, 9))
    return {name: float(np.abs(value).max()) for name, value in zip(names, values, strict=True)}


def test_no_smoothing_moves_nothing(target: onnx.ModelProto, statistics: dict[str, Statistics]) -> None:
    before = initializers(target)
    made = decide(target, GraphRequest("w8a8", smoothing=False), statistics)
    assert made.scales == {}
    after = initializers(target)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    assert made.limits[f"{DOWN}#0"] == HEADROOM * statistics[f"{DOWN}#0"].channel_max.max()


def test_weights_only_need_no_samples(target: onnx.ModelProto, statistics: dict[str, Statistics]) -> None:
    request = GraphRequest("int8")
    assert request.need_samples == set()
    assert decide(target, request, None).limits == {}
    assert GraphRequest("int4", (("head", "w8a8"),)).need_samples == {"w8a8"}
    assert GraphRequest("w8a8", fallback="fp8").need_samples == {"w8a8", "fp8"}


def test_wide_ranges_get_digits_and_need_no_sweep(
    target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    channel_max = statistics[f"{DOWN}#0"].channel_max.copy()
    channel_max[0] = 1000 * statistics[f"{DOWN}#0"].spread
    wide = {**statistics, f"{DOWN}#0": replace(statistics[f"{DOWN}#0"], channel_max=channel_max)}
    seen: list[Mapping[str, float]] = []
    made = decide(target, GraphRequest("w8a16"), wide, costing({}, seen))
    assert made.schemes[DOWN] == "w8a24"
    assert {*made.schemes.values()} == {"w8a16", "w8a24"}
    assert seen == []
    assert (made.scales, made.sensitivity, made.fallbacks) == ({}, {}, ())
    assert made.small.keys() == made.schemes.keys()
    assert "small" not in made.to_dict()


def test_a_fallback_to_digits_keeps_its_range(
    target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    """Nor do scales move for it: its weights are rounded as they are."""
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(target)
    before = initializers(target)[DOWN]
    assert decide(smoothed, GraphRequest("w8a8"), statistics).scales
    request = GraphRequest("w8a8", budget=0.1, fallback="w8a16")
    made = decide(target, request, statistics, costing({DOWN: 0.3}))
    assert made.fallbacks == (DOWN,)
    assert made.schemes[DOWN] in ("w8a16", "w8a24")
    assert made.limits[f"{DOWN}#0"] == pytest.approx(HEADROOM * statistics[f"{DOWN}#0"].channel_max.max())
    np.testing.assert_allclose(initializers(target)[DOWN], before, rtol=1e-6)
    assert abs(initializers(smoothed)[DOWN] - before).max() > 1e-3
    assert made.small.keys() == {DOWN}


@pytest.mark.parametrize("fallback", ["int8", None])
def test_sensitive_layers_get_a_fallback(
    fallback: Any, target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    seen: list[Mapping[str, float]] = []
    head = table(target) + COPY
    sweep = costing({DOWN: 0.3, QKV: 0.01, table(target): 0.2}, seen)
    request = GraphRequest("w8a8", budget=0.1, fallback=fallback)
    made = decide(target, request, statistics, sweep)
    assert made.fallbacks == tuple(sorted((DOWN, head)))
    assert made.schemes.get(DOWN) == made.schemes.get(head) == fallback
    assert made.schemes[QKV] == "w8a8"
    assert made.sensitivity == {**dict.fromkeys(LAYERS, 0.0), DOWN: 0.3, QKV: 0.01, head: 0.2}
    (swept,) = seen
    assert swept.keys() == {site.input for site in find_sites(target)}
    kept = {site.name for site in find_sites(target) if site.weight not in made.fallbacks}
    assert made.limits.keys() == kept
    for site in find_sites(target):
        assert swept[site.input] == made.limits.get(site.name, swept[site.input])


@pytest.mark.parametrize("pattern", [DOWN, "*.down.*", "head", "{table}", "{table}*"])
def test_what_the_user_chose_gets_no_fallback(
    pattern: str, target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    name = table(target)
    layer: tuple[str, Scheme] = (pattern.format(table=name), "w8a8")
    request = GraphRequest("w8a8", (layer,), budget=0.1, fallback="int8")
    made = decide(target, request, statistics, costing({DOWN: 0.3, name: 0.3}))
    chosen, other = (DOWN, name + COPY) if "down" in pattern else (name + COPY, DOWN)
    assert made.schemes[chosen] == "w8a8"
    assert made.fallbacks == (other,)


def test_an_activation_that_is_not_rounded_has_no_fallback(
    target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    """Two weights read one activation, and only one of them rounds it."""
    (node,) = (one for one in target.graph.node if DOWN in one.input)
    (up,) = (tensor for tensor in target.graph.initializer if tensor.name == DOWN)
    twin, weight = onnx.NodeProto(), onnx.TensorProto()
    twin.CopyFrom(node)
    twin.name, twin.output[0], twin.input[1] = "twin", "twin", "twin.weight"
    weight.CopyFrom(up)
    weight.name = "twin.weight"
    target.graph.node.append(twin)
    target.graph.initializer.append(weight)
    both = {**statistics, "twin.weight#0": statistics[f"{DOWN}#0"]}
    request = GraphRequest("int8", ((DOWN, "w8a8"),), fallback=None)
    made = decide(target, request, both, costing({DOWN: 0.3, "twin.weight": 0.3}))
    assert (made.schemes[DOWN], made.schemes["twin.weight"]) == ("w8a8", "int8")
    assert made.fallbacks == ()


@pytest.mark.parametrize("which", ["llama", "gated"])
def test_exports_of_one_model_have_the_same_names(
    which: str, target_graph: Callable[..., Path], draft_graph: Callable[..., Path]
) -> None:
    export = target_graph if which == "llama" else draft_graph
    found = []
    for form in (("shared", "fp32"), ("static", "fp16")):
        model = onnx.load(export(which, *form))
        untie(model, {site.weight for site in find_sites(model) if site.transposed})
        sites = find_sites(model)
        migrations = {migration.parameter: migration.weights for migration in find_migrations(model, sites)}
        found.append(([(site.name, site.weight, site.role) for site in sites], migrations))
    assert sorted(found[0][0]) == sorted(found[1][0])
    assert found[0][1] == found[1][1]


def test_a_report_is_plain_values() -> None:
    made = Decisions({"a": "w8a8"}, {"a#0": 2.0}, {"b": np.ones(3, np.float32)}, {"a": 0.1}, ("c",))
    assert made.to_dict() == {
        "schemes": {"a": "w8a8"},
        "limits": {"a#0": 2.0},
        "scales": ["b"],
        "sensitivity": {"a": 0.1},
        "fallbacks": ("c",),
    }


def test_an_activation_that_is_always_zero_has_a_range(
    target: onnx.ModelProto, statistics: dict[str, Statistics]
) -> None:
    found = statistics[f"{DOWN}#0"]
    silent = {**statistics, f"{DOWN}#0": found / np.full_like(found.channel_max, np.inf)}
    made = decide(target, GraphRequest("w8a8", observer="mse", smoothing=False), silent)
    assert made.limits[f"{DOWN}#0"] > 0
