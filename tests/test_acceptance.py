"""Acceptance curves: the chances between and beyond their knots, and their files."""

import json
from pathlib import Path

import numpy as np
import pytest

from poss_export.acceptance import AcceptanceCurves
from poss_export.errors import InputError


def test_the_chance_is_linear_between_knots_and_flat_beyond(fitted: AcceptanceCurves) -> None:
    curve = fitted.depths[1]
    x, y = curve.probabilities, curve.chances
    assert fitted.chance(2, np.log((x[0] + x[1]) / 2)) == pytest.approx((y[0] + y[1]) / 2)
    assert fitted.chance(2, -99.0) == y[0]
    assert fitted.chance(2, 0.0) == y[-1]
    assert fitted.chance(7, np.log(x[1])) == fitted.chance(2, np.log(x[1])) != fitted.chance(1, np.log(x[1]))
    assert fitted.chance(0, 0.0) == 1.0
    assert (np.diff([fitted.chance(1, s) for s in np.linspace(-5, 0, 200)]) >= 0).all()


def test_it_is_kept_as_json(fitted: AcceptanceCurves, tmp_path: Path) -> None:
    path = tmp_path / "acceptance.json"
    fitted.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert AcceptanceCurves.load(path) == fitted
    assert json.loads(path.read_text())["format_version"] == 1


def test_other_files_are_refused(fitted: AcceptanceCurves, tmp_path: Path) -> None:
    path = tmp_path / "acceptance.json"
    with pytest.raises(InputError, match="is not an acceptance calibration; make one with"):
        AcceptanceCurves.load(path)
    values = fitted.to_dict()
    for content, message in (
        ("[]", "is not an acceptance calibration"),
        ("nonsense", "is not an acceptance calibration"),
        (json.dumps({**values, "format_version": 2}), "has format version 2, this release reads 1"),
        (json.dumps({k: v for k, v in values.items() if k != "tree"}), "is incomplete"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            AcceptanceCurves.load(path)
    with pytest.raises(InputError, match=r"cannot write .* choose another output file"):
        fitted.save(tmp_path / "none" / "acceptance.json")
