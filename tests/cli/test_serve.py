"""How many answers `serve` makes at once, and what it says of them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poss_export.cli.serve import _slots
from poss_export.exactness import Beside
from poss_export.manifest import read_manifest

GOOD, BAD = Beside(8, 0.0), Beside(8, 0.5)
ENGINE: Any = SimpleNamespace(spec=SimpleNamespace(flavour="tensorrt-rtx", slots=4))


@pytest.mark.parametrize(
    ("beside", "asked", "slots", "words"),
    [
        (GOOD, None, 8, ""),
        (GOOD, 3, 3, ""),
        (BAD, None, 1, "answering in turns"),
        (BAD, 4, 4, "warning: "),
        (BAD, 1, 1, ""),
        (None, None, 8, "warning: "),
        (None, 1, 1, ""),
    ],
)
def test_it_answers_in_turns_where_answers_would_change(
    beside: Beside | None,
    asked: int | None,
    slots: int,
    words: str,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = replace(read_manifest(bundle), beside=beside)
    assert _slots(manifest, "onnxruntime", asked) == slots
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert bool(said) is bool(words)
    if words:
        reason = "not measured when it was built" if beside is None else "differ by 5.0e-01"
        assert reason in said


def test_engines_answer_as_many_as_they_are_made_for(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = replace(read_manifest(bundle), beside=BAD, engines=(ENGINE,))
    assert _slots(manifest, "tensorrt-rtx", None) == 4
    assert capsys.readouterr().err.startswith("warning: ")
