"""Weights that are made when they are written, and the hash of their file."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from poss_export.onnx_file import save_model


@pytest.mark.parametrize("page", [1, 4096])
def test_weights_are_written_one_by_one_and_hashed(tmp_path: Path, page: int) -> None:
    arrays: dict[str, Any] = {
        "large": np.arange(5000, dtype=np.float32),
        "small": np.arange(3, dtype=np.int64),
        "other": np.ones((30, 50), np.float16),
        "four_bits": np.arange(-8, 8, dtype=np.int8).repeat(64).astype(ir.DataType.INT4.numpy()),
    }
    model = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])))
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        made = partial(ir.tensor, array, name=name)
        value.const_value = ir.LazyTensor(made, tensor.dtype, ir.Shape(array.shape), name=name)
        model.graph.register_initializer(value)
    told = list[tuple[str, int, int, str]]()
    found = save_model(model, tmp_path / "m.onnx", least=100, page=page, progress=lambda *a: told.append(a))
    assert found == hashlib.sha256((tmp_path / "m.onnx.data").read_bytes()).hexdigest()
    assert [facts[0] for facts in told] == ["writing m.onnx.data"] * 3
    assert all(facts[1] <= facts[2] for facts in told)
    read = onnx.load(tmp_path / "m.onnx")
    for tensor in read.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])
    written = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    places = {t.name: {entry.key: entry.value for entry in t.external_data} for t in written}
    assert not places["small"]
    assert all(int(place["offset"]) % page == 0 for place in places.values() if place)
