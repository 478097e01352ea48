"""Weights that are made while a graph is rewritten, and stay in files: the graph is the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from poss_export.bundling.rewriting import write_graph
from poss_export.onnx_file import open_model, read_weight, save_opened
from poss_export.quantisation import scratch, small
from poss_export.quantisation.decisions import GraphRequest, decide
from poss_export.quantisation.scratch import Keep, Scratch, in_memory
from poss_export.quantisation.statistics import Statistics, observe
from tests.fixtures.graphs import make_feed


@pytest.fixture(autouse=True)
def _tiny_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_LEAST", 200)
    monkeypatch.setattr(scratch, "_BLOCK", 300)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float16, ml_dtypes.bfloat16])
def test_arrays_are_kept_in_a_file_that_goes(dtype: Any, tmp_path: Path) -> None:
    arrays = {name: np.arange(n * 70).reshape(n, 70).astype(dtype) for name, n in (("a", 9), ("b", 40))}
    arrays["turned"] = arrays["b"].T
    with Scratch(tmp_path) as made:
        kept = {name: made.keep(array, name) for name, array in arrays.items()}
        assert len(list(tmp_path.iterdir())) == 1
        for name, array in arrays.items():
            assert not kept[name].raw_data
            found = read_weight(kept[name])
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
        assert made.keep(np.ones(3, dtype), "tiny").raw_data
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def statistics(target_graph: Callable[..., Path]) -> dict[str, Statistics]:
    path = target_graph("llama", "shared")
    return observe(path, [make_feed(onnx.load(path), 9)], threads=1)


@pytest.mark.parametrize("scheme", ["int8", "int4", "w8a8", "w8a16"])
def test_graphs_are_those_of_weights_in_memory(
    scheme: Any,
    target_graph: Callable[..., Path],
    statistics: dict[str, Statistics],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a weight is rounded some outputs at a time."""
    path, request = target_graph("llama", "shared"), GraphRequest(scheme)
    known = statistics if request.need_samples else None

    def write(model: onnx.ModelProto, folder: Path, keep: Keep) -> bytes:
        folder.mkdir()
        decisions = decide(model, request, known, keep=keep)
        write_graph(model, decisions, "qoperator", folder / "target.onnx", keep)
        return b"".join(file.read_bytes() for file in sorted(folder.glob("target.onnx*")))

    wanted = write(onnx.load(path), tmp_path / "memory", in_memory)
    monkeypatch.setattr(small, "_VALUES", 1000)
    model = open_model(path)
    with Scratch(tmp_path) as made:
        assert write(model, tmp_path / "files", made.keep) == wanted
        assert all(len(tensor.raw_data) <= 1024 for tensor in model.graph.initializer)


def test_a_graph_is_saved_again_as_it_was(target_graph: Callable[..., Path], tmp_path: Path) -> None:
    source, again = target_graph("llama", "shared"), tmp_path / "again.onnx"
    save_opened(open_model(source), again)
    pairs = zip(onnx.load(again).graph.initializer, open_model(source).graph.initializer, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(ours), read_weight(theirs))
