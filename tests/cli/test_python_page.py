"""`docs/python.md` is true: its blocks run on tiny models, or name what is there."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from poss_export.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/python.md"
BLOCK = re.compile(r"^## (.+?)$.*?^```python\n(.*?)^```$", re.M | re.S)
BLOCKS = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
# Those that take longer than a test may, have no end, or need a chat template: of these only the names are
# looked up.
LONG = {"build, quantised", "chat", "serve", "synthesise", "train"}


def test_every_command_has_a_block() -> None:
    assert {*main.commands} <= {*BLOCKS}


def test_blocks_run(target: Path, drafter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": f"<{number}> <9>"}) for number in range(3, 15)]
    Path("prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    names = {
        '"smollm2-135m"': repr(str(target)),
        '"poss-2"': repr(str(drafter)),
        '"Why is the sky blue?"': '"<5> <7>", raw=True',
    }
    for heading, block in BLOCKS.items():
        if heading in LONG:
            continue
        for name, tiny in names.items():
            block = block.replace(name, tiny)
        exec(compile(block, f"docs/python.md, {heading}", "exec"), {})
    assert Path("bundle/manifest.json").is_file()
    assert Path("samples.npz").is_file()


@pytest.mark.parametrize("heading", sorted(LONG))
def test_blocks_name_what_is_there(heading: str) -> None:
    tree = ast.parse(BLOCKS[heading])
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names: dict[str, Any] = {}
    exec(compile(ast.Module([*imports], []), heading, "exec"), names)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in names.keys() - {"print"}:
            parameters = inspect.signature(names[call.func.id]).parameters
            assert {keyword.arg for keyword in call.keywords} <= parameters.keys()
