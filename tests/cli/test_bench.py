"""Spec-Bench's questions on a bundle, and the files that its scripts read."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from poss_export.cli.main import main

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["<5> <9>", "<7>"]},
    {"question_id": 82, "category": "writing", "turns": ["<11>"]},
    {"question_id": 401, "category": "math_reasoning", "turns": ["<3> <4>"], "reference": ["7"]},
]
TURNS = {81: 2, 82: 1, 401: 1}
# Of hemingkx/Spec-Bench, evaluation/eval.py: what an answer line has.
LINE = {
    "question_id": int,
    "category": str,
    "answer_id": str,
    "model_id": str,
    "choices": list,
    "tstamp": float,
}
CHOICE = {
    "index": int,
    "turns": list,
    "decoding_steps": list,
    "new_tokens": list,
    "wall_time": list,
    "accept_lengths": list,
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    path.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    return path


@pytest.fixture
def made(chat_bundle: Path, questions: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    options = ["--max-new-tokens", 12, "--repeats", 2, "--threads", 1, "--json", "-o", tmp_path / "answers"]
    result = run(chat_bundle, "--questions", questions, *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), tmp_path / "answers"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def speed(path: Path, category: str | None = None) -> tuple[float, float]:
    """Restate speed.py: mean tokens/s over questions, mean accepted tokens over all rounds."""
    lines = [line for line in read(path) if category in (None, line["category"])]
    choices = [line["choices"][0] for line in lines]
    speeds = [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in choices]
    accepted = [length for choice in choices for length in choice["accept_lengths"]]
    return sum(speeds) / len(speeds), sum(accepted) / len(accepted)


def test_the_files_are_what_its_scripts_read(made: Any) -> None:
    found, folder = made
    ours, plain = read(folder / "speculative.jsonl"), read(folder / "target-only.jsonl")
    assert [line["question_id"] for line in ours] == [line["question_id"] for line in plain] == [81, 82, 401]
    for line in (*ours, *plain):
        assert {name: type(value) for name, value in line.items()} == LINE
        (choice,) = line["choices"]
        assert {name: type(value) for name, value in choice.items()} == CHOICE
        turns = TURNS[line["question_id"]]
        assert {len(choice[name]) for name in ("turns", "decoding_steps", "new_tokens", "wall_time")} == {
            turns
        }
        assert sum(choice["decoding_steps"]) == len(choice["accept_lengths"])
        assert sum(choice["new_tokens"]) == sum(choice["accept_lengths"]) + turns  # prefill gives one each
    for mine, theirs in zip(ours, plain, strict=True):  # equal.py
        assert mine["choices"][0]["turns"] == theirs["choices"][0]["turns"]
    assert speed(folder / "target-only.jsonl")[1] == 1.0
    assert speed(folder / "speculative.jsonl")[1] == pytest.approx(
        found["figures"]["overall"]["tau"], abs=1e-4
    )
    writing = speed(folder / "speculative.jsonl", "writing")
    assert writing[1] == pytest.approx(found["figures"]["writing"]["tau"], abs=1e-4)


def test_figures_by_category(made: Any) -> None:
    figures = made[0]["figures"]
    assert {name: (row["questions"], row["answers"]) for name, row in figures.items()} == {
        "writing": (2, 3),
        "math_reasoning": (1, 1),
        "overall": (3, 4),
    }
    for row in figures.values():
        assert row["equal"] == row["questions"]
        assert row["speedup"] == pytest.approx(
            row["tokens_per_second"] / row["target_only_tokens_per_second"], rel=1e-3
        )
    assert made[0]["differences"] == {}


def test_an_answer_that_differs_is_named(
    chat_bundle: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poss_export.evaluation.spec_bench.first_difference", lambda ours, plain: 3)
    result = run(chat_bundle, "--questions", questions, "--max-new-tokens", 5, "--repeats", 1, "--limit", 1)
    assert result.exit_code == 0
    assert "question 81, turn 1: token 3 is not target-only's" in result.stdout
    assert "0 of 1" in result.stdout


def test_output_that_is_a_file(chat_bundle: Path, questions: Path) -> None:
    result = run(chat_bundle, "--questions", questions, "-o", questions)
    assert result.exit_code == 2
    assert "is a file; name a folder (-o)" in result.stderr
