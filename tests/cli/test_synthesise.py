"""`poss-export synthesise`, as a user types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from poss_export.cli.main import main
from poss_export.training.dialogues import Dialogues


def synthesise(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["synthesise", "smollm2-135m", *arguments])


def test_it_writes_a_folder_that_train_reads_and_counts_it(tmp_path: Path) -> None:
    prompts, questions = tmp_path / "prompts.jsonl", tmp_path / "questions.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"Count to {n}."}) for n in ("three", "nine", "ten")))
    questions.write_text(json.dumps({"turns": ["Count to nine.", "And to ten?"]}))
    folder = tmp_path / "data"
    asked = ("--prompts", str(prompts), "--held-apart", str(questions), "-o", str(folder))
    result = synthesise(*asked)
    assert result.exit_code == 0, result.stderr
    assert f"{folder}: 2 dialogues, " in result.stdout
    assert "given: 2 dialogues" in result.stdout
    assert len(Dialogues.load(folder)) == 2
    card = json.loads(synthesise(*asked, "--json").stdout)
    assert card == json.loads((folder / "card.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--answer-tokens", "0"), "answer_tokens is 0; it must be more than 0 (--answer-tokens)"),
        (("--minutes", "-1"), "minutes is -1.0; it must be more than 0 (--minutes)"),
        (("--seed", "-1"), "seed is -1; it must be 0 or a positive number (--seed)"),
        (("--threads", "0"), "threads is 0; it must be at least 1"),
        (("--prompts", "missing.jsonl"), "'missing.jsonl' cannot be read"),
        (("--held-apart", "missing.jsonl"), "'missing.jsonl' cannot be read"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = synthesise(*arguments, "-o", str(tmp_path / "data"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_it_reads_no_messages_before_the_users(tmp_path: Path) -> None:
    """They would be left out of what the target answers."""
    prompts = tmp_path / "prompts.jsonl"
    said = [{"role": "system", "content": "<4>"}, {"role": "user", "content": "<5>"}]
    prompts.write_text(json.dumps({"messages": said}))
    result = synthesise("--prompts", str(prompts), "-o", str(tmp_path / "data"))
    assert result.exit_code == 2
    assert "line 1 has messages before the user's, which training does not read" in result.stderr
