"""Messages serve Python as well as the command line: they name no flag, and options that there are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from poss_export.cli.main import main

ROOT = Path(__file__).parents[1]
LIBRARY = (
    *("runtime", "evaluation", "calibration", "quantisation", "exporters", "bundling", "drafters"),
    *("targets", "training", "server"),
)
FLAG = re.compile(r"(?<![\w-])--[a-z]")
OTHERS = Path("evaluation/feeds.py")  # writes command lines of other programs
PIP = re.compile(r"pip install [^:;,]*")  # whose flags are its own


def trees() -> Iterator[tuple[Path, ast.AST]]:
    spine = (ROOT / "src/poss_export").glob("*.py")
    for file in sorted([*spine, *(file for folder in LIBRARY for file in (ROOT / folder).rglob("*.py"))]):
        yield file.relative_to(ROOT), ast.parse(file.read_text(encoding="utf-8"))


def test_no_string_names_a_flag() -> None:
    constants = [
        (file, node.value)
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
    ]
    texts = [(file, value) for file, value in constants if isinstance(value, str)]
    ours = [(file, text) for file, text in texts if file != OTHERS]
    assert not [(file, text) for file, text in ours if FLAG.search(PIP.sub("", text))]


def test_options_of_errors_are_parameters_of_commands() -> None:
    calls = [node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    errors = [call for call in calls if getattr(call.func, "id", "").endswith("Error")]
    given = [keyword.value for call in errors for keyword in call.keywords if keyword.arg == "options"]
    names = {node.value for value in given for node in ast.walk(value) if isinstance(node, ast.Constant)}
    options = [o.name for c in main.commands.values() for o in c.params if isinstance(o, click.Option)]
    assert "capacity" in names
    assert names <= {*options}
