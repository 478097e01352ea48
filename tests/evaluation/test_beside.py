"""What sequences that share calls do to each other is measured on real sessions, and told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.evaluation import beside, checks
from poss_export.exactness import NEAR_TIE, Beside, Exactness, floating
from poss_export.manifest import read_manifest
from poss_export.runtime.bundle import Bundle, open_bundle
from tests.fixtures import planted_faults

FLOATING = floating("fp32")


@pytest.mark.parametrize(("form", "most"), [("shared", 0.0), ("static", 1e-5)])
def test_a_build_measures_it(form: Any, most: float, bundle_of_form: Any) -> None:
    """In the static form single rows take other kernels where they are filled up."""
    manifest = read_manifest(bundle_of_form(form))
    assert manifest.beside is not None
    assert manifest.beside.slots == beside.SLOTS
    assert manifest.beside.difference <= most
    assert manifest.exactness.tie(chain=True, beside=True) == NEAR_TIE


def test_a_slot_that_reads_its_neighbours_row_is_found(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_faults.a_neighbours_row(monkeypatch)
    found = beside.measure_beside(tiny_bundle, read_manifest(tiny_bundle))
    assert found.difference > 0.1
    assert not FLOATING.beside(found).claims(chain=True, beside=True)


def test_nothing_is_left_behind(tiny_bundle: Path) -> None:
    before = sorted(tiny_bundle.iterdir())
    beside.measure_beside(tiny_bundle, read_manifest(tiny_bundle))
    assert sorted(tiny_bundle.iterdir()) == before


@pytest.mark.parametrize(
    ("alone", "difference", "tie"),
    [
        (FLOATING, None, None),
        (FLOATING, 0.0, NEAR_TIE),
        (FLOATING, 3e-4, 6e-4),
        (FLOATING, 6e-4, None),
        (FLOATING, float("nan"), None),
        (Exactness(2, 0.0, None), 0.0, 0.0),
        (Exactness(2, 0.0, None), 1e-4, 2e-4),
        (Exactness(2, None, None), 0.0, None),
    ],
)
def test_what_is_claimed(alone: Exactness, difference: float | None, tie: float | None) -> None:
    found = alone.beside(None if difference is None else Beside(8, difference))
    assert found.tie(chain=True, beside=True) == tie
    assert found.claims(chain=True, beside=True) is (tie is not None)
    assert found.tie(chain=True) == alone.tie(chain=True)


@pytest.fixture
def opened(tiny_bundle: Path) -> Any:
    with open_bundle(tiny_bundle, threads=1, slots=3) as bundle:
        yield bundle


@pytest.mark.parametrize(
    ("found", "passed", "words"),
    [
        (None, True, "difference "),  # as in floating point before it was measured
        (Beside(8, 0.0), True, "difference "),
        (Beside(8, 1.0), None, "not claimed of this bundle: difference "),
    ],
)
def test_verify_judges_what_is_claimed(
    found: Beside | None, passed: bool | None, words: str, opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "manifest", replace(opened.manifest, beside=found))
    (check,) = (one for one in checks.check_cache_laws(opened) if one.name == "beside others = alone")
    assert check.passed is passed
    assert check.detail.startswith(words)


def test_where_every_bit_is_claimed_no_difference_passes(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a quantised target, of which a step may flip; in floating point the same is within rounding."""
    quantised: dict[str, Any] = {
        "quantisation": {"target": {"scheme": "w8a16"}},
        "quality": {"widths": {"least_width": 1, "siblings": 0.0}},
    }
    monkeypatch.setattr("poss_export.evaluation.laws.beside_others_equals_alone", lambda *_: 1e-6)
    cases: list[tuple[dict[str, Any], bool]] = [(quantised, False), ({}, True)]
    for fields, passed in cases:
        manifest = replace(opened.manifest, beside=Beside(8, 0.0), **fields)
        with monkeypatch.context() as patch:
            patch.setattr(opened, "manifest", manifest)
            found = {check.name: check.passed for check in checks.check_cache_laws(opened)}
        assert found["beside others = alone"] is passed
