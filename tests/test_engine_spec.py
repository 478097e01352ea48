"""Engines say what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from poss_export.engine_spec import embedded_spec, ladder_of, target_profiles
from poss_export.manifest import read_manifest


def test_an_engine_says_what_it_is(engine_bundle: Callable[..., Path]) -> None:
    folder = engine_bundle("bf16")
    for entry in read_manifest(folder).engines:
        assert embedded_spec(folder / entry.spec.file) == entry.spec


@pytest.mark.parametrize(
    ("tree_width", "asked", "widths"),
    [
        (None, (), (2, 4, 8, 16)),
        (12, (), (2, 4, 8, 12)),
        (16, (), (2, 4, 8, 16)),
        (2, (), (2,)),
        (25, (), (2, 4, 8, 16, 25)),
        (None, (3, 20), (3, 20)),
        (12, (3, 20), (3, 12, 20)),
        (12, (12,), (12,)),
    ],
)
def test_the_widths_of_an_engine(
    tree_width: int | None, asked: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    assert ladder_of(tree_width, asked) == widths
    open_one, *fixed = target_profiles(256, widths)
    assert not open_one.fixed
    assert all(profile.fixed for profile in fixed)
    for profile, width in zip(fixed, widths, strict=True):
        assert profile.fits(seq=width, rows=width)
        assert not profile.fits(seq=width, rows=1)
