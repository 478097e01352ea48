"""Several sequences in one call: each as if it were alone."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from poss_export.contract import target_contract
from poss_export.errors import BackendError, InputError
from poss_export.runtime.loop import read
from poss_export.runtime.sessions import prepacked
from poss_export.runtime.sessions.base import TargetCall
from poss_export.runtime.sessions.ort import OrtTargetSession
from poss_export.runtime.sessions.packed import PackedTargetSession
from poss_export.runtime.sessions.slots import rewrite
from poss_export.runtime.tree import DraftTree
from poss_export.targets.checkpoint import open_target
from tests.fixtures.graphs import CAPACITY
from tests.fixtures.ort_sessions import ONE_THREAD

IDS = np.arange(3, 40) % 90
TREE = DraftTree.with_root(7, [8, 9, 10, 11], [0, 0, 1, 1], [-0.1, -0.2, -0.3, -0.4])


@pytest.fixture(params=["qwen3", "llama", "gemma2", "windows"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return a kind of target.

    The first normalises its queries, the second gets them from one product, the others have windows.
    """
    return str(request.param)


@pytest.fixture
def make(target_graph: Any, tiny_folder: Any, kind: str) -> Callable[..., Any]:
    """Return make(packed=True, slots=5, least_width=1): a session, not entered."""

    def session(packed: bool = True, slots: int = 5, least_width: int = 1) -> Any:
        contract = target_contract(open_target(str(tiny_folder(kind))).config, "fp32")
        graph = target_graph(kind, "shared", "fp32")
        options = replace(ONE_THREAD, slots=slots)
        if packed:
            return PackedTargetSession(graph, kind, contract, CAPACITY, options, least_width)
        return OrtTargetSession(graph, contract, CAPACITY, options, least_width)

    return session


def results(session: Any, calls: Sequence[TargetCall], lengths: Mapping[int, int]) -> list[Any]:
    """Read so many tokens into each slot, run calls, keep every first node; return copies of what came."""
    for slot, length in lengths.items():
        for _ in read(session, IDS[slot : slot + length], slot, chunk=7):
            pass
    found = session.forward_all(calls)
    copies = [(out.next_tokens.copy(), out.features.copy(), out.logits.copy()) for out in found]
    for call in calls:
        session.commit([0], call.slot)
    return copies


CHAIN = DraftTree.chain(IDS[:6])
LENGTHS = {4: 5, 0: 17, 2: 9, 1: 0}
CALLS = [
    TargetCall(TREE, np.arange(5), 4),
    TargetCall(DraftTree.with_root(3), np.arange(1), 0),
    TargetCall(CHAIN, np.array([2, 5]), 2),
    TargetCall(CHAIN.first(3), np.array([2]), 1),
]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("least_width", [1, 2, 12])
def test_a_sequence_beside_others_is_as_alone(make: Any, count: int, least_width: int) -> None:
    """Also in the next call, which reads what this one wrote."""
    with make(least_width=least_width) as together, make(packed=False) as alone:
        for lengths in (LENGTHS, {}):
            ours, theirs = (results(session, CALLS[:count], lengths) for session in (together, alone))
            for ours_of_one, theirs_of_one in zip(ours, theirs, strict=True):
                for mine, expected in zip(ours_of_one, theirs_of_one, strict=True):
                    assert mine.shape == expected.shape
                    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)


def test_slots_know_nothing_of_each_other(make: Any) -> None:
    with make() as session:
        first = results(session, CALLS, LENGTHS)
        session.release(4)
        others = {slot: length for slot, length in LENGTHS.items() if slot != 4}
        assert [session.length(slot) for slot in range(5)] == [18, 1, 10, 0, 0]
        session.reset()
        results(session, [TargetCall(CHAIN, np.arange(6), 3)], {3: 30})
        session.reset()
        again = results(session, CALLS[1:], others)
        for mine, expected in zip(again, first[1:], strict=True):
            for part, wanted in zip(mine, expected, strict=True):
                np.testing.assert_allclose(part, wanted, rtol=1e-4, atol=1e-4)


def test_a_full_slot_is_refused_and_idle_full_ones_are_left_alone(make: Any) -> None:
    with make(slots=3) as session:
        for slot in (0, 1):
            for _ in read(session, np.resize(IDS, CAPACITY - slot), slot):
                pass
        with pytest.raises(InputError, match="do not fit the capacity"):
            session.forward(DraftTree.with_root(1), slot=0)
        output = session.forward(DraftTree.with_root(1), slot=1)
        assert output.next_tokens.shape == (1,)


def test_the_shared_weights_are_made_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(slots=2):
        pass
    monkeypatch.setattr(prepacked, "load_graph", lambda *_, **__: pytest.fail("made again"))
    with make(slots=4) as session:
        session.forward(DraftTree.with_root(1), slot=3)


def test_ragged_calls_fill_no_memory(make: Any) -> None:
    """ONNX Runtime would remember where tensors lie for every combination of rows that ever came."""
    with make(slots=2) as session:
        for graph in session._graphs:
            assert not graph._session.get_session_options().enable_mem_pattern


def test_no_room_for_the_shared_weights(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(InputError, match=r"0\.0 GB left: set XDG_CACHE_HOME"), make():
        pass
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_damaged_graph_leaves_nothing(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    session = make()
    session.graph = tmp_path / "target.onnx"
    session.graph.write_bytes(b"no graph")
    session.graph.with_name("target.onnx.data").touch()
    with pytest.raises(BackendError, match="refuses"), session:
        pass
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "target.onnx",
        "target.onnx.data",
    }


def test_without_onnx(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match=r"poss-export\[server\]"), session:
        pass


def test_a_graph_of_an_earlier_build_becomes_the_same(target_graph: Any) -> None:
    """Its attention reads query, key and value apart; in slots they are one again."""
    now = onnx.load(target_graph("llama", "shared", "fp32"), load_external_data=False)
    earlier = onnx.ModelProto()
    earlier.CopyFrom(now)
    nodes = list(earlier.graph.node)
    del earlier.graph.node[:]
    for node in nodes:
        if node.op_type == "GroupQueryAttention":
            assert [bool(name) for name in node.input[:3]] == [True, False, False]
            parts = [f"{node.input[0]}.{part}" for part in "qkv"]
            earlier.graph.node.append(onnx.helper.make_node("Split", [node.input[0]], parts, axis=-1))
            node.input[:3] = parts
        earlier.graph.node.append(node)
    for model in (now, earlier):
        rewrite(model, 2)
    assert now.graph == earlier.graph
