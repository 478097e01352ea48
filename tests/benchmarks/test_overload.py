"""The command that overloads a server."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import overload


def test_a_short_overload(chat_bundle: Path, tmp_path: Path) -> None:
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text("\n".join(json.dumps({"prompt": f"<{i}> <9>"}) for i in range(5, 8)))
    options = [
        "--minutes",
        "0.03",
        "--max-new-tokens",
        "6",
        "--threads",
        "1",
        "--queue",
        "1",
        "--factor",
        "4",
    ]
    arguments = [str(chat_bundle), "--prompts", str(prompts), *options, "--json", str(report)]
    result = CliRunner().invoke(overload.main, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())
    assert figures["outcomes"]["right"] > 0
    assert figures["outcomes"]["refused"] > 0
    assert (figures["wrong"], figures["exit_code"]) == ([], 0)


def test_growth_of_memory() -> None:
    noted = [(seconds, 100.0 + 2 * seconds / 60) for seconds in range(0, 600, 10)]
    assert overload.growth(noted) == pytest.approx(2)
    assert overload.growth([(0, 50.0), *((s, 100.0) for s in range(1, 9))]) == pytest.approx(0)
