"""The documentation names files that exist, and its generated pages are what the program says of itself."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
PATH = re.compile(r"`([\w.-]+/[\w./-]+\.(?:py|md|txt|toml|jsonl))`")
GENERATOR = ROOT / "docs/generate_cli.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    names = set(PATH.findall(page.read_text(encoding="utf-8")))
    assert not {name for name in names if not (ROOT / name).exists() and not (page.parent / name).exists()}


@pytest.mark.parametrize("page", ["cli", "hardware", "presets"])
def test_generated_pages_are_current(page: str) -> None:
    generator = ROOT / f"docs/generate_{page}.py"
    result = subprocess.run([sys.executable, generator], capture_output=True, text=True, check=True)
    assert result.stdout == (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), "run: make docs"


def test_the_generator_descends_into_groups() -> None:
    namespace: dict[str, object] = {"__name__": "generate_cli"}
    exec(GENERATOR.read_text(encoding="utf-8"), namespace)
    page = namespace["page"]
    assert callable(page)
    leaf = click.Command("leaf", help="Do it.", params=[click.Option(["--how"], help="In this way.")])
    text = page(click.Group("top", commands=[click.Group("inner", commands=[leaf])]), "top")
    assert "## top inner leaf\n\n```text\nUsage: top inner leaf [OPTIONS]" in text
    assert "In this way." in text
