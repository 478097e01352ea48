"""Feeds of a bundle, and Polygraphy itself with them."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from poss_export.cli.main import main
from poss_export.contract import PRESENT
from poss_export.evaluation.feeds import real_calls
from poss_export.runtime.bundle import open_bundle

POLYGRAPHY = str(Path(sys.executable).with_name("polygraphy"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["feeds", *map(str, arguments)], catch_exceptions=False)


def polygraphy(*arguments: object) -> str:
    command = [POLYGRAPHY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("feeds") / "made"
    result = run(tiny_bundle, "-o", folder, "--prompt", "<5> <9> <11>", "--threads", 1)
    assert result.exit_code == 0, result.output
    return folder, result.stdout.splitlines()


def test_the_commands_that_are_printed_run(made: tuple[Path, list[str]]) -> None:
    folder, lines = made
    assert (folder / "commands.sh").read_text().splitlines() == lines
    assert len(lines) == 5
    for line in lines[:2]:
        program, *arguments = shlex.split(line)
        assert program == "polygraphy"
        polygraphy(*arguments)


def test_polygraphy_computes_what_the_session_does(
    made: tuple[Path, list[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    from polygraphy.json import load_json

    folder, _ = made
    with open_bundle(tiny_bundle, threads=1) as bundle:
        calls = {call.name: call for call in real_calls(bundle, bundle.encode("<5> <9> <11>", raw=True))}
        assert [*calls] == ["prefill", "step", "draft", "verify"]
        (loaded,) = load_json(str(folder / "verify.json"))
        for name, values in calls["verify"].feed.items():
            np.testing.assert_array_equal(loaded[name], values)
        expected = bundle.target.forward(drafted(bundle, calls), slot=0).next_tokens.copy()
    saved, loader = tmp_path / "outputs.json", f"{folder / 'loader.py'}:verify"
    graph = tiny_bundle / "target.onnx"
    polygraphy("run", graph, "--onnxrt", "--data-loader-script", loader, "--save-outputs", saved)
    ((_, (found,)),) = load_json(str(saved)).items()
    np.testing.assert_array_equal(found["next_tokens"][0], expected)
    rows = [values.shape[2] for name, values in found.items() if name.startswith(PRESENT)]
    assert set(rows) == {3 + calls["verify"].feed["input_ids"].shape[1]}


def drafted(bundle: Any, calls: Any) -> Any:
    """Return the tree that was verified, drawn again."""
    from poss_export.runtime.loop import prefill
    from poss_export.runtime.sampling import GREEDY
    from poss_export.runtime.sequence import Sequence
    from poss_export.runtime.verify import verifier

    bundle.target.reset()
    bundle.drafter.reset()
    ids = np.array(bundle.encode("<5> <9> <11>", raw=True))
    sequence = Sequence(ids, verifier(GREEDY))
    prefill(bundle.target, bundle.drafter, sequence)
    tree = sequence.draft(bundle.drafter)
    np.testing.assert_array_equal(tree.tokens, calls["verify"].feed["input_ids"][0])
    return tree


def test_an_output_that_exists(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, "-o", tmp_path, "--threads", 1)
    assert result.exit_code == 2
    assert "exists already: choose another folder (-o)" in result.stderr


def test_a_prompt_without_room(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, "-o", tmp_path / "x", "--prompt", "<5> " * 48, "--threads", 1)
    assert result.exit_code == 2
    assert "leaves no room in the capacity of 48" in result.stderr
    assert not [*tmp_path.iterdir()]
