"""Each fault, planted in a real bundle, is caught by the checks of `verify` whose names say what broke."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.config import TreeShape
from poss_export.contract import target_contract
from poss_export.evaluation import checks, filters, laws, rounds
from poss_export.evaluation.differences import TOLERANCE
from poss_export.evaluation.parity import check_parity
from poss_export.prompts import as_prompts
from poss_export.reference import Reference
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sessions.ort import OrtOptions, OrtTargetSession
from tests.fixtures import planted_faults as faults

PROMPTS = as_prompts(["<5> <9>", *(f"<{number}>" for number in range(7, 13))])
TREE = TreeShape(depth=4, top_k=3, nodes=8)

PARITY_OF_TARGET = {"parity: target features", "parity: target logits"}
DRAFTS = "parity: draft scores"
STEPS, PATHS, COMMIT = "n tokens = n steps", "tree = its paths", "commit = fresh run"
PARTS = "draft rows at once = in parts"
NEXT = "next token = highest logit"
GREEDY, SAMPLED = (f"{kind}: speculative = target-only" for kind in ("greedy", "sampled"))
ACCEPTED, AFRESH = rounds.ACCEPTED, rounds.AFRESH
FILTERS, DISTRIBUTION = "sampling: filters", "sampling: distribution"
BESIDE, AT_ONCE = "beside others = alone", "at once: speculative = target-only"


@pytest.fixture(scope="module")
def reference(tiny_folder: Callable[[str], Path], random_drafter: Any) -> Reference:
    from poss_export.exporters.reference import make_reference, round_beside
    from poss_export.targets.checkpoint import open_target

    target = open_target(str(tiny_folder("llama")))
    decoder = target.load_decoder()
    return make_reference(decoder, round_beside(decoder, random_drafter(target.config, 3), TREE))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as opened:
        yield opened


def broken(bundle: Bundle, reference: Reference) -> set[str]:
    """Return the names of the checks that fail."""

    def silent(_: str) -> None:
        pass

    made = [
        *check_parity(bundle, reference),
        *checks.check_cache_laws(bundle),
        checks.check_greedy(bundle, PROMPTS, 30, silent),
        checks.check_sampled(bundle, PROMPTS, 30, silent),
        *rounds.check_rounds(bundle, PROMPTS, 30, silent),
        filters.check_filters(bundle.manifest.target.config.vocab_size),
        checks.check_sampling(bundle, PROMPTS, 4000, silent),
    ]
    return {check.name for check in made if check.passed is False}


def test_without_a_fault_nothing_fails(bundle: Bundle, reference: Reference) -> None:
    assert broken(bundle, reference) == set()


FAULTS: dict[str, tuple[faults.Plant, set[str]]] = {
    "a verifier accepts the first child": (faults.accept_the_first, {GREEDY, SAMPLED, DISTRIBUTION}),
    "a verifier accepts nothing": (faults.accept_nothing, {ACCEPTED}),
    "a verifier sees one child": (faults.accept_no_second_child, {ACCEPTED}),
    "a bonus is dropped": (faults.drop_the_bonus, {GREEDY, SAMPLED}),
    "a node sees its sibling": (faults.bit(2, 1), {PATHS}),
    "a node does not see its parent": (faults.bit(3, 1), {PATHS}),
    "a node does not see the root": (faults.bit(7, 0), {PATHS}),
    "a row is moved too far": (faults.move(faults.to_the_next_row), {COMMIT}),
    "a row is not moved": (faults.move(faults.all_but_the_last), {COMMIT}),
    "a row is not moved in a head": (faults.move(faults.in_one_head), {COMMIT}),
    "a row too many is kept": (faults.keep_too_much, {COMMIT}),
    "positions are one too deep": (faults.depths(faults.one_deeper), {STEPS}),
    "positions are places": (faults.depths(faults.by_place), {PATHS}),
    "positions forget the past": (faults.forget_the_past, {STEPS}),
    "a feature is no number": (faults.no_number, {PATHS}),
    "a choice is another row's": (faults.chosen_one_row_early, {NEXT}),
    "random numbers go by rounds": (faults.count_rounds, {ACCEPTED}),
    "positions share random numbers": (faults.one_number_for_a_path, {DISTRIBUTION}),
    "random numbers are all the same": (faults.the_same_number, {DISTRIBUTION}),
    "a draw leans": (faults.lean, {DISTRIBUTION}),
    "temperature comes last": (faults.order("top_k", "top_p", "min_p", "temperature"), {FILTERS}),
    "top-p before top-k": (faults.order("temperature", "top_p", "top_k", "min_p"), {FILTERS}),
    "min-p before top-p": (faults.order("temperature", "top_k", "min_p", "top_p"), {FILTERS}),
    "min-p is forgotten": (faults.order("temperature", "top_k", "top_p"), {FILTERS}),
    "trees are stale": (faults.stale_trees, {GREEDY, SAMPLED}),
    "features are the tree's first rows": (faults.stale_features, {AFRESH}),
    "the drafter misses rows": (faults.unread_rows, {AFRESH}),
    "embeddings are the neighbours'": (faults.another_embedding, {DRAFTS}),
    "drafted tokens are misnamed": (faults.misnamed, {DRAFTS}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_name(
    fault: str, bundle: Bundle, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, named = FAULTS[fault]
    plant(monkeypatch)
    assert broken(bundle, reference) >= named


AT_ONCE_FAULTS: dict[str, tuple[faults.Plant, set[str]]] = {
    "a slot reads a row of its neighbour's cache": (faults.a_neighbours_row, {BESIDE, AT_ONCE}),
    "answers are given to their neighbours": (faults.a_neighbours_answer, {AT_ONCE}),
}


@pytest.mark.parametrize("fault", [None, *AT_ONCE_FAULTS])
def test_a_fault_of_slots_is_caught_by_name(
    fault: str | None, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By no check of one answer at a time."""
    plant, named = AT_ONCE_FAULTS[fault] if fault else (lambda _: None, set())
    plant(monkeypatch)
    with open_bundle(tiny_bundle, threads=1, slots=3) as opened:
        made = [
            *checks.check_cache_laws(opened),
            checks.check_greedy(opened, PROMPTS, 30, lambda _: None),
            checks.check_together(opened, PROMPTS, 30, lambda _: None),
        ]
    assert {check.name for check in made if check.passed is False} == named


@pytest.fixture(scope="module")
def static_target(tiny_folder: Any, target_graph: Any) -> Iterator[OrtTargetSession]:
    """Standard operators, which read the mask above its diagonal too; the others' is causal."""
    from poss_export.targets.checkpoint import open_target

    contract = target_contract(open_target(str(tiny_folder("llama"))).config, "fp32")
    with OrtTargetSession(target_graph("llama", "static"), contract, 48, OrtOptions(threads=1)) as session:
        yield session


EVERY_BIT = [(row, column) for row in range(8) for column in range(8) if row != column]
ONE_OF_EACH_KIND = {(2, 1), (1, 2), (3, 1), (7, 0)}


@pytest.mark.parametrize(
    "place",
    [
        place if place in ONE_OF_EACH_KIND else pytest.param(place, marks=pytest.mark.slow)
        for place in EVERY_BIT
    ],
)
def test_no_bit_of_a_mask_may_be_wrong(
    place: tuple[int, int], static_target: OrtTargetSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).integers(0, 96, laws.TOKENS)
    assert laws.tree_equals_its_paths(static_target, tokens) <= TOLERANCE["fp32"]
    faults.bit(*place)(monkeypatch)
    assert laws.tree_equals_its_paths(static_target, tokens) > 10 * TOLERANCE["fp32"]
