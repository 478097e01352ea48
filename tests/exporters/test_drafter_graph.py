"""The exported draft graph in ONNX Runtime against the papers' definition."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from poss_export.config import TreeShape
from poss_export.contract import TensorSpec, draft_contract
from poss_export.drafters.make_round import make_round
from poss_export.errors import BundleError, InputError
from poss_export.exporters.drafter import export_drafter
from tests.fixtures.draft_rounds import CAPACITY, ONE_BATCH, TWO_BATCHES, check_rounds
from tests.fixtures.random_drafter import DRAFT_VOCAB, HIDDEN, VOCAB, random_drafter, random_rows

TREE = TreeShape(depth=5, top_k=3, nodes=12)
SHALLOW = TreeShape(depth=3, top_k=3, nodes=9)
EMBED, HEAD = random_rows(1), random_rows(2)
FAMILIES: dict[str, dict[str, Any]] = {
    "poss": {},
    "fspad": {"fusion": "gated", "fusion_bias": True, "alignment": "split"},
    "griffin": {"fusion": "guided", "fusion_bias": True, "alignment": "split", "qkv_bias": True},
    "parallel": {"drafting": "parallel", "num_masks": 4},
    "deep": {"drafting": "parallel", "num_masks": 6, "num_layers": 2, "mask_feature": "repeat_last"},
}

Export = Callable[..., Path]
SLOW = pytest.mark.slow


@pytest.fixture(scope="session")
def draft_graph(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return export(specialists, positions, form, tree, precision="fp32", tied=False, family="poss")."""

    @cache
    def export(
        specialists: int,
        positions: int | None,
        form: Any,
        tree: TreeShape,
        precision: Any = "fp32",
        *,
        tied: bool = False,
        family: str = "poss",
    ) -> Path:
        path = tmp_path_factory.mktemp("draft") / "draft.onnx"
        head = EMBED if tied else HEAD
        drafter = random_drafter(specialists, positions, **FAMILIES[family])
        draft_round = make_round(drafter, tree, EMBED, head)
        export_drafter(draft_round, path, cache_form=form, precision=precision, capacity=CAPACITY)
        return path

    return export


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # without bindings the caches are copied, which it warns of
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(path: Path) -> Any:
    session = open_graph(path)
    names = [spec.name for spec in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


# Five levels: with 3 specialists of 1 position the last one drafts more than its share. The module is
# tested with every layout (tests/drafters); exports take seconds.
@pytest.mark.parametrize(
    ("specialists", "positions"),
    [(1, None), (2, 3), pytest.param(3, 1, marks=SLOW), pytest.param(3, 2, marks=SLOW)],
)
def test_shared_graph(draft_graph: Export, specialists: int, positions: int | None) -> None:
    run = runner(draft_graph(specialists, positions, "shared", TREE))
    check_rounds(run, random_drafter(specialists, positions), TREE, EMBED, HEAD, ONE_BATCH)


def test_more_rows_are_drafted_than_the_caches_hold(draft_graph: Export) -> None:
    """The last level's specialist reads those of all before: 72 rows, rotated at once."""
    tree = TreeShape(depth=4, top_k=DRAFT_VOCAB, nodes=12)
    run = runner(draft_graph(2, 3, "shared", tree))
    check_rounds(run, random_drafter(2, 3), tree, EMBED, HEAD, ONE_BATCH[:3])


def test_static_graph_of_two_sequences(draft_graph: Export) -> None:
    run = runner(draft_graph(3, 2, "static", TREE))
    check_rounds(run, random_drafter(3, 2), TREE, EMBED, HEAD, TWO_BATCHES)


@pytest.mark.parametrize(
    ("family", "specialists", "form", "plan"),
    [
        ("fspad", 1, "shared", ONE_BATCH),
        pytest.param("fspad", 3, "static", TWO_BATCHES, marks=SLOW),
        ("griffin", 1, "static", TWO_BATCHES),
        ("parallel", 1, "shared", ONE_BATCH),
        pytest.param("parallel", 3, "static", TWO_BATCHES, marks=SLOW),
        pytest.param("deep", 1, "shared", ONE_BATCH, marks=SLOW),
        ("deep", 3, "static", TWO_BATCHES),
    ],
)
def test_every_family(draft_graph: Export, family: str, specialists: int, form: Any, plan: Any) -> None:
    positions = None if specialists == 1 else 2
    run = runner(draft_graph(specialists, positions, form, TREE, family=family))
    drafter = random_drafter(specialists, positions, **FAMILIES[family])
    check_rounds(run, drafter, TREE, EMBED, HEAD, plan)


@pytest.mark.parametrize("family", ["poss", "deep"])
def test_half_precision(draft_graph: Export, family: str) -> None:
    run = runner(draft_graph(3, 2, "shared", SHALLOW, "fp16", family=family))
    drafter = random_drafter(3, 2, **FAMILIES[family])
    check_rounds(run, drafter, SHALLOW, EMBED, HEAD, ONE_BATCH[:4], tolerance=2e-2, dtype=np.float16)


def test_a_parallel_graph_holds_no_embedding(draft_graph: Export) -> None:
    graph = onnx.load(draft_graph(1, None, "shared", TREE, family="parallel")).graph
    assert [tuple(tensor.dims) for tensor in graph.initializer].count((DRAFT_VOCAB, HIDDEN)) == 1
    operators = Counter(node.op_type for node in graph.node)
    assert (operators["Softmax"], operators["LogSoftmax"]) == (1, 1)  # one pass: attention, and scores


@pytest.mark.parametrize("case", ["twins", "equal", "certain"])
def test_ties_go_to_the_lower_index(draft_graph: Export, case: str, tmp_path: Path) -> None:
    head = {
        "twins": HEAD.reshape(2, DRAFT_VOCAB // 2, HIDDEN)[:1].repeat(2, 1, 1).flatten(0, 1),  # ids in pairs
        "equal": torch.zeros_like(HEAD),
        "certain": HEAD * 3000,  # the best log-probability is exactly 0: a child ties with its parent
    }[case]
    path = with_weights(draft_graph(3, 1, "shared", SHALLOW), "drafting.head_rows", head.numpy(), tmp_path)
    check_rounds(runner(path), random_drafter(3, 1), SHALLOW, EMBED, head, ONE_BATCH[:4])


def with_weights(path: Path, name: str, values: Any, folder: Path) -> Path:
    """Copy a graph into `folder` with other values of one tensor."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [
        ((1, None, "shared", TREE), "fp32"),
        ((3, 2, "static", TREE), "fp32"),
        ((3, 2, "shared", SHALLOW, "fp16"), "fp16"),  # its third specialist drafts no level
    ],
)
def test_graph_keeps_the_contract(draft_graph: Export, arguments: Any, precision: Any) -> None:
    specialists, positions, _, tree, *_ = arguments
    session = open_graph(draft_graph(*arguments))
    inputs, outputs = specs(session.get_inputs()), specs(session.get_outputs())
    contract = draft_contract(random_drafter(specialists, positions).config, tree, precision)
    contract.check(inputs, outputs, "draft.onnx")
    assert [spec.name for spec in inputs] == [spec.name for spec in contract.inputs]
    assert [spec.name for spec in outputs] == [spec.name for spec in contract.outputs]
    with pytest.raises(BundleError, match=r"past_key_values\.0\.key"):
        contract.check([s for s in inputs if s.name != "past_key_values.0.key"], outputs, "draft.onnx")


def specs(nodes: Any) -> list[TensorSpec]:
    dtypes = {"float": "float32", "float16": "float16", "int64": "int64"}
    return [TensorSpec(n.name, dtypes[n.type.removeprefix("tensor(")[:-1]], tuple(n.shape)) for n in nodes]


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_graph_holds_the_rows_of_the_draft_vocabulary_once(
    draft_graph: Export, tied: bool, tables: int
) -> None:
    path = draft_graph(3, 1, "shared", SHALLOW, tied=tied)
    shapes = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    assert shapes.count((DRAFT_VOCAB, HIDDEN)) == tables
    assert not [shape for shape in shapes if VOCAB in shape or shape == (HIDDEN, DRAFT_VOCAB)]
    # Beside the drafter's own weights: the tables, specialists' key and value projections once more in
    # one matrix, rotary tables and small constants.
    drafter = random_drafter(3, 1)
    weights = sum(weight.numel() for weight in drafter.parameters())
    stacked = sum(specialist.get_parameter("kv.weight").numel() for specialist in drafter.specialists)
    rotary = (CAPACITY + SHALLOW.depth) * 16
    values = weights + stacked + rotary + tables * DRAFT_VOCAB * HIDDEN
    assert path.with_name("draft.onnx.data").stat().st_size < 4 * values * 1.05


def test_tied_graph_drafts_the_same(draft_graph: Export) -> None:
    run = runner(draft_graph(3, 1, "shared", SHALLOW, tied=True))
    check_rounds(run, random_drafter(3, 1), SHALLOW, EMBED, EMBED, ONE_BATCH[:3])


def test_caches_are_written_in_place(draft_graph: Export) -> None:
    """One buffer bound as past and present gets the new rows; what lies behind them is not read."""
    session = open_graph(draft_graph(3, 1, "shared", SHALLOW))
    random = np.random.default_rng(5)
    feed = {
        "next_token_embeddings": random.standard_normal((1, 4, HIDDEN), np.float32),
        "features": random.standard_normal((1, 4, HIDDEN), np.float32),
        "row_count": np.array([3]),
        "past_length": np.array([6]),
        "gumbel_noise": random.standard_normal((1, SHALLOW.depth, DRAFT_VOCAB), np.float32),
    }
    shape = (1, 2, CAPACITY, 16)
    past = {
        s.name: random.standard_normal(shape, np.float32)
        for s in session.get_inputs()
        if "past_key" in s.name
    }
    names = [spec.name for spec in session.get_outputs()]
    expected = dict(zip(names, session.run(None, {**feed, **past}), strict=True))
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    for name in names[:3]:
        binding.bind_output(name)
    buffers = {name: value.copy() for name, value in past.items()}
    for name, buffer in buffers.items():
        buffer[:, :, 9:] = 1e6
        shared = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(name, shared)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), shared)
    session.run_with_iobinding(binding)
    for name, value in zip(names[:3], binding.get_outputs(), strict=False):
        np.testing.assert_array_equal(value.numpy(), expected[name])
    for name, buffer in buffers.items():
        present = expected[name.replace("past_key_values", "present")]
        np.testing.assert_array_equal(buffer[:, :, :9], present[:, :, :9])
        np.testing.assert_array_equal(buffer[:, :, :6], past[name][:, :, :6])
        assert not np.array_equal(buffer[:, :, 6:9], past[name][:, :, 6:9])


def test_more_children_than_draft_words_are_refused() -> None:
    tree = TreeShape(depth=2, top_k=DRAFT_VOCAB + 1, nodes=5)
    with pytest.raises(InputError, match=f"top-k is {DRAFT_VOCAB + 1}.* {DRAFT_VOCAB} words"):
        make_round(random_drafter(), tree, EMBED, HEAD)
