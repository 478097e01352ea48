"""Sensitivity: what rounding one activation costs at the logits, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from poss_export.evaluation.text_quality import divergence, log_softmax
from poss_export.quantisation.sensitivity import sensitivities
from poss_export.quantisation.sites import find_sites
from tests.fixtures.graphs import call, make_feed, run


@pytest.fixture
def target(target_graph: Callable[..., Path]) -> onnx.ModelProto:
    return onnx.load(target_graph("llama", "shared"))


@pytest.fixture
def limits(target: onnx.ModelProto) -> dict[str, float]:
    names = sorted({site.input for site in find_sites(target)})
    return {name: float(np.abs(value).max()) for name, value in zip(names, call(target, names), strict=True)}


def test_each_activation_alone(target: onnx.ModelProto, limits: dict[str, float]) -> None:
    """Against a graph where that one is replaced by numbers that numpy rounded."""
    before, told = target.SerializeToString(), list[tuple[int, int]]()
    feed = make_feed(target)
    found = sensitivities(target, limits, feed, threads=1, progress=lambda *done: told.append(done[1:3]))
    assert target.SerializeToString() == before
    assert found.keys() == limits.keys()
    assert told == [(number, len(limits)) for number in range(1, len(limits) + 1)]
    exact = log_softmax(call(target, ["logits"])[0][0])
    name = next(site.input for site in find_sites(target) if "1.mlp.down" in site.weight)
    step = np.float32(limits[name] / 127)
    rounded = np.rint(call(target, [name])[0] / step) * step
    cut = onnx.ModelProto()
    cut.CopyFrom(target)
    (reader,) = (node for node in cut.graph.node if name in node.input)
    reader.input[0] = "given"
    kind = onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, rounded.shape)
    cut.graph.input.append(kind)
    (logits,) = run(cut, ["logits"], **feed, given=rounded.astype(np.float32))
    assert found[name] == pytest.approx(divergence(exact, log_softmax(logits[0])), rel=0.01)
    assert found[name] > 0


def test_small_ranges_cost_more(target: onnx.ModelProto, limits: dict[str, float]) -> None:
    feed = make_feed(target)
    name = next(site.input for site in find_sites(target) if "1.mlp.down" in site.weight)
    full = sensitivities(target, limits, feed, threads=1)
    tiny = sensitivities(target, {**limits, name: limits[name] / 50}, feed, threads=1)
    assert tiny[name] > 3 * full[name]
    assert {**tiny, name: full[name]} == full


def test_nothing_rounded_costs_nothing(target: onnx.ModelProto, limits: dict[str, float]) -> None:
    feed = make_feed(target)
    assert sensitivities(target, {}, feed, threads=1) == {}
    # An activation of whole numbers is not changed by a range whose levels they are.
    name = next(site.input for site in find_sites(target) if "0.mlp.down" in site.weight)
    (node,) = (node for node in target.graph.node if name in node.output)
    node.output[0] = "fine"
    levels = onnx.helper.make_node("Round", ["fine"], [name], "levels")
    after = list(target.graph.node).index(node) + 1
    nodes = [*target.graph.node[:after], levels, *target.graph.node[after:]]
    del target.graph.node[:]
    target.graph.node.extend(nodes)
    assert limits[name] < 127
    assert np.unique(call(target, [name])[0]).size > 3
    assert sensitivities(target, {name: 127.0}, feed, threads=1) == {name: 0.0}
