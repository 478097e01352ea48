"""Several sequences as the batch of a graph: each as if it were alone."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from poss_export.errors import InputError
from poss_export.evaluation.differences import tree_difference
from poss_export.manifest import DRAFT_GRAPH, read_manifest
from poss_export.runtime.bundle import Bundle, contracts_of, open_bundle
from poss_export.runtime.loop import read
from poss_export.runtime.sessions.base import DraftCall, TargetCall
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtTargetSession
from poss_export.runtime.tree import DraftTree
from tests.fixtures.graphs import CAPACITY
from tests.fixtures.ort_sessions import ONE_THREAD
from tests.fixtures.sessions import sessions

SLOTS = 5
IDS = np.arange(3, 60) % 90
TREE = DraftTree.with_root(7, [8, 9, 10, 11], [0, 0, 1, 1], [-0.1, -0.2, -0.3, -0.4])
CHAIN = DraftTree.chain(IDS[:6])
LENGTHS = {4: 5, 0: 17, 2: 9, 3: 2}
CALLS = [
    TargetCall(TREE, np.arange(5), 4),
    TargetCall(DraftTree.with_root(3), np.arange(1), 0),
    TargetCall(CHAIN, np.arange(6), 2),
    TargetCall(CHAIN.first(3), np.array([2]), 1),
]


@pytest.fixture
def static(bundle_of_form: Callable[[str], Path]) -> Iterator[Bundle]:
    """A bundle of static caches in so many slots."""
    with open_bundle(bundle_of_form("static"), threads=1, slots=SLOTS) as bundle:
        yield bundle


Results = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def begin(session: OrtTargetSession, lengths: Mapping[int, int] = LENGTHS) -> None:
    """Empty all slots and read so many tokens into each."""
    session.reset()
    for slot, length in lengths.items():
        for _ in read(session, np.resize(IDS[slot:], length), slot, chunk=7):
            pass


def results(session: OrtTargetSession, calls: Sequence[TargetCall]) -> Results:
    """Run calls, keep the last node of each beside the root; return copies of what came."""
    found = session.forward_all(calls)
    copies = [(out.next_tokens.copy(), out.features.copy(), out.logits.copy()) for out in found]
    for call in calls:
        session.commit(sorted({0, len(call.tree) - 1}), call.slot)
    return copies


def assert_equal(ours: Results, theirs: Results) -> None:
    for ours_of_one, theirs_of_one in zip(ours, theirs, strict=True):
        for mine, expected in zip(ours_of_one, theirs_of_one, strict=True):
            np.testing.assert_array_equal(mine, expected)


def ran(session: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that grows by the shape of the ids of every call, of a draft call by the batch."""
    shapes, run = list[tuple[int, ...]](), session._run

    def note(call: Any, inputs: Any) -> None:
        shapes.append(inputs.get("input_ids", inputs["past_length"]).shape)
        run(call, inputs)

    monkeypatch.setattr(session, "_run", note)
    return shapes


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_sequence_beside_others_is_as_alone(static: Bundle, count: int) -> None:
    """In every bit, also in the next calls, which read what the first wrote."""
    target, _ = sessions(static)
    begin(target)
    ours = [results(target, CALLS[:count]) for _ in range(3)]
    begin(target)
    for found in ours:
        assert_equal(found, [results(target, [call])[0] for call in CALLS[:count]])


def test_and_as_in_a_session_of_one_slot(static: Bundle) -> None:
    """But for the rounding of a single row, which takes other kernels there."""
    target, _ = sessions(static)
    begin(target)
    ours = results(target, CALLS)
    with open_bundle(static.folder, threads=1) as bundle:
        lone, _ = sessions(bundle)
        for call, found in zip(CALLS, ours, strict=True):
            lone.reset()
            if length := LENGTHS.get(call.slot):
                for _ in read(lone, IDS[call.slot :][:length], chunk=7):
                    pass
            for mine, expected in zip(found, results(lone, [call._replace(slot=0)])[0], strict=True):
                np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)


def test_trees_share_a_call_and_pieces_of_prompts_have_their_own(
    static: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = sessions(static)
    shapes = ran(target, monkeypatch)
    target.forward_all(CALLS)
    assert shapes == [(5, 8), (1, 3)]
    shapes.clear()
    target.forward_all(CALLS[1:3])  # of six rows, in the block of the slots 0 to 3
    assert shapes == [(4, 8)]


def test_slots_that_are_not_at_work_keep_their_rows(static: Bundle) -> None:
    target, _ = sessions(static)
    begin(target)
    expected = results(target, [CALLS[2]])
    begin(target)
    results(target, CALLS[:2])  # in 0 and 4: the others are in their block
    assert_equal(results(target, [CALLS[2]]), expected)


def test_a_piece_of_a_prompt_is_read_beside_trees(static: Bundle) -> None:
    """What fills up the trees' block is written where the piece is, which must not suffer."""
    target, _ = sessions(static)
    begin(target)
    expected = results(target, [CALLS[3]]) + results(target, [CALLS[3]])
    begin(target)
    assert_equal(results(target, [CALLS[3], *CALLS[:2]])[:1] + results(target, [CALLS[3]]), expected)


def test_a_slot_that_is_nearly_full_is_not_filled_up(static: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = sessions(static)
    begin(target, {0: CAPACITY - 5, 1: 3, 3: CAPACITY})
    shapes = ran(target, monkeypatch)
    target.forward_all([CALLS[0]._replace(slot=slot) for slot in (0, 1)])
    assert shapes == [(2, 5)]  # not 8
    shapes.clear()
    target.forward_all([CALLS[2]._replace(slot=slot) for slot in (1, 2)])
    assert shapes == [(1, 8), (1, 8)]  # slot 3, which is full, and slot 0 are in the block of both
    with pytest.raises(InputError, match="do not fit the capacity"):
        target.forward_all([CALLS[2]._replace(slot=slot) for slot in (0, 1)])


FEATURES = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
COUNTS = {0: 3, 1: 1, 3: 17, 4: 4}


def drafts(drafter: Any, together: bool) -> list[DraftTree]:
    """Return the trees of two rounds behind prefixes of different lengths."""
    trees = list[DraftTree]()
    drafter.reset()
    for slot in range(SLOTS):
        drafter.propose(IDS[: 2 + 3 * slot], FEATURES[: 2 + 3 * slot], slot)
    for start in (5, 9):
        calls = [DraftCall(IDS[start:][:n], FEATURES[start:][:n], slot) for slot, n in COUNTS.items()]
        trees += drafter.propose_all(calls) if together else [drafter.propose(*call) for call in calls]
    assert [drafter.length(slot) for slot in range(SLOTS)] == [8, 7, 8, 45, 22]
    return trees


@pytest.mark.parametrize("form", ["shared", "static"])
def test_a_tree_drawn_beside_others_is_as_alone(form: str, bundle_of_form: Callable[[str], Path]) -> None:
    with open_bundle(bundle_of_form(form), threads=1, slots=SLOTS) as bundle:
        ours, theirs = (drafts(bundle.drafter, together) for together in (True, False))
    assert max(map(tree_difference, ours, theirs)) < 1e-5
    if form == "static":
        assert max(map(tree_difference, ours, theirs)) == 0


def test_draft_graphs_of_earlier_builds_draw_in_turns(
    bundle_of_form: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs of the shared form are for one sequence."""
    folder = bundle_of_form("shared")
    model = onnx.load(folder / DRAFT_GRAPH, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / DRAFT_GRAPH)
    shutil.copy(folder / f"{DRAFT_GRAPH}.data", tmp_path)
    manifest = read_manifest(folder)
    table, contract = manifest.target.embedding.open(folder), contracts_of(manifest)["draft"]
    options = replace(ONE_THREAD, slots=SLOTS)
    found = []
    for place in (folder, tmp_path):
        with OrtDraftSession(place / DRAFT_GRAPH, contract, CAPACITY, options, table) as drafter:
            shapes = ran(drafter, monkeypatch)
            found.append(drafts(drafter, together=True))
            batches = [batch for (batch,) in shapes[SLOTS:]]
            assert batches == ([5, 1, 5, 1] if place == folder else [1] * 8)
    assert max(map(tree_difference, *found)) < 1e-5
