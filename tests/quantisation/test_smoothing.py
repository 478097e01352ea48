"""Scale migration: the graph computes the same, whatever the scales, and outliers cost less to round."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from poss_export.quantisation.gains import COPY, GAIN, add_gains, untie
from poss_export.quantisation.rounding import output_error
from poss_export.quantisation.sites import find_sites
from poss_export.quantisation.smoothing import Migration, choose_scales, find_migrations, move_scales, scales
from poss_export.quantisation.statistics import Statistics
from tests.fixtures.graphs import call, initializers, random, run, small_graph

K, WORDS = 16, 24  # of small graphs

# parameters: (a norm and its gain) for every norm in a layer, an up projection for every down
EXPECTED = {
    "target": {
        f"decoder.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("input_norm", "post_norm", "mlp.gate_up")
    },
    "draft": {
        f"drafting.specialists.{number}.alignment.{name}.weight"
        for number in (0, 1)
        for name in ("norm", "mlp.gate_up")
    },
}
GATED = {f"drafting.fusion.{name}.weight" for name in ("norm", "up")}


def load(name: str, target_graph: Callable[..., Path], draft_graph: Callable[..., Path]) -> onnx.ModelProto:
    known = ("llama", "qwen2", "qwen3")
    return onnx.load(target_graph(name, "shared") if name in known else draft_graph(name))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "linear", "gated", "split", "parallel"])
@pytest.mark.parametrize("untied", [False, True])
def test_every_fold_leaves_the_graph_as_it_was(
    name: str, untied: bool, target_graph: Callable[..., Path], draft_graph: Callable[..., Path]
) -> None:
    model = load(name, target_graph, draft_graph)
    outputs = ["logits"] if "llama" in name or "qwen" in name else ["tree_scores"]
    before, weights = call(model, outputs), initializers(model)
    heads = {site.weight for site in find_sites(model) if site.transposed}
    if untied:
        untie(model, heads)
        add_gains(model, {table + COPY for table in heads})
    migrations = find_migrations(model, find_sites(model))
    found = {migration.parameter for migration in migrations}
    expected = EXPECTED["target" if outputs == ["logits"] else "draft"]
    if name == "parallel":
        expected = {parameter for parameter in expected if ".specialists.0." in parameter}
    gains = {table + COPY + GAIN for table in heads} if untied else set()
    assert found == expected | gains | (GATED if name == "gated" else set())
    rng = np.random.default_rng(1)
    chosen = {}
    for migration in migrations:
        inputs = initializers(model)[migration.weights[0]].shape[0]
        chosen[migration.parameter] = np.exp(rng.uniform(-1, 1, inputs)).astype(np.float32)
    move_scales(model, migrations, chosen)
    for now, was in zip(call(model, outputs), before, strict=True):
        np.testing.assert_allclose(now, was, atol=1e-4 * np.abs(was).max())
    after = initializers(model)
    moved = {weight for migration in migrations for weight in (migration.parameter, *migration.weights)}
    for weight in after.keys() & weights.keys():
        assert np.array_equal(after[weight], weights[weight]) == (weight not in moved)


def node(operator: str, inputs: list[str], output: str | list[str], **attributes: Any) -> onnx.NodeProto:
    names = [output] if isinstance(output, str) else output
    return helper.make_node(operator, inputs, names, **attributes)


NORM = [node("RMSNormalization", ["x", "gain"], "h"), node("MatMul", ["h", "weight"], "y")]
GATED_MLP = [
    node("MatMul", ["x", "gate_up"], "both"),
    node("Split", ["both"], ["gate", "up"], axis=-1, num_outputs=2),
    node("Sigmoid", ["gate"], "open"),
    node("Mul", ["open", "up"], "h"),
    node("MatMul", ["h", "weight"], "y"),
]
UP = [
    node("MatMul", ["x", "square"], "up"),
    node("Sigmoid", ["x"], "open"),
    node("Mul", ["open", "up"], "h"),
    node("MatMul", ["h", "weight"], "y"),
]


def make(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    weights: dict[str, Any] = {
        "gain": 1 + random(K, seed=1) / 4,
        "weight": random(K, K, seed=2),
        "other": random(K, K, seed=3),
        "square": random(K, K, seed=4),
        "gate_up": random(K, 2 * K, seed=5),
        "table": random(WORDS, K, seed=6),
    }
    read = {name for one in nodes for name in one.input}
    copies = []
    for one in nodes:  # small_graph names them
        copies.append(onnx.NodeProto())
        copies[-1].CopyFrom(one)
    used = {name: array for name, array in weights.items() if name in read}
    return small_graph(copies, used, {"x": ["n", K]}, outputs)


@pytest.mark.parametrize(
    ("nodes", "migration"),
    [
        (NORM, Migration("gain", ("weight",))),
        ([*NORM, node("MatMul", ["h", "other"], "z")], Migration("gain", ("other", "weight"))),
        (GATED_MLP, Migration("gate_up", ("weight",))),
        (UP, Migration("square", ("weight",))),
        (
            [
                *NORM,
                node("Neg", ["x"], "x2"),
                node("RMSNormalization", ["x2", "gain"], "h2"),
                node("MatMul", ["h2", "weight"], "z"),
            ],
            Migration("gain", ("weight",)),
        ),
    ],
)
def test_folds_of_small_graphs(nodes: list[onnx.NodeProto], migration: Migration) -> None:
    outputs = tuple(name for name in ("y", "z") if any(name in one.output for one in nodes))
    model, x = make(nodes, outputs), random(7, K, seed=9)
    assert find_migrations(model, find_sites(model)) == [migration]
    before = run(model, outputs, x=x)
    move_scales(model, [migration], {migration.parameter: np.exp(random(K, seed=8))})
    for now, was in zip(run(model, outputs, x=x), before, strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (NORM, ("y", "h")),
        ([*NORM, node("Neg", ["h"], "z")], ("y", "z")),
        ([*NORM, node("Mul", ["x", "gain"], "z")], ("y", "z")),
        ([*NORM, node("RMSNormalization", ["y", "gain"], "z")], ("z",)),
        ([*NORM, node("MatMul", ["x", "weight"], "z")], ("y", "z")),
        ([*NORM[:1], node("Gemm", ["h", "table"], "y", transB=1)], ("y",)),
        ([*NORM, node("Gemm", ["h", "table"], "z", transB=1)], ("y", "z")),
        (UP, ("y", "up")),
        ([*UP, node("Neg", ["up"], "z")], ("y", "z")),
        ([*UP, node("Mul", ["up", "up"], "z")], ("y", "z")),
        ([*UP, node("MatMul", ["open", "square"], "z")], ("y", "z")),
        (GATED_MLP, ("y", "both")),
        (GATED_MLP, ("y", "up")),
        ([*GATED_MLP, node("Neg", ["both"], "z")], ("y", "z")),
        ([*GATED_MLP, node("Neg", ["up"], "z")], ("y", "z")),
        ([*GATED_MLP[:3], node("Mul", ["up", "up"], "h"), GATED_MLP[4]], ("y",)),
        ([*GATED_MLP[:2], node("Sigmoid", ["up"], "open"), *GATED_MLP[3:]], ("y",)),
        (
            [
                *GATED_MLP[:2],
                node("Sigmoid", ["up"], "open"),
                node("Mul", ["open", "gate"], "h"),
                GATED_MLP[4],
            ],
            ("y",),
        ),
    ],
)
def test_no_fold_where_something_else_reads(nodes: list[onnx.NodeProto], outputs: tuple[str, ...]) -> None:
    model = make(nodes, outputs)
    run(model, outputs, x=random(2, K, seed=9))  # it is a graph
    assert find_migrations(model, find_sites(model)) == []


def test_scales_are_smoothquant_s() -> None:
    largest = np.array([8.0, 2, 0, 1], np.float32)
    weights = [np.diag([1.0, 1, 1, 4]).astype(np.float32), np.full((4, 2), 0.5, np.float32)]
    found = scales(largest, weights, 0.5)
    expected = np.sqrt(np.array([8, 2, 8e-5, 1]) / [1, 1, 1, 4])
    np.testing.assert_allclose(found, expected / np.prod(expected) ** 0.25, rtol=1e-5)
    only_x = scales(largest, weights, 1.0)
    np.testing.assert_allclose(only_x[0] / only_x[1], 4, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["w8a8", "int4"])
def test_outliers_are_moved_where_that_helps(scheme: Any) -> None:
    model = make(NORM)
    (migration,) = find_migrations(model, find_sites(model))
    rows = random(64, K, seed=7)
    rows[:, 3] *= 100
    statistics = {"weight": Statistics(np.abs(rows).max(axis=0), rows, rows[:4])}
    error = partial(output_error, scheme)
    weight = initializers(model)["weight"]
    chosen = choose_scales(model, [migration], statistics, {"weight": error})
    s = chosen["gain"]
    assert s[3] == s.max() > 3
    assert error(weight * s[:, None], statistics["weight"] / s) < 0.5 * error(weight, statistics["weight"])
    assert choose_scales(model, [migration], statistics, {}) == {}  # nothing of it is quantised
    worse = choose_scales(model, [migration], statistics, {"weight": lambda w, _: float((w != weight).any())})
    assert worse == {}


def test_half_precision_stays(target_graph: Callable[..., Path]) -> None:
    model = onnx.load(target_graph("llama", "static", "fp16"))
    (migration, *_) = find_migrations(model, find_sites(model))
    inputs = initializers(model)[migration.weights[0]].shape[0]
    move_scales(model, [migration], {migration.parameter: np.full(inputs, 2, np.float32)})
    after = initializers(model)
    assert {after[name].dtype for name in (migration.parameter, *migration.weights)} == {np.dtype(np.float16)}
