"""The commands about TensorRT engines: what they print, and one clear message for every bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from poss_export.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_lint_passes_a_static_graph(target_graph: Callable[..., Path]) -> None:
    result = run("inspect", "--lint", target_graph("llama", "static"))
    assert result.exit_code == 0
    assert "0 violations of the rules of 20" in result.stdout


def test_lint_names_node_rule_and_remedy(target_graph: Callable[..., Path]) -> None:
    path = target_graph("llama", "shared")
    text, values = (run("inspect", "--lint", path, *options) for options in ([], ["--json"]))
    assert text.exit_code == values.exit_code == 1
    violations: list[dict[str, Any]] = json.loads(values.stdout)["violations"]
    assert len(text.stdout.splitlines()) == len(violations) + 1
    assert {violation["rule"] for violation in violations} == {"domain"}
    first = text.stdout.splitlines()[0]
    assert first.startswith(f"GroupQueryAttention '{violations[0]['node']}' breaks rule domain (")
    assert first.endswith("export with cache form 'static', which has standard operators only")


def test_lint_refuses_what_is_no_graph(tmp_path: Path) -> None:
    result = run("inspect", "--lint", tmp_path / "none.onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be read as ONNX" in result.stderr
