"""Plots are pictures."""

from dataclasses import replace
from pathlib import Path

import pytest

from poss_export.acceptance import AcceptanceCurves
from poss_export.plots import plot_acceptance


@pytest.mark.parametrize("depths", [1, 2])
def test_the_plot_is_a_picture(depths: int, fitted: AcceptanceCurves, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    plot_acceptance(replace(fitted, depths=fitted.depths[:depths]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
