"""What `deploy/` says of the package is true: names that it imports, options that it gives."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from poss_export.cli.main import main

DEPLOY = Path(__file__).parents[1] / "deploy"
GIVEN = [
    DEPLOY / "docker/Dockerfile",
    DEPLOY / "docker/Dockerfile.gpu",
    DEPLOY / "systemd/poss-export.service",
]


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.py")), ids=lambda file: file.name)
def test_imported_names_exist(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("poss_export."):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.mark.parametrize("file", GIVEN, ids=lambda file: file.name)
def test_given_options_are_those_of_serve(file: Path) -> None:
    (line,) = re.findall(r"^(?:ENTRYPOINT|ExecStart).*serve.*$", file.read_text(encoding="utf-8"), re.M)
    given = set(re.findall(r"--[a-z-]+", line))
    assert given
    assert given <= {name for option in main.commands["serve"].params for name in option.opts}
