"""Profiles of nothing are refused."""

from pathlib import Path

import pytest

from poss_export.errors import InputError
from poss_export.evaluation.latency import profile_bundle
from poss_export.runtime.bundle import open_bundle


def test_numbers_below_one_are_refused(tiny_bundle: Path) -> None:
    with (
        open_bundle(tiny_bundle, threads=1) as bundle,
        pytest.raises(InputError, match="widths, contexts and repeats must be at least 1, not 0"),
    ):
        profile_bundle(bundle, widths=[1], contexts=[5], repeats=0, report=lambda _: None)
