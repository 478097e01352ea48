"""The command that measures many clients."""

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks import serving


def test_rows_of_every_load_and_way(chat_bundle: Path, tmp_path: Path) -> None:
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text("\n".join(json.dumps({"prompt": f"<{i}> <9>"}) for i in range(5, 8)))
    options = ["--clients", "1", "--clients", "3", "--rate", "50", "--requests", "5", "--max-new-tokens", "6"]
    arguments = [str(chat_bundle), "--prompts", str(prompts), *options, "--threads", "1"]
    result = CliRunner().invoke(serving.main, [*arguments, "--json", str(report)])
    assert result.exit_code == 0, result.output
    heading, *rows, total = result.stdout.splitlines()
    assert heading.split()[:3] == ["load", "way", "tokens/s"]
    assert [row.split("  ")[0] for row in rows[::2]] == ["1 clients", "3 clients", "50 a second"]
    assert all(row.endswith("5 of 5") for row in rows)
    assert total == "30 equal, 0 near-ties, 0 mismatches"
    cells = json.loads(report.read_text())["cells"]
    assert [cell["way"] for cell in cells[:2]] == ["in turns, target-only", "in turns, speculative"]
    assert all(0 < cell["first_ms"]["p50"] <= cell["first_ms"]["p95"] for cell in cells)


def test_answers_that_part_are_judged(chat_bundle: Path) -> None:
    from dataclasses import replace

    from benchmarks.questions import Question
    from poss_export.evaluation.answers import answer
    from poss_export.prompts import Prompt
    from poss_export.runtime.bundle import open_bundle

    with open_bundle(chat_bundle, threads=1) as bundle:
        question = Question("f", Prompt("1", ("<5>",)), bundle.encode("<5>"))
        plain = answer(bundle, question.ids, 6, target_only=True)
        other = replace(plain, token_ids=(*plain.token_ids[:3], 0, *plain.token_ids[4:]))
        answered = [serving.Answered(question, made, 0.0, ((0.1, 1),)) for made in (plain, other)]
        parted = serving.judge(bundle, {question.place: plain}, answered)
    ((place, found),) = parted.items()
    assert (place, found["position"], found["verdict"]) == ("2, f:1", 3, "mismatch")
