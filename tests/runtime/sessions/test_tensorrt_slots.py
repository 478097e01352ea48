"""Several sequences in calls of TensorRT engines, run by fakes: each as if it were alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.engine_spec import Profile, draft_profiles, target_profiles
from poss_export.errors import InputError
from poss_export.evaluation.checks import check_cache_laws
from poss_export.runtime.answers import answer_all
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sessions.base import TargetCall
from poss_export.runtime.tree import DraftTree
from tests.fixtures.fake_tensorrt import FakeDevice, FakeLibrary
from tests.fixtures.filled_calls import binary_tree
from tests.fixtures.graphs import CAPACITY

Make = Callable[..., Path]
WIDTHS = (2, 4, 8, 9)
SLOTS = 4
PROMPTS = ["<5> <9> <77>", "<3>", "<40> <41> <42> <43> <44> <45> <46> <47> <48> <49> <50>", "<7> <8>", "<60>"]


def batched(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Return the profiles of a target or a drafter made for calls of several sequences."""
    if "seq" in profiles[0].sizes:
        return target_profiles(CAPACITY, WIDTHS, SLOTS)
    return draft_profiles(CAPACITY, profiles[1].rows, SLOTS)


def place_of(batch: int, width: int) -> int:
    """Return the number of the profile of so many trees of a width."""
    return 1 + (batch.bit_length() - 1) * len(WIDTHS) + WIDTHS.index(width)


def runs(session: Any, library: FakeLibrary, graph: str) -> dict[tuple[int, int], int]:
    """Return how often contexts ran that did, by profile and first slot."""
    (engine,) = session.engines
    known = {id(context): context.runs for context in library.engines[graph, CAPACITY].contexts}
    return {key: known[id(made.context)] for key, made in engine._contexts.items() if known[id(made.context)]}


def trees(**slots: int) -> list[TargetCall]:
    """Return calls of trees, by slot and width."""
    return [TargetCall(binary_tree(n), np.arange(n), int(slot[1:])) for slot, n in slots.items()]


@pytest.mark.parametrize(
    "precision",
    ["fp32", pytest.param("fp16", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("profiles", [batched, tuple], ids=["batched", "in turns"])
def test_laws_hold(precision: str, profiles: Any, run: Any) -> None:
    """Also where engines were made for one sequence, as those of earlier builds, and serve all in turns."""
    with run(precision, profiles=profiles, slots=SLOTS) as (entered, _):
        checks = check_cache_laws(entered)
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 7


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("profiles", [batched, tuple], ids=["batched", "in turns"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=3)], ids=["greedy", "sampled"])
def test_answers_are_as_alone(
    flavour: str, profiles: Any, sampling: Sampling, run: Any, engine_bundle: Make
) -> None:
    asked: Any = {"raw": True, "max_new_tokens": 30, "sampling": sampling}
    with open_bundle(engine_bundle("fp32"), threads=1) as bundle:
        expected = [bundle.generate(prompt, target_only=True, **asked).token_ids for prompt in PROMPTS]
    with run(flavour=flavour, profiles=profiles, slots=SLOTS) as (entered, library):
        found = answer_all(entered, PROMPTS, **asked)
        assert [generation.token_ids for generation in found] == expected
        together = {key for key in runs(entered.target, library, "target") if key[0] > len(WIDTHS)}
        assert bool(together) == (profiles is batched)
        assert bool(FakeDevice.log) == (flavour == "tensorrt")


def test_trees_share_the_call_of_the_smallest_block(run: Any) -> None:
    with run(profiles=batched, slots=SLOTS) as (entered, library):
        target = entered.target
        assert target.widths == WIDTHS
        target.forward_all(trees(s0=1, s1=3))
        assert runs(target, library, "target") == {(place_of(2, 4), 0): 1}
        target.forward_all(trees(s3=5, s2=2))
        assert runs(target, library, "target")[place_of(2, 8), 2] == 1
        target.forward_all(trees(s1=2, s2=2))
        assert runs(target, library, "target")[place_of(4, 2), 0] == 1
        target.forward_all(trees(s3=9))
        assert runs(target, library, "target")[place_of(1, 9), 3] == 1
        assert sum(runs(target, library, "target").values()) == 4


def test_logits_of_every_block_are_there(run: Any) -> None:
    """A piece of a prompt has a call of its own behind the trees', whose logits nobody has read by then."""
    piece = TargetCall(DraftTree.chain([5, 9, 77, 3]), np.array([3]), 2)
    with run(profiles=batched, slots=SLOTS) as (entered, _):
        target = entered.target
        calls = [*trees(s0=3, s3=6), piece]
        together = [output.logits.copy() for output in target.forward_all(calls)]
        alone = [target.forward(*call).logits.copy() for call in calls]
    for mine, expected in zip(together, alone, strict=True):
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)


def test_blocks_that_cannot_be_filled_up_are_halved(run: Any) -> None:
    with run(profiles=batched, slots=SLOTS) as (entered, library):
        target = entered.target
        target._lengths[:] = [CAPACITY - 3, 5, 5, CAPACITY]
        target.forward_all(trees(s0=3, s1=2))
        assert runs(target, library, "target") == {(0, 0): 1, (place_of(1, 2), 1): 1}
        target.forward_all(trees(s1=2, s2=2))  # slot 3, which is full, is in the block of both
        assert runs(target, library, "target")[place_of(1, 2), 2] == 1
        with pytest.raises(InputError, match=r"4 tokens after 45 do not fit the capacity 48"):
            target.forward_all(trees(s0=4, s1=2))


def test_fixed_work_is_captured_once_for_each_block(run: Any) -> None:
    with run(flavour="tensorrt", profiles=batched, slots=SLOTS) as (entered, _):
        for _ in range(3):
            entered.target.forward_all(trees(s0=1, s1=2))
            entered.target.forward_all(trees(s2=1, s3=2))
        assert FakeDevice.log == ["captured"] * 2 + ["launched"] * 4


def test_all_slots_climb_together(run: Any, engine_bundle: Make, smaller_graphs: dict[int, Path]) -> None:
    asked: Any = {"raw": True, "max_new_tokens": CAPACITY - 12}
    with open_bundle(engine_bundle("fp32", *smaller_graphs), threads=1) as bundle:
        expected = [bundle.generate(prompt, target_only=True, **asked).token_ids for prompt in PROMPTS]
    with run(smaller=smaller_graphs, slots=SLOTS) as (entered, _):
        for _ in range(2):
            found = answer_all(entered, PROMPTS, **asked)
            assert [generation.token_ids for generation in found] == expected
        entered.target.reset()
        assert entered.target._engine.capacity == 40


def test_profiles_for_more_sequences_than_slots_take_no_memory(run: Any) -> None:
    with run(profiles=batched, slots=2) as (entered, library):
        contexts = library.engines["target", CAPACITY].contexts
        assert len(contexts) == 1 + 2 * len(WIDTHS)
        assert entered.target.engines[0].rows.size == 2 * 2 * CAPACITY * 16 * 4
