"""`--help` is fast because it imports nothing heavy: this tests the cause, a clock would test the machine."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from poss_export.cli.main import main

HEAVY = {
    "gguf",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "tokenizers",
    "torch",
}
HEAVY |= {"jinja2", "matplotlib", "polygraphy", "tensorrt_rtx", "transformers"}
HEAVY |= {"prometheus_client", "pydantic", "starlette", "uvicorn"}
SCRIPT = """
import sys
from poss_export.cli.main import main
try:
    main(sys.argv[1:], prog_name="poss-export")
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(main.commands))], ids=" ".join)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    arguments = [sys.executable, "-c", SCRIPT, *command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "Usage: poss-export" in result.stdout
    imported = set(result.stderr.split())
    assert "click" in imported
    assert not imported & HEAVY


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from poss_export.cli.main import main
try:
    main(["build", "--help"])
except SystemExit:
    pass
print(sorted({"numpy", "torch", "onnx", "onnxruntime", "tokenizers", "rich", "jinja2"} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "--tree-depth" in result.stdout


def test_options_of_a_build_have_headings() -> None:
    text = CliRunner().invoke(main, ["build", "--help"]).stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Target:", "Drafter:", "Precision:", "Engines:", "Output:", "Other:"]
    assert text.split("Other:\n")[1].split() == ["-h,", "--help", "Show", "this", "message", "and", "exit."]
