"""The checks behind `verify` must pass what is right, and above all fail what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.evaluation import checks
from poss_export.evaluation.equality import Divergence
from poss_export.prompts import Prompt, as_prompts
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.tree import DraftTree


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


EXACT_TREES = {"least_width": 4, "siblings": 1e-7}
EXACT_CHAINS = {"least_width": 4, "siblings": 0.5}
INEXACT = {"least_width": None, "siblings": 0.5}


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
        (None, set()),
        (INEXACT, set()),
        (EXACT_CHAINS, {"n tokens = n steps"}),
        (EXACT_TREES, {"n tokens = n steps", "tree = its paths", "commit = fresh run"}),
    ],
)
def test_laws_are_claimed_as_measured(
    widths: Any, claimed: set[str], bundle: Bundle, quantised: Callable[..., None]
) -> None:
    quantised(widths, "target")
    found = checks.check_cache_laws(bundle)
    always = {"next token = highest logit", "draft rows at once = in parts"}
    assert {check.name for check in found if check.passed} == claimed | always
    for check in found:
        if check.name not in claimed | always:
            assert check.passed is None
            assert check.detail.startswith("not claimed of a quantised graph: difference ")


def test_a_quantised_drafter_claims_less(bundle: Bundle, quantised: Callable[..., None]) -> None:
    quantised(INEXACT, "draft")
    found = {check.name: check.passed for check in checks.check_cache_laws(bundle)}
    assert found.pop("draft rows at once = in parts") is None
    assert [*found.values()] == [True] * 4
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
    monkeypatch.setattr(checks, "find_divergence", lambda *_: Divergence(3, 1e-6))
    wrong = checks.check_greedy(bundle, as_prompts(["<5> <9>"]), 12, lambda _: None)
    assert wrong.passed is (False if claimed else None)
    assert "1 mismatches, 0 near-ties" in wrong.detail
    assert [note.partition(",")[0] for note in wrong.notes] == ["mismatch at token 3"]


def test_sampling_passes_on_a_real_bundle(bundle: Bundle) -> None:
    check = checks.check_sampling(bundle, as_prompts(["<5> <9>", "<7>"]), 2000, lambda _: None)
    assert check.passed is True, check.detail


@pytest.mark.parametrize("prompts", [["<5> <9>"], ["<5> <9>", "<7>", "<8>"]])
def test_as_many_draws_as_asked_for(
    prompts: list[str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counting(tree: Any, logits: Any, sampling: Any, draws: int, seed: int) -> dict[int, float]:
        drawn.append(draws)
        return {0: 1.0}

    monkeypatch.setattr(checks, "node_chances", counting)
    assert checks.check_sampling(bundle, as_prompts(prompts), 2400, lambda _: None).passed is True
    assert sum(drawn) == 2400


def test_every_turn_is_an_answer(chat_bundle: Path) -> None:
    prompt = Prompt("p", ("<5> <9>", "<7>"))
    with open_bundle(chat_bundle, threads=1) as bundle:
        check = checks.check_greedy(bundle, [prompt], 6, lambda _: None)
    assert check.passed is True
    assert check.detail.startswith("2 answers, 12 tokens, 0 mismatches")
