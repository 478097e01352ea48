"""The checks behind `verify` must pass what is right, and above all fail what is wrong."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.evaluation import checks, distribution
from poss_export.evaluation.differences import difference, tree_difference
from poss_export.evaluation.equality import Divergence
from poss_export.prompts import Prompt, as_prompts
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Sampling, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Any) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as engines:
        yield engines


def failed(found: list[checks.Check]) -> set[str]:
    return {check.name for check in found if check.passed is False}


def test_the_laws_hold(bundle: Bundle) -> None:
    found = checks.check_cache_laws(bundle)
    assert [check.passed for check in found] == [True] * 4


def forgetful_commit(session: Any, path: Any, slot: int = 0) -> None:
    """Keep the first rows in place of those of the path."""
    session._lengths[slot] += len(path)


def spoiled(tree: DraftTree, **parts: Any) -> DraftTree:
    """Return the tree with another mask or other depths."""
    other = DraftTree(tree.tokens, tree.parents, tree.scores)
    vars(other).update({"mask": tree.mask, "depths": tree.depths, **parts})
    return other


def causal_forward(session: Any, tree: DraftTree, rows: Any = None, slot: int = 0) -> Any:
    """Let every token see all before it: a tree's branches mix."""
    return ORIGINAL["forward"](session, spoiled(tree, mask=np.tri(len(tree), dtype=bool)), rows, slot)


def late_forward(session: Any, tree: DraftTree, rows: Any = None, slot: int = 0) -> Any:
    """Rotate by the place in the call in place of the depth."""
    return ORIGINAL["forward"](session, spoiled(tree, depths=np.arange(len(tree))), rows, slot)


ORIGINAL: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("method", "fault", "broken"),
    [
        ("commit", forgetful_commit, {"commit = fresh run"}),
        ("forward", causal_forward, {"tree = its paths", "commit = fresh run"}),
        ("forward", late_forward, {"tree = its paths", "commit = fresh run"}),
    ],
)
def test_a_faulty_session_breaks_a_law(
    method: str, fault: Callable[..., Any], broken: set[str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(bundle.target)
    ORIGINAL[method] = getattr(kind, method)
    monkeypatch.setattr(kind, method, fault)
    assert failed(checks.check_cache_laws(bundle)) == broken


def test_a_drafter_that_loses_rows_breaks_its_law(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle.drafter is not None
    kind = type(bundle.drafter)
    propose = kind.propose

    def forget(session: Any, next_tokens: Any, features: Any) -> Any:
        tree = propose(session, next_tokens, features)
        session.trim(0)
        return tree

    monkeypatch.setattr(kind, "propose", forget)
    assert failed(checks.check_cache_laws(bundle)) == {"draft rows at once = in parts"}


@pytest.mark.parametrize("check", [checks.check_greedy, checks.check_sampled])
def test_mismatches_are_counted_and_listed(
    check: Callable[..., checks.Check], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = as_prompts(["<5> <9>", *(f"<{number}>" for number in range(7, 13))])
    reported: list[str] = []
    right = check(bundle, prompts, 12, reported.append)
    assert right.passed is True
    assert right.notes == ()
    assert len(reported) == len(prompts)
    kind = type(bundle.target)
    commit = kind.commit
    monkeypatch.setattr(kind, "commit", lambda session, path, slot=0: commit(session, range(len(path)), slot))
    wrong = check(bundle, prompts, 40, reported.append)
    assert wrong.passed is False
    assert all(note.startswith("mismatch at token ") for note in wrong.notes)


EXACT_TREES = {"least_width": 4, "tree_exact": True}
EXACT_CHAINS = {"least_width": 4, "tree_exact": False}
INEXACT = {"least_width": None, "tree_exact": False}


@pytest.fixture
def quantised(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return quantised(widths, *graphs): let the bundle's manifest call it a quantised one."""

    def change(widths: dict[str, Any] | None, *graphs: Any) -> None:
        manifest = replace(
            bundle.manifest,
            quantisation={graph: {"scheme": "w8a8"} for graph in graphs},
            quality={} if widths is None else {"widths": widths},
        )
        monkeypatch.setattr(bundle, "manifest", manifest)

    return change


@pytest.mark.parametrize(
    ("widths", "claimed"),
    [
        (None, {"draft rows at once = in parts"}),
        (INEXACT, {"draft rows at once = in parts"}),
        (EXACT_CHAINS, {"n tokens = n steps", "draft rows at once = in parts"}),
        (
            EXACT_TREES,
            {"n tokens = n steps", "tree = its paths", "commit = fresh run", "draft rows at once = in parts"},
        ),
    ],
)
def test_laws_are_claimed_as_measured(
    widths: Any, claimed: set[str], bundle: Bundle, quantised: Callable[..., None]
) -> None:
    quantised(widths, "target")
    found = checks.check_cache_laws(bundle)
    assert {check.name for check in found if check.passed} == claimed
    for check in found:
        if check.name not in claimed:
            assert check.passed is None
            assert check.detail.startswith("not claimed of a quantised graph: difference ")


def test_a_quantised_drafter_claims_less(bundle: Bundle, quantised: Callable[..., None]) -> None:
    quantised(INEXACT, "draft")
    found = {check.name: check.passed for check in checks.check_cache_laws(bundle)}
    assert found.pop("draft rows at once = in parts") is None
    assert [*found.values()] == [True] * 3
    assert checks.check_greedy(bundle, as_prompts(["<5> <9>"]), 12, lambda _: None).passed is True


def as_chain(tree: DraftTree) -> DraftTree:
    """Return the path from the root to the last node."""
    path = [len(tree) - 1]
    while path[0]:
        path.insert(0, int(tree.parents[path[0]]))
    return DraftTree.chain(tree.tokens[path])


@pytest.mark.parametrize(
    ("widths", "chains", "claimed"),
    [
        (None, False, False),
        (INEXACT, True, False),
        (EXACT_CHAINS, False, False),
        (EXACT_CHAINS, True, True),
        (EXACT_TREES, False, True),
    ],
)
def test_greedy_is_claimed_as_measured(
    widths: Any,
    chains: bool,
    claimed: bool,
    bundle: Bundle,
    quantised: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantised(widths, "target")
    if chains:
        assert bundle.drafter is not None
        kind = type(bundle.drafter)
        propose = kind.propose
        monkeypatch.setattr(kind, "propose", lambda *call: as_chain(propose(*call)))
    right = checks.check_greedy(bundle, as_prompts(["<5> <9>"]), 12, lambda _: None)
    assert right.passed is (True if claimed else None)
    assert right.detail.startswith("not claimed of a quantised graph: 1 answers") != claimed
    # No near-tie excuses what was measured to be exact.
    monkeypatch.setattr(checks, "find_divergence", lambda *_: Divergence(3, 1e-9))
    wrong = checks.check_greedy(bundle, as_prompts(["<5> <9>"]), 12, lambda _: None)
    assert wrong.passed is (False if claimed else None)
    assert "1 mismatches, 0 near-ties" in wrong.detail
    assert [note.partition(",")[0] for note in wrong.notes] == ["mismatch at token 3"]


def test_sampling_passes_on_a_real_bundle(bundle: Bundle) -> None:
    check = checks.check_sampling(bundle, as_prompts(["<5> <9>", "<7>"]), 2000, lambda _: None)
    assert check.passed is True, check.detail


# Two children under the root and one below the first; logits of a random target over 12 tokens.
TREE = DraftTree.with_root(0, np.array([3, 5, 7]), np.array([0, 0, 1]), np.array([-1, -2, -3], np.float32))
LOGITS = np.random.default_rng(1).normal(size=(4, 12)).astype(np.float32)
LOGITS[[0, 0, 1], [3, 5, 7]] += 3  # the drafter is good: all nodes are visited
SAMPLINGS = [Sampling(1.0), Sampling(0.7, top_k=6), Sampling(1.3, top_p=0.8), Sampling(1.0, min_p=0.05)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_accepted_trees_keep_the_distribution(sampling: Sampling) -> None:
    chances = distribution.node_chances(TREE, LOGITS, sampling, 20_000, seed=0)
    assert chances.keys() >= {0, 1}
    assert min(chances.values()) > 1e-3


RNG = np.random.default_rng(0)


def always(tree: DraftTree, output: TargetOutput, position: int) -> Round:
    """Accept the first child without a draw."""
    q = warp(output.logits[1], Sampling(1.0))
    return Round(tree, (0, 1), int(RNG.choice(12, p=q)))


def unmoved(tree: DraftTree, output: TargetOutput, position: int) -> Round:
    """After a refusal draw from the whole distribution, which may give the refused token again."""
    q = warp(output.logits[0], Sampling(1.0)).astype(np.float64)
    accepted = RNG.random() < q[3]
    return Round(tree, (0, 1), 0) if accepted else Round(tree, (0,), int(RNG.choice(12, p=q / q.sum())))


@pytest.mark.parametrize("fault", [always, unmoved])
def test_a_wrong_acceptance_rule_shows(fault: Callable[..., Round], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "verifier", lambda sampling: fault)
    chances = distribution.node_chances(TREE, LOGITS, Sampling(1.0), 2000, seed=0)
    assert min(chances.values()) < 1e-9


def test_chance_of_a_fair_sample_is_uniform() -> None:
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.full(30, 0.3))
    chances = [distribution.chance(Counter(rng.choice(30, size=500, p=q).tolist()), q) for _ in range(400)]
    assert 0.4 < np.mean(chances) < 0.6
    assert 0.02 < np.mean(np.array(chances) < 0.1) < 0.2


def test_chance_of_special_samples() -> None:
    assert distribution.chance(Counter({1: 10}), np.array([0.0, 1.0, 0.0])) == 1.0
    assert distribution.chance(Counter({0: 1, 1: 10}), np.array([0.0, 1.0, 0.0])) == 0.0
    # By the tables of the chi-square distribution: 10.83 at one degree of freedom is 0.001.
    assert distribution.chance(Counter({0: 552, 1: 448}), np.array([0.5, 0.5])) == pytest.approx(
        1e-3, rel=0.2
    )


def test_differences_are_relative_to_the_largest_value() -> None:
    assert difference(np.array([1.0, 98.0]), np.array([2.0, 100.0])) == 0.02
    assert np.isnan(difference(np.array([np.nan]), np.array([1.0])))


def test_zeros_differ_by_what_is_not_zero() -> None:
    assert difference(np.array([0, 0.5]), np.zeros(2)) == 0.5
    certain = DraftTree.chain([7, 8, 9])  # every score is 0: the drafter has no doubt
    assert tree_difference(certain, certain) == 0


def test_trees_may_differ_in_what_nearly_ties() -> None:
    def tree(*nodes: tuple[int, int, float]) -> DraftTree:
        tokens, parents, scores = (np.array(column) for column in zip(*nodes, strict=True))
        return DraftTree.with_root(0, tokens, parents, scores)

    whole = tree((4, 0, -1.0), (5, 0, -2.0), (6, 1, -4.0))
    assert tree_difference(whole, whole) == 0
    assert tree_difference(tree((4, 0, -1.0), (5, 0, -2.0), (7, 2, -4.0)), whole) == 0
    assert tree_difference(tree((4, 0, -1.0), (9, 0, -2.0), (6, 1, -4.0)), whole) == pytest.approx(0.5)
    assert tree_difference(tree((4, 0, -1.2), (5, 0, -2.0), (6, 1, -4.0)), whole) == pytest.approx(0.05)


def test_every_turn_is_an_answer(chat_bundle: Path) -> None:
    prompt = Prompt("p", ("<5> <9>", "<7>"))
    with open_bundle(chat_bundle, threads=1) as bundle:
        check = checks.check_greedy(bundle, [prompt], 6, lambda _: None)
    assert check.passed is True
    assert check.detail.startswith("2 answers, 12 tokens, 0 mismatches")
