"""Calibration from Python: one request, the files and what is in them."""

from pathlib import Path

import pytest

from poss_export.acceptance import AcceptanceCurves
from poss_export.calibration.calibrate import CalibrateRequest, calibrate
from poss_export.calibration.record import load_record
from poss_export.errors import InputError
from poss_export.prompts import as_prompts


def test_a_request_gives_files_and_returns_them(tiny_bundle: Path, tmp_path: Path) -> None:
    """What is returned is what is written."""
    prompts = as_prompts([f"<{i}> <{i + 1}>" for i in range(1, 13)])
    request = CalibrateRequest(
        tiny_bundle,
        tmp_path / "samples.npz",
        tuple(prompts),
        threads=1,
        acceptance=tmp_path / "acceptance.json",
        argv=("made", "here"),
    )
    made = calibrate(request)
    assert load_record(request.record).sha256 == made.record.sha256
    assert made.record.argv == ("made", "here")
    assert made.acceptance is not None
    assert AcceptanceCurves.load(tmp_path / "acceptance.json") == made.acceptance
    assert made.acceptance.record_sha256 == made.record.sha256


def test_outputs_are_checked_before_anything_else(tmp_path: Path) -> None:
    """Even before the bundle is looked for."""
    with pytest.raises(InputError, match=r"no folder .* for 'samples.npz'; make it first"):
        calibrate(CalibrateRequest(tmp_path / "no bundle", tmp_path / "no" / "samples.npz"))
    assert not list(tmp_path.iterdir())
