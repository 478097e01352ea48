"""Draft calls for several answers, together and in turns, leave the sessions as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.drafts import IN_TURNS, TOGETHER, measure
from poss_export.errors import InputError
from poss_export.runtime.bundle import open_bundle


def test_both_ways_are_timed(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1, slots=3) as bundle:
        found = measure([bundle], past=5, rows=2, slots=(1, 3), repeats=2)
        assert bundle.drafter is not None
        assert [bundle.drafter.length(slot) for slot in range(3)] == [5] * 3
    assert list(found) == [(str(tiny_bundle), n, way) for n in (1, 3) for way in (TOGETHER, IN_TURNS)]
    assert min(found.values()) > 0


def test_a_bundle_without_a_drafter(changed: Callable[..., Path]) -> None:
    with (
        open_bundle(changed(drafter=None), threads=1) as bundle,
        pytest.raises(InputError, match="no drafter"),
    ):
        measure([bundle], past=5, rows=2, slots=(1,), repeats=1)
