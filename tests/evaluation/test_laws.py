"""The laws of caches hold for our sessions, and faulty ones break them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.evaluation import checks
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.tree import DraftTree


def failed(found: list[checks.Check]) -> set[str]:
    return {check.name for check in found if check.passed is False}


def test_the_laws_hold(bundle: Bundle) -> None:
    found = checks.check_cache_laws(bundle)
    assert [check.passed for check in found] == [True] * 5


def test_beside_others_as_alone(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bundle(tiny_bundle, threads=1, slots=3) as bundle:
        assert all(check.passed for check in checks.check_cache_laws(bundle))
        length = type(bundle.target).length

        def confused(session: Any, slot: int = 0) -> int:
            """Take the length of another slot."""
            return length(session, min(slot, 1))

        forward_all = bundle.target.forward_all

        def forward(calls: Any) -> Any:
            with monkeypatch.context() as patch:
                if len(calls) > 1:
                    patch.setattr(type(bundle.target), "length", confused)
                return forward_all(calls)

        monkeypatch.setattr(bundle.target, "forward_all", forward)
        assert failed(checks.check_cache_laws(bundle)) == {"beside others = alone"}


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
