"""Where the time of a call goes: from ONNX Runtime's own profile, by kind of node."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.kernels import bandwidth, main


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
