"""TensorRT sessions on real engines' descriptions, run by the fakes of `fake_tensorrt`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import plan_build
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.errors import InputError
from poss_export.evaluation.checks import check_cache_laws
from poss_export.evaluation.latency import profile_bundle
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.tree import DraftTree
from poss_export.targets.checkpoint import open_target
from tests.fixtures.fake_tensorrt import FakeDevice, FakeLibrary
from tests.fixtures.graphs import CAPACITY

Make = Callable[..., Path]
NODES = 9


@pytest.fixture(scope="module")
def smaller_graphs(tiny_folder: Any, random_drafter: Any, tmp_path_factory: Any) -> dict[int, Path]:
    """Return a folder with the graphs of `engine_bundle("fp32")` at a smaller capacity."""
    target = open_target(str(tiny_folder("llama")))
    drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
    shape: Any = {"capacity": 40, "precision": "fp32", "cache_form": "static"}
    plan = plan_build(target, drafter, tree=TreeShape(4, 3, 8), **shape)
    folder = tmp_path_factory.mktemp("graphs") / "40"
    build_bundle(plan, folder, argv=[], force=False, report=lambda _: None)
    return {40: folder}


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
        dynamic, fixed = executed(library, "target")
        assert fixed > 0
        assert dynamic > 0  # the prompt, and the trees that the end of the cache cut
        assert bool(FakeDevice.log) == (flavour == "tensorrt")  # the other captures by itself
        alone = ours.generate(prompt, raw=True, max_new_tokens=9, target_only=True)
        assert alone.token_ids == plain.token_ids[:9]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cache_laws_hold_under_every_profile(precision: str, run: Any) -> None:
    with run(precision) as (entered, _):
        checks = check_cache_laws(entered)
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 4


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
            assert session.engines[0]._run[0] is None  # the sizes of this profile are open
            assert session.engines[0]._run[1] is not None
            assert executed(library, graph)[1] > 2
        assert FakeDevice.log.count("captured") == 2


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
        assert min(executed(library, "target")) > 0
