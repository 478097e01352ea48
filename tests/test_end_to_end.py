"""What `make demo` does, on the real thing: the embedded target with the shipped drafter."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from poss_export.cli.main import main

DRAFTER = "poss-2"
PROMPTS = ["What is the capital of France?", "Explain why bread rises."]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
def test_the_embedded_model_speculates_losslessly(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    run("build", "smollm2-135m", "--drafter", DRAFTER, "-o", bundle, "--capacity", 512)

    def answers(*options: str) -> list[dict[str, Any]]:
        lines = run("generate", bundle, *PROMPTS, "--max-new-tokens", 40, "--json", *options).splitlines()
        return [json.loads(line) for line in lines]

    ours, plain = answers(), answers("--target-only")
    assert [answer["token_ids"] for answer in ours] == [answer["token_ids"] for answer in plain]
    assert "Paris" in ours[0]["text"]
    assert sum(answer["rounds"] for answer in ours) < 0.75 * sum(answer["rounds"] for answer in plain)
    assert run("inspect", bundle).startswith("bundle: bundle of smollm2-135m, drafter poss-2")
