"""What is reported of widths, against graphs whose dependence on width and neighbours is known."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.evaluation.widths import STEPS, WIDTHS, measure_widths
from poss_export.manifest import read_manifest
from poss_export.onnx_file import save_opened
from poss_export.quantisation.insertion import quantise
from poss_export.quantisation.sites import find_sites
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sessions.ort import OrtOptions

IDS: NDArray[np.int64] = np.random.default_rng(1).integers(3, 96, 48)
PREFIX = 48 - max(WIDTHS) - STEPS  # the longest that the tiny bundle's capacity leaves room for

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def measured(tiny_bundle: Path, tmp_path: Path) -> Callable[[Change], dict[str, Any]]:
    """Return measured(change): the report on the tiny bundle with a target that was changed."""

    def measure(change: Change) -> dict[str, Any]:
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
        model = onnx.load(folder / "target.onnx")
        change(model)
        save_opened(model, folder / "target.onnx")
        return measure_widths(Bundle(folder, read_manifest(tiny_bundle), OrtOptions(threads=1)), [IDS])

    return measure


def scale_logits(model: onnx.ModelProto, nodes: list[onnx.NodeProto], **numbers: Any) -> None:
    """Multiply logits by "factor", which `nodes` compute from the graph's inputs."""
    graph = model.graph
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = "raw" if name == "logits" else name
    constants = {"one": np.float32(1), "second": np.array(1), **numbers}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    graph.node.extend([*nodes, helper.make_node("Mul", ["raw", "factor"], ["logits"])])


ROWS = [
    helper.make_node("Shape", ["input_ids"], ["shape"]),
    helper.make_node("Gather", ["shape", "second"], ["whole_rows"]),
    helper.make_node("Cast", ["whole_rows"], ["rows"], to=TensorProto.FLOAT),
]


def by_rows(model: onnx.ModelProto) -> None:
    """Logits grow by a hundredth for every token of the call."""
    nodes = [
        *ROWS,
        helper.make_node("Mul", ["rows", "hundredth"], ["part"]),
        helper.make_node("Add", ["one", "part"], ["factor"]),
    ]
    scale_logits(model, nodes, hundredth=np.float32(0.01))


def by_neighbours(model: onnx.ModelProto) -> None:
    """Logits grow with the largest id in the call, as if one scale served all rows."""
    nodes = [
        helper.make_node("ReduceMax", ["input_ids"], ["whole"], keepdims=0),
        helper.make_node("Cast", ["whole"], ["factor"], to=TensorProto.FLOAT),
    ]
    scale_logits(model, nodes)


def in_integers(model: onnx.ModelProto) -> None:
    """Every weight meets whole numbers, whose sums are exact: no row depends on others."""
    sites = find_sites(model)
    quantise(model, {site.weight: "w8a8" for site in sites}, {site.input: 8.0 for site in sites}, "qoperator")


def unless_wide(model: onnx.ModelProto) -> None:
    """As `in_integers`, but calls of fewer than 6 tokens have other logits."""
    in_integers(model)
    nodes = [
        *ROWS,
        helper.make_node("Less", ["rows", "six"], ["narrow"]),
        helper.make_node("Cast", ["narrow"], ["part"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["one", "part"], ["factor"]),
    ]
    scale_logits(model, nodes, six=np.float32(6))


def test_differences_are_those_of_the_graph(
    measured: Any, target_graph: Callable[..., Path], cached_target: Any
) -> None:
    report = measured(by_rows)
    plain = cached_target(target_graph("llama", "shared"))
    plain(IDS[:PREFIX].tolist())
    logits = [plain([int(token)])["logits"] for token in IDS[PREFIX : PREFIX + STEPS]]
    largest = float(np.abs(logits).max())
    assert report["differences"].keys() == {str(width) for width in WIDTHS}
    for width in WIDTHS:
        expected = 0.01 * (32 - width) * largest
        assert report["differences"][str(width)] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert report["chain"] == pytest.approx(0.01 * (32 - STEPS) * largest, rel=1e-3)
    assert report["siblings"] == pytest.approx(0.01 * (32 - 1 - 2 * (STEPS - 1)) * largest, rel=1e-3)
    assert report["neighbours"] < 1e-3
    assert report["differences"]["32"] == 0
    assert report["least_width"] is None  # the chain is no wider than its tokens


def test_rows_that_depend_on_each_other_are_found_out(measured: Any) -> None:
    report = measured(by_neighbours)
    assert report["neighbours"] > 0
    assert report["chain"] > 0
    assert report["least_width"] is None


def test_integers_do_not_depend_on_the_width(measured: Any) -> None:
    report = measured(in_integers)
    assert report["neighbours"] == report["chain"] == report["siblings"] == 0
    assert report["least_width"] == 2  # a single row is not trusted


def test_the_least_width_is_the_first_that_agrees(measured: Any) -> None:
    report = measured(unless_wide)
    assert {width for width in WIDTHS if report["differences"][str(width)] > 0.1} == {1, 2, 3, 4}
    assert report["least_width"] == 6
    assert report["neighbours"] == report["chain"] == 0


def test_too_small_a_capacity_claims_nothing(tiny_bundle: Path) -> None:
    manifest = replace(read_manifest(tiny_bundle), capacity=max(WIDTHS) + STEPS)
    report = measure_widths(Bundle(tiny_bundle, manifest, OrtOptions(threads=1)), [IDS])
    assert report == {"differences": {}, "least_width": None}
