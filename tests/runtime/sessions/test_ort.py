"""Sessions of ONNX Runtime: chunks, trees and commits against fresh runs, and calls that are filled up."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from poss_export.contract import GraphContract, TensorSpec
from poss_export.errors import BackendError, InputError
from poss_export.runtime.sessions.caches import HostCaches
from poss_export.runtime.sessions.ort import OrtOptions, OrtTargetSession, _Call
from poss_export.runtime.tree import DraftTree
from tests.fixtures.graphs import CAPACITY
from tests.fixtures.ort_sessions import ONE_THREAD, MakeSession

PROMPT = [5, 17, 80, 3, 44, 9, 61]


@pytest.fixture(params=["shared", "static"])
def session(request: pytest.FixtureRequest, make_session: MakeSession) -> Iterator[OrtTargetSession]:
    with make_session(request.param) as session:
        yield session


def read(session: OrtTargetSession, ids: list[int]) -> NDArray[np.float32]:
    """Append tokens and return the logits after the last one."""
    output = session.forward(DraftTree.chain(ids), np.array([len(ids) - 1]))
    session.commit(range(len(ids)))
    assert output.logits.shape == (1, 96)
    assert output.next_tokens[0] == output.logits[0].argmax()
    logits: NDArray[np.float32] = output.logits[0].copy()
    return logits


def block_of(session: OrtTargetSession) -> NDArray[Any]:
    assert isinstance(session._caches, HostCaches)
    return session._caches.block


def fresh(session: OrtTargetSession, ids: list[int]) -> NDArray[np.float32]:
    session.reset()
    return read(session, ids)


def test_calls_may_have_any_width(session: OrtTargetSession) -> None:
    assert session.widths == ()


def test_chunks_equal_one_call(session: OrtTargetSession) -> None:
    whole = fresh(session, PROMPT)
    for cut in (1, 3, 6):
        session.reset()
        read(session, PROMPT[:cut])
        np.testing.assert_allclose(read(session, PROMPT[cut:]), whole, rtol=1e-4, atol=1e-4)


def test_tree_equals_its_paths_one_by_one(session: OrtTargetSession) -> None:
    tree = DraftTree.with_root(7, (11, 22, 33, 44, 55), (0, 0, 1, 2, 2), np.zeros(5))
    fresh(session, PROMPT)
    logits = session.forward(tree).logits.copy()
    for node in range(len(tree)):
        path = tree.tokens[tree.mask[node]].tolist()
        np.testing.assert_allclose(fresh(session, PROMPT + path), logits[node], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [[0], [0, 1], [0, 2, 4], [0, 2, 5], [0, 1, 3]])
def test_commit_then_continue_equals_a_fresh_run(session: OrtTargetSession, path: list[int]) -> None:
    tree = DraftTree.with_root(7, (11, 22, 33, 44, 55), (0, 0, 1, 2, 2), np.zeros(5))
    fresh(session, PROMPT)
    session.forward(tree)
    session.commit(path)
    assert session.length() == len(PROMPT) + len(path)
    continued = [read(session, [token]) for token in (8, 9)]
    ids = [*PROMPT, *tree.tokens[path].tolist(), 8, 9]
    np.testing.assert_allclose(continued[0], fresh(session, ids[:-1]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(continued[1], fresh(session, ids), rtol=1e-4, atol=1e-4)


def test_rows_beyond_the_committed_ones_do_not_matter(session: OrtTargetSession) -> None:
    expected = fresh(session, PROMPT)
    read(session, list(range(40)))
    np.testing.assert_array_equal(fresh(session, PROMPT), expected)


def test_nan_in_an_answer_does_not_outlive_it(session: OrtTargetSession) -> None:
    expected = fresh(session, PROMPT)
    block_of(session)[..., : len(PROMPT), :] = np.nan
    np.testing.assert_array_equal(fresh(session, PROMPT), expected)


def test_caches_are_one_block_written_in_place(session: OrtTargetSession) -> None:
    fresh(session, PROMPT)
    block = block_of(session)
    assert block.flags.c_contiguous
    assert (block[..., : len(PROMPT), :] != 0).all()
    assert (block[..., len(PROMPT) :, :] == 0).all()


def test_only_rows_out_of_place_are_moved(session: OrtTargetSession, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[list[int], int]] = []
    monkeypatch.setattr(
        session._caches, "move", lambda slot, sources, to: moves.append((sources.tolist(), to))
    )
    fresh(session, PROMPT)
    session.forward(DraftTree.with_root(7, (1, 2, 3, 4), (0, 1, 1, 3), np.zeros(4)))
    session.commit([0, 1])
    assert moves == []
    session.forward(DraftTree.with_root(7, (1, 2, 3, 4), (0, 1, 1, 3), np.zeros(4)))
    session.commit([0, 1, 3, 4])
    assert moves == [([len(PROMPT) + 5, len(PROMPT) + 6], len(PROMPT) + 4)]


def test_a_width_is_bound_once(session: OrtTargetSession) -> None:
    fresh(session, PROMPT)
    for _ in range(3):
        read(session, [1])
    assert (session._call.cache_info().misses, session._call.cache_info().hits) == (2, 2)


def test_output_may_be_kept_until_the_next_call(session: OrtTargetSession) -> None:
    fresh(session, PROMPT)
    tree = DraftTree.with_root(7, (1, 2), (0, 0), np.zeros(2))
    one, two = session.forward(tree), session.forward(tree)
    assert np.shares_memory(one.logits, two.logits)
    assert np.shares_memory(one.features, two.features)


def test_fp16(make_session: MakeSession) -> None:
    for form in ("shared", "static"):
        with make_session(form) as full, make_session(form, "fp16") as half:
            want = fresh(full, PROMPT)
            np.testing.assert_allclose(fresh(half, PROMPT), want, atol=0.03 * np.abs(want).max())


def test_capacity_is_never_passed(session: OrtTargetSession) -> None:
    fresh(session, [1] * (CAPACITY - 1))
    read(session, [2])
    with pytest.raises(InputError, match=r"1 tokens after 48 do not fit the capacity 48"):
        read(session, [3])


def test_engine_time_is_counted(session: OrtTargetSession) -> None:
    fresh(session, PROMPT)
    before = session.engine_seconds
    read(session, [1])
    assert session.engine_seconds > before > 0
    session.reset()
    assert session.engine_seconds == 0


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA provider here"
)
def test_cuda_equals_the_cpu(make_session: MakeSession) -> None:
    tree = DraftTree.with_root(7, (11, 22, 33, 44, 55), (0, 0, 1, 2, 2), np.zeros(5))
    device = make_session("static")
    device.options = OrtOptions("cuda")
    with make_session("static") as host, device:
        for session in (host, device):
            fresh(session, PROMPT)
        trees = [session.forward(tree) for session in (host, device)]
        np.testing.assert_allclose(trees[1].logits, trees[0].logits, rtol=1e-3, atol=1e-3)
        for session in (host, device):
            session.commit([0, 2, 4])
        np.testing.assert_allclose(read(device, [8]), read(host, [8]), rtol=1e-3, atol=1e-3)


class Copying:
    """A session, and its binding, of a device: to bind an input copies what it holds then."""

    def __init__(self) -> None:
        self.bound: dict[str, NDArray[Any]] = {}
        self.fed: list[Any] = []

    def io_binding(self) -> Any:
        return self

    def bind_ortvalue_input(self, name: str, value: onnxruntime.OrtValue) -> None:
        self.bound[name] = value.numpy().copy()

    def bind_ortvalue_output(self, name: str, value: onnxruntime.OrtValue) -> None:
        pass

    def bind(self, *_: object) -> None:
        """Bind no caches."""

    def run_with_iobinding(self, io: object) -> None:
        self.fed.append(self.bound["input_ids"].tolist())


def test_a_device_reads_what_the_arrays_hold_at_each_call() -> None:
    device: Any = Copying()
    ids, tokens = (TensorSpec(name, "int64", (1, 2)) for name in ("input_ids", "next_tokens"))
    call = _Call(device, GraphContract((ids,), (tokens,)), device, range(1), on_device=True)
    for token in (7, 8):
        call.arrays["input_ids"][:] = token
        call.run(device)
    assert device.fed == [[[7, 7]], [[8, 8]]]


def test_the_last_feed_is_what_the_graph_read(session: OrtTargetSession) -> None:
    with pytest.raises(InputError, match=r"target.onnx has not run yet"):
        session.last_feed()
    read(session, PROMPT)
    read(session, [8, 9])
    feed = session.last_feed()
    assert list(feed) == [spec.name for spec in session.contract.inputs]
    assert (feed["input_ids"].tolist(), feed["past_length"].tolist()) == ([[8, 9]], [len(PROMPT)])
    assert feed["logits_rows"].tolist() == [[1]]
    assert (feed["past_key_values.1.value"][..., : len(PROMPT) + 2, :] != 0).all()


def test_feeds_stay_on_a_device(session: OrtTargetSession, monkeypatch: pytest.MonkeyPatch) -> None:
    read(session, PROMPT)
    monkeypatch.setattr(session, "_caches", object())
    with pytest.raises(BackendError, match="are on a device; run it on the CPU"):
        session.last_feed()


class Siblings(DraftTree):
    """Roots side by side, which no real tree has."""

    mask = property(lambda self: np.eye(len(self), dtype=bool))
    depths = property(lambda self: np.zeros(len(self), np.int64))


def call(session: OrtTargetSession, ids: list[int], wanted: list[int]) -> tuple[NDArray[Any], ...]:
    """Return logits, next tokens and features of siblings: tokens that do not see each other."""
    output = session.forward(Siblings.chain(ids), np.array(wanted))
    return output.logits.copy(), output.next_tokens.copy(), output.features.copy()


def test_narrow_calls_are_filled_up(make_session: MakeSession) -> None:
    """Bit for bit what a wide call gives, up to the last free row; and what fills up is never seen."""
    plain = make_session(capacity=CAPACITY + 2)
    filled = OrtTargetSession(plain.graph, plain.contract, CAPACITY, ONE_THREAD, least_width=3)
    with plain, filled:
        assert filled.capacity == CAPACITY
        for length in (1, 7, CAPACITY - 2, CAPACITY - 1):
            ids = [(5 * i) % 96 for i in range(length)]
            fresh(plain, ids)
            fresh(filled, ids)
            wide = call(plain, [9, 8, 7], [0, 1, 2])
            for found, first in zip(call(filled, [9], [0]), wide, strict=True):
                np.testing.assert_array_equal(found, first[:1])
            if length < CAPACITY - 1:
                expected = call(plain, [8, 9, 7], [1, 2, 0])
                logits, tokens, features = call(filled, [8, 9], [1])
                np.testing.assert_array_equal(logits, expected[0][:1])
                np.testing.assert_array_equal(tokens, expected[1][:1])
                np.testing.assert_array_equal(features, expected[2][:2])
                filled.commit([1])
                assert filled.length() == length + 1
        filled.reset()
        assert not block_of(filled).any()
        fresh(filled, ids)
        with pytest.raises(InputError, match=f"2 tokens after {CAPACITY - 1} do not fit the capacity"):
            call(filled, [9, 8], [0])
        wide_enough = call(plain, [9, 8, 7], [2, 0])
        assert wide_enough[0].shape == (2, 96)


def test_every_row_is_as_asked_in_wider_calls(make_session: MakeSession) -> None:
    plain = make_session()
    filled = OrtTargetSession(plain.graph, plain.contract, CAPACITY, ONE_THREAD, least_width=3)
    with plain, filled:
        for wanted in ([0], [3, 1], [0, 1, 2, 3]):
            fresh(plain, PROMPT)
            fresh(filled, PROMPT)
            expected = call(plain, [9, 8, 7, 6], [0, 1, 2, 3])
            logits, tokens, features = call(filled, [9, 8, 7, 6], wanted)
            np.testing.assert_allclose(logits, expected[0][wanted], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(tokens, expected[1][wanted])
            np.testing.assert_array_equal(features, expected[2])
