"""Engines say what they are."""

from collections.abc import Callable
from pathlib import Path

from poss_export.engine_spec import embedded_spec
from poss_export.manifest import read_manifest


def test_an_engine_says_what_it_is(engine_bundle: Callable[..., Path]) -> None:
    folder = engine_bundle("bf16")
    for entry in read_manifest(folder).engines:
        assert embedded_spec(folder / entry.spec.file) == entry.spec
