"""Graphs in bfloat16: run as they are by onnx.reference, and widened by ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from poss_export.errors import InputError
from poss_export.evaluation.differences import TOLERANCE, difference
from poss_export.exporters.embedding import find_embedding
from poss_export.exporters.target import check_target
from poss_export.exporters.widening import widen
from poss_export.runtime.tree import DraftTree
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend

CAPACITY = 48
PROMPT, TREE = [5, 17, 80, 3], DraftTree.with_root(7, (11, 22, 33, 44), (0, 0, 1, 2), np.zeros(4))


def feed(ids: list[int], past: int, depths: Any, mask: Any, caches: dict[str, Any]) -> dict[str, Any]:
    rows = np.arange(len(ids))[None]
    return {
        "input_ids": np.array([ids]),
        "position_ids": past + np.array([depths]),
        "tree_mask": np.array([mask]),
        "past_length": np.array([past]),
        "logits_rows": rows,
        **caches,
    }


@pytest.fixture
def graph(target_graph: Callable[..., Path]) -> Path:
    return target_graph("qwen3", "static", "bf16")


def test_every_node_runs_in_bfloat16_and_computes_what_pytorch_does(graph: Path, tiny_folder: Any) -> None:
    model = onnx.load(graph)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert types == {onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT64}
    run = ReferenceEvaluator(model)
    names = [output.name for output in model.graph.output]
    past = {info.name: info for info in model.graph.input if info.name.startswith("past_key_values")}
    shapes = [[dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim] for info in past.values()]
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    caches = {name: np.zeros(shape, bfloat16) for name, shape in zip(past, shapes, strict=True)}
    count = len(PROMPT)
    prompt = feed(PROMPT, 0, range(count), np.tri(count, dtype=bool), caches)
    outputs = dict(zip(names, run.run(None, prompt), strict=True))
    caches = {name: outputs[name.replace("past_key_values", "present")] for name in caches}
    tree = feed(TREE.tokens.tolist(), count, TREE.depths.tolist(), TREE.mask, caches)
    logits = dict(zip(names, run.run(None, tree), strict=True))["logits"]
    assert logits.dtype == bfloat16
    decoder = open_target(str(tiny_folder("qwen3"))).load_decoder()
    for node in range(len(TREE)):
        ids = torch.tensor([PROMPT + TREE.tokens[TREE.mask[node]].tolist()])
        attend = causal_attend(decoder.config, ids.shape[1], torch.float32)
        with torch.no_grad():
            expected = decoder.head(decoder.hidden(ids, attend))[0, -1].numpy()
        assert difference(logits[0, node], expected) < TOLERANCE["bf16"], node


def test_widening_keeps_every_weight(graph: Path, tmp_path: Path) -> None:
    widen(graph, tmp_path / "wide.onnx")
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (graph, tmp_path / "wide.onnx")
    )
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values.astype(after[name].dtype), err_msg=name)
    session = onnxruntime.InferenceSession(tmp_path / "wide.onnx", providers=["CPUExecutionProvider"])
    assert {spec.type for spec in session.get_inputs()} == {
        "tensor(int64)",
        "tensor(bool)",
        "tensor(float)",
    }


def test_the_embedding_table_is_mapped_as_bits(graph: Path, tiny_folder: Any) -> None:
    table = find_embedding(graph)
    assert table.dtype == "bfloat16"
    bits = table.open(graph.parent)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    embeddings = open_target(str(tiny_folder("qwen3"))).load_decoder().embed_tokens
    np.testing.assert_array_equal(values, embeddings.detach().bfloat16().float().numpy())


def test_bfloat16_is_for_tensorrt(tiny_folder: Any) -> None:
    config = open_target(str(tiny_folder("llama"))).config
    with pytest.raises(InputError, match="precision bf16 is for TensorRT: use it with backend"):
        check_target(config, "shared", CAPACITY, "bf16")
