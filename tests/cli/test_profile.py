"""Profiles of tiny bundles: what the report holds, whatever the clock says."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from poss_export.cli.main import main

CAPACITY = 48


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["profile", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> dict[str, Any]:
    options = ("--width", 1, "--width", 9, "--context", 5, "--context", 30, "--repeats", 4)
    result = run(tiny_bundle, *options, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def test_every_call_has_its_latency(report: dict[str, Any]) -> None:
    def sizes(call: str, name: str) -> list[tuple[int, int]]:
        return [(row["context"], row[name]) for row in report[call]]

    assert sizes("prefill", "tokens") == [(5, 5), (30, 30)]
    assert sizes("verify", "width") == [(5, 1), (5, 9), (30, 1), (30, 9)]
    assert sizes("draft", "rows") == [(5, 1), (5, 5), (30, 1), (30, 5)]  # one new row, or depth and bonus
    assert sizes("round", "width") == [(5, 9), (30, 9)]
    for call in ("prefill", "verify", "draft", "round"):
        for row in report[call]:
            assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
            assert row["repeats"] == (1 if call == "prefill" else 4)
    for row in report["verify"]:
        assert row["tokens_per_second"] == pytest.approx(1000 * row["width"] / row["median_ms"], rel=0.01)


def test_the_report_says_what_was_measured(report: dict[str, Any]) -> None:
    assert report["profile_version"] == 1
    assert report["engine"].keys() == {"backend", "provider", "version", "device", "threads"}
    assert (report["engine"]["backend"], report["engine"]["threads"]) == ("onnxruntime", 1)
    assert (report["precision"], report["draft_precision"]) == ("fp32", "fp32")
    assert (report["cache_form"], report["capacity"]) == ("shared", CAPACITY)
    assert report["tree"] == {"depth": 4, "top_k": 3, "nodes": 8}
    assert report["target"]["name"]
    assert report["drafter"]["sha256"] == "0" * 64
    memory = report["memory"]
    assert memory["target_caches"] == 2 * 2 * 2 * CAPACITY * 16 * 4  # layers, key and value, heads, ...
    assert memory["process_peak"] > 1_000_000


def test_defaults_fit_the_bundle_and_the_table_has_a_row_a_call(tiny_bundle: Path) -> None:
    result = run(tiny_bundle, "--repeats", 1)
    assert result.exit_code == 0, result.output
    rows = [line.split()[:3] for line in result.stdout.splitlines() if line.strip()]
    assert ["verify", "16", "32"] in rows  # 48 tokens of capacity, calls of up to 32
    assert ["round", "16", "9"] in rows
    assert "measuring behind 16 tokens" in result.stderr


def test_costs_are_kept_for_plans(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = run(tiny_bundle, "--repeats", 1, "--threads", 1, "--save")
    assert result.exit_code == 0, result.output
    (kept,) = tmp_path.rglob("*.json")
    assert str(kept) in result.stderr.replace("\n", "")
    assert json.loads(kept.read_text())["fingerprint"]["threads"] == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = CliRunner().invoke(main, ["profile", str(tiny_bundle), "--repeats", "1", "--save"])
    assert result.exit_code == 2
    assert "set XDG_CACHE_HOME" in result.stderr


def test_the_plot_is_a_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    assert run(tiny_bundle, "--repeats", 1, "--plot", path).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", 40, "--width", 9), r"do not all fit the capacity 48: ask for shorter contexts"),
        (("--plot", "plot.jpg"), "name a file that ends in .png"),
        (("--plot", "no/such/folder.png"), "no folder 'no/such' for 'folder.png'"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: Any, message: str, tiny_bundle: Path) -> None:
    result = run(tiny_bundle, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_plot_needs_matplotlib(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run(tiny_bundle, "--plot", tmp_path / "plot.png")
    assert result.exit_code == 2
    assert "pip install 'poss-export[plot]'" in result.stderr


def test_graphs_by_themselves(tiny_bundle: Path) -> None:
    result = run(tiny_bundle, "--engine-only", "--repeats", 3, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["calls"]
    assert [(row["call"], row["graph"]) for row in rows] == [
        *(("prefill", "target"), ("step", "target"), ("draft", "draft"), ("verify", "target")),
    ]
    for row in rows:
        assert 0 < row["engine_ms"] <= row["session_ms"]
        assert row["polygraphy_ms"] > 0
    table = run(tiny_bundle, "--engine-only", "--repeats", 1, "--threads", 1)
    assert "loop adds" in table.stdout


def test_layers(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "layers.png"
    result = run(tiny_bundle, "--layers", "--repeats", 1, "--threads", 1, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert "GroupQueryAttention" in result.stdout
    assert result.stdout.count("heaviest nodes") == 3
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--layers", "--engine-only"])
def test_graphs_by_themselves_elsewhere(option: str, tiny_bundle: Path) -> None:
    result = run(tiny_bundle, option, "--backend", "tensorrt-rtx")
    assert result.exit_code == 2
    assert "in ONNX Runtime on the CPU" in result.stderr
