"""Every figure of the README's tables has its row, and says what its file says."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import NOT_KEPT, README, RESULTS, ROOT, figures, keep, read_claims, report
from poss_export.errors import InputError

TEXT = """## Figures

Words.

| engine | tokens/s | equal |
| --- | --- | --- |
| **ours** | 12.3 | 6 of 6 |
| theirs | 4.0 | |

## Next

| engine | tokens/s |
| --- | --- |
| other | 7 |
"""
ROWS = {"ours": ["figures", "engine=speculative"], "theirs": ["figures", "engine=peer"]}
COLUMNS = {"tokens/s": "{speed:.1f}", "equal": "{equal} of 6"}
CLAIM: dict[str, Any] = {
    "table": "engine / tokens/s / equal",
    "command": "python -m benchmarks.compare",
    "file": "made.json",
    "rows": ROWS,
    "columns": COLUMNS,
}
MADE = {
    "environment": {"date": "2026-11-27T10:00:00+00:00", "processor": "a processor", "cores": 2},
    "settings": {"prompts": "(PosixPath('/home/somebody/questions.jsonl'),)", "limit": "4"},
    "figures": [{"engine": "speculative", "speed": 12.34, "equal": 6}, {"engine": "peer", "speed": 4}],
    "answers": {"speculative": [[1, 2]]},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "made.json").write_text(json.dumps(MADE))
    (tmp_path / "kept").mkdir()
    return keep(tmp_path / "made.json", tmp_path / "kept").parent


def test_figures_are_those_of_the_section() -> None:
    assert [(one.row, one.column, one.text) for one in figures(TEXT)] == [
        ("ours", "tokens/s", "12.3"),
        ("ours", "equal", "6 of 6"),
        ("theirs", "tokens/s", "4.0"),
    ]


def test_a_row_may_have_a_place_for_each_column(results: Path) -> None:
    by_column = {"tokens/s": ["figures", "engine=peer"], "equal": ["figures", "engine=speculative"]}
    text = TEXT.replace("12.3", "4.0")
    assert "| 4.0 | made.json |" in report(text, [{**CLAIM, "rows": ROWS | {"ours": by_column}}], results)
    with pytest.raises(InputError, match="has nothing for row 'ours', column 'equal'"):
        report(text, [{**CLAIM, "rows": ROWS | {"ours": {"tokens/s": by_column["tokens/s"]}}}], results)


def test_each_figure_has_a_row_with_its_source(results: Path) -> None:
    page = report(TEXT, [CLAIM], results)
    rows = [line for line in page.splitlines() if line.startswith("| engine")]
    assert len(rows) == 3
    assert all("made.json | 2026-11-27, a processor, 2 cores" in row for row in rows)
    without = {name: CLAIM[name] for name in ("table", "command")} | {"measured": "yesterday"}
    assert report(TEXT, [without], results).count(f"| {NOT_KEPT} | yesterday |") == 3


@pytest.mark.parametrize(
    ("text", "claim", "told"),
    [
        (
            TEXT.replace("12.3", "12.4"),
            CLAIM,
            r"says '12\.4', made\.json '12\.3': row 'ours', column 'tokens/s'",
        ),
        (TEXT.replace("theirs", "others"), CLAIM, r"made\.json has nothing for row 'others'"),
        (TEXT, {**CLAIM, "columns": {}}, "made.json has nothing for row 'ours', column 'tokens/s'"),
        (TEXT, {**CLAIM, "rows": {**ROWS, "theirs": ["figures", "engine=none"]}}, "nothing for row 'theirs'"),
        (TEXT, {**CLAIM, "table": "another"}, "no claim accounts for the table 'engine / tokens/s / equal'"),
    ],
)
def test_what_does_not_fit_is_named(text: str, claim: dict[str, Any], told: str, results: Path) -> None:
    with pytest.raises(InputError, match=told):
        report(text, [claim], results)


def test_a_claim_without_a_table_is_named(results: Path) -> None:
    with pytest.raises(InputError, match="has no table 'gone'"):
        report(TEXT, [CLAIM, {**CLAIM, "table": "gone"}], results)


def test_what_is_kept_names_no_folder(results: Path) -> None:
    kept = json.loads((results / "made.json").read_text())
    assert "answers" not in kept
    assert kept["settings"] == {"prompts": "(PosixPath('questions.jsonl'),)", "limit": "4"}


def test_the_page_is_current() -> None:
    page = report(README.read_text(encoding="utf-8"), read_claims(), RESULTS)
    assert (ROOT / "docs/report.md").read_text(encoding="utf-8") == page, "run: make report"
