"""TensorRT sessions on real engines' descriptions, run by the fakes of `fake_tensorrt`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.engine_spec import target_profiles
from poss_export.errors import InputError
from poss_export.evaluation.checks import check_cache_laws
from poss_export.evaluation.latency import profile_bundle
from poss_export.manifest import read_manifest
from poss_export.runtime.bundle import contracts_of, open_bundle
from poss_export.runtime.sessions.tensorrt import TensorrtTargetSession
from poss_export.runtime.tree import DraftTree
from tests.fixtures.fake_tensorrt import FakeDevice, FakeLibrary, at
from tests.fixtures.filled_calls import binary_tree, largest_difference
from tests.fixtures.graphs import CAPACITY

Make = Callable[..., Path]
NODES = 9
OPEN = 0  # the profile of every call that no fixed one is for


def executed(library: FakeLibrary, graph: str, capacity: int = CAPACITY) -> list[int]:
    """Return how often each profile ran."""
    return [context.runs for context in library.engines[graph, capacity].contexts]


def test_an_answer_climbs_from_capacity_to_capacity(
    run: Any, engine_bundle: Make, smaller_graphs: dict[int, Path]
) -> None:
    with open_bundle(engine_bundle("fp32", *smaller_graphs), threads=1) as expected:
        plain = expected.generate("<5> <9> <77>", raw=True, max_new_tokens=CAPACITY - 3, target_only=True)
    with run(smaller=smaller_graphs) as (ours, library):
        assert ours.target.capacity == CAPACITY
        for _ in range(2):  # the second begins in the smallest again, with empty caches
            answer = ours.generate("<5> <9> <77>", raw=True, max_new_tokens=CAPACITY - 3)
            assert answer.token_ids == plain.token_ids
            assert ours.target._engine.capacity == CAPACITY
        for capacity in (40, CAPACITY):
            assert sum(executed(library, "target", capacity)) > 0, capacity
        ours.target.reset()
        assert ours.target._engine.capacity == 40
        assert [check.name for check in check_cache_laws(ours) if not check.passed] == []


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_answers_are_those_of_onnx_runtime(flavour: str, run: Any, engine_bundle: Make) -> None:
    prompt, tokens = "<5> <9> <77>", CAPACITY - 3
    with open_bundle(engine_bundle("fp32"), threads=1) as expected:
        plain = expected.generate(prompt, raw=True, max_new_tokens=tokens, target_only=True)
    with run(flavour=flavour) as (ours, library):
        for _ in range(2):  # caches of the first answer are behind us
            answer = ours.generate(prompt, raw=True, max_new_tokens=tokens)
            assert answer.token_ids == plain.token_ids
        whole_tree = executed(library, "target")[-1]
        assert whole_tree > 0
        assert executed(library, "target")[OPEN] > 0  # the prompt, and trees that the end of the cache cut
        assert bool(FakeDevice.log) == (flavour == "tensorrt")  # the other captures by itself
        before = executed(library, "target")
        alone = ours.generate(prompt, raw=True, max_new_tokens=9, target_only=True)
        assert alone.token_ids == plain.token_ids[:9]
        calls = np.subtract(executed(library, "target"), before)
        assert calls.tolist() == [1, 8, 0, 0, 0]  # the prompt, then steps filled up to two rows


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cache_laws_hold_under_every_profile(precision: str, run: Any) -> None:
    with run(precision) as (entered, _):
        checks = check_cache_laws(entered)
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 5


def test_bfloat16_results_are_values_not_bits(run: Any) -> None:
    with run("bf16") as (entered, _):
        entered.target.reset()
        output = entered.target.forward(DraftTree.with_root(5))
        assert output.features.dtype == output.logits.dtype == np.float32
        assert output.next_tokens[0] == output.logits[0].argmax()


def test_fixed_work_is_captured_once_for_each_width(run: Any) -> None:
    with run(flavour="tensorrt") as (entered, library):
        entered.generate("<5> <9> <77>", raw=True, max_new_tokens=20)
        for session, graph in ((entered.target, "target"), (entered.drafter, "draft")):
            contexts = session.engines[0]._contexts
            assert contexts[OPEN, 0].run is None  # the sizes of this profile are open
            assert contexts[len(contexts) - 1, 0].run is not None
            assert executed(library, graph)[-1] > 2
        assert FakeDevice.log.count("captured") == 2
        entered.target.reset()
        for width in (1, 2, 3, 4, 6, 8, 9, 5):
            entered.target.forward(binary_tree(width))
        assert FakeDevice.log.count("captured") == 2 + 3  # the whole tree's was there


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_a_narrow_tree_is_filled_up_to_the_next_width(flavour: str, run: Any) -> None:
    with run(flavour=flavour) as (entered, library):
        assert entered.target.widths == (2, 4, 8, NODES)
        for width in range(1, NODES + 1):
            assert largest_difference(entered.target, width) < 1e-5, width
        before = executed(library, "target")
        entered.target.reset()
        for width in (1, 3, 4, 5, 7, NODES):
            entered.target.forward(binary_tree(width))
        calls = np.subtract(executed(library, "target"), before)
        assert calls.tolist() == [0, 1, 2, 2, 1]


def test_calls_that_are_not_filled_up(run: Any) -> None:
    """Chunks of a prompt, of which few rows are wanted; trees that the caches have no room to fill up."""
    with run() as (entered, library):
        target = entered.target
        target.forward(DraftTree.chain([5, 9, 77]), np.array([2]))
        assert executed(library, "target") == [1, 0, 0, 0, 0]
        target._lengths[0] = CAPACITY - 3
        assert target.forward(binary_tree(3)).logits.shape == (3, 96)
        assert executed(library, "target") == [2, 0, 0, 0, 0]
        with pytest.raises(InputError, match=r"4 tokens after 45 do not fit the capacity 48"):
            target.forward(binary_tree(4))


def test_rows_that_fill_up_a_call_are_cleared_with_their_slot(run: Any) -> None:
    with run() as (entered, _):
        (engine,) = entered.target.engines
        caches = [spec.with_sizes(batch=1) for spec in engine.contract.inputs if spec.is_cache]
        block = at(engine._addresses[caches[0].name], (len(caches), *caches[0].sizes), "float32")
        entered.target.reset()
        entered.target.forward(binary_tree(5))
        used = np.abs(block).max(axis=(0, 1, 2, 4))
        assert (used > 0).tolist() == [True] * 8 + [False] * (CAPACITY - 8)
        entered.target.release()
        assert not block.any()


def test_engines_of_one_width_work_as_before(run: Any) -> None:
    """Such as builds made before there was a ladder: all trees are filled up to it."""
    with run(profiles=lambda profiles: (profiles[OPEN], profiles[-1])) as (entered, library):
        assert entered.target.widths == (NODES,)
        assert largest_difference(entered.target, 5) < 1e-5
        answer = entered.generate("<5> <9> <77>", raw=True, max_new_tokens=20)
        alone = entered.generate("<5> <9> <77>", raw=True, max_new_tokens=20, target_only=True)
        assert answer.token_ids == alone.token_ids
        assert min(executed(library, "target")) > 0


def test_widths_are_those_of_every_capacity(engine_bundle: Make) -> None:
    manifest = read_manifest(engine_bundle("fp32"))
    entry = next(entry for entry in manifest.engines if entry.spec.graph == "target")
    smaller = replace(entry, spec=replace(entry.spec, capacity=40, profiles=target_profiles(40, (1, 2, 8))))
    session = TensorrtTargetSession(Path(), [smaller, entry], contracts_of(manifest)["target"])
    assert session.widths == (2, 8)


def test_a_short_round_is_padded_while_there_is_room(run: Any) -> None:
    with run() as (entered, library):
        drafter = entered.drafter
        drafter.reset()
        features = np.zeros((3, 64), np.float32)
        drafter.propose(np.array([1, 2, 3]), features)
        assert executed(library, "draft") == [0, 1]
        assert drafter.length() == 3
        drafter._lengths[0] = CAPACITY - 4  # five rows no longer fit
        drafter.propose(np.array([1, 2, 3]), features)
        assert executed(library, "draft") == [1, 1]
        with pytest.raises(InputError, match=r"3 tokens after 47 do not fit the capacity 48"):
            drafter.propose(np.array([1, 2, 3]), features)


def test_a_profile_measures_engines_as_it_measures_graphs(run: Any) -> None:
    with run() as (entered, library):
        report = profile_bundle(entered, widths=[1, NODES], contexts=[20], repeats=2, report=lambda _: None)
        assert [row["width"] for row in report["verify"]] == [1, NODES]
        runs = executed(library, "target")
        assert min(runs[OPEN], runs[1], runs[-1]) > 0  # the context, single steps, whole trees
