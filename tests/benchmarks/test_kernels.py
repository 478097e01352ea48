"""Where the time of a call goes: from ONNX Runtime's own profile, by kind of node."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.kernels import bandwidth, draft_kinds, main, target_kinds, weight_bytes
from poss_export.manifest import TARGET_GRAPH


def test_kinds_of_the_target_by_width(tiny_bundle: Path) -> None:
    one, four = target_kinds(tiny_bundle, past=8, widths=(1, 4), repeats=2, threads=1)
    assert set(one) == set(four)
    assert {"MatMul", "GroupQueryAttention", "FusedMatMul"} <= set(one)
    assert all(value >= 0 for value in one.values())
    assert one["MatMul"] > 0


def test_kinds_of_the_draft_round(tiny_bundle: Path) -> None:
    (kinds,) = draft_kinds(tiny_bundle, past=8, rows=(2,), repeats=1, threads=1)
    assert "TopK" in kinds
    assert "GroupQueryAttention" not in kinds


def test_weights_that_are_multiplied_by(tiny_bundle: Path) -> None:
    data = (tiny_bundle / f"{TARGET_GRAPH}.data").stat().st_size
    assert 0.5 * data < weight_bytes(tiny_bundle / TARGET_GRAPH) <= data


def test_the_command_prints_kinds_and_floor(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.kernels.WIDTHS", (1, 2))
    monkeypatch.setattr("benchmarks.kernels._READ", 2**20)
    options = ["--past", "8", "--repeats", "1", "--threads", "1", "--json", str(tmp_path / "report.json")]
    result = CliRunner().invoke(main, [str(tiny_bundle), *options])
    assert result.exit_code == 0, result.output
    assert "GroupQueryAttention" in result.output
    assert "floor" in result.output
    assert (tmp_path / "report.json").is_file()


def test_bandwidth_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kernels._READ", 2**24)
    assert 1e8 < bandwidth(2) < 1e13
