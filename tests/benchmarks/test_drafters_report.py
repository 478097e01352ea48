"""The table of drafters, from rows made by hand."""

from typing import Any

import pytest

from benchmarks.divergences import count
from benchmarks.drafters_report import print_rows


def row(name: str, **values: Any) -> dict[str, Any]:
    alone = {"milliseconds": 20.0, "tokens_per_second": 50.0}
    return {
        "drafter": name,
        "parameters": 4_000_000,
        "training": {"seconds": 120, "row_steps": 3_000_000, "rows": 500_000, "started_from": "eagle"},
        "acceptance": [0.5, 0.25],
        "chain": {"tree": "2,1,2", "tau": 1.75},
        "trees": [{"tree": "3,2,4", "tau": 2.0}],
        "speed": {
            "milliseconds": {"draft": 4.0, "target": 25.0},
            "tokens_per_second": 75.0,
            "ratio": 1.5,
            "target-only": alone,
        },
        "answers": 5,
        "divergences": {},
        **values,
    }


def test_the_table_has_a_row_a_drafter_beside_target_only(capsys: pytest.CaptureFixture[str]) -> None:
    parted = {
        "tree 3,2,4, q:1": {"position": 7, "gap": 1e-6, "verdict": "near-tie"},
        "tree 3,2,4, q:2": {"position": 8, "gap": 1.0, "verdict": "mismatch"},
    }
    rows = [row("long"), row("short", acceptance=[0.125], training=None, divergences=parted)]
    print_rows(rows, 135_000_000)
    heading, alone, long, short, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[-8:] == ["3,2,4", "draft", "ms", "verify", "ms", "tokens/s", "ratio", "equal"]
    figures = [*"------", "1.00", "1.00", "-", "20.0", "50.0", "1.00", "-"]
    assert alone.split() == ["target-only", "135.00", "M", *figures[1:]]
    trained = ["2", "min", "3.00", "M", "0.50", "M"]
    speed = ["1.75", "2.00", "4.0", "25.0", "75.0", "1.50"]
    assert long.split() == ["long", "4.00", "M", *trained, "0.500", "0.250", *speed, "5/5"]
    assert short.split() == ["short", "4.00", "M", "-", "-", "-", "0.125", "-", *speed, "3/5"]
    assert lines == [
        "long started from eagle, whose training is not counted",
        "near-tie: short, tree 3,2,4, q:1, token 7, gap 1.00e-06",
        "MISMATCH: short, tree 3,2,4, q:2, token 8, gap 1.00e+00",
        "10 answers: 8 equal to target-only, 1 near-ties, 1 mismatches",
    ]
    assert count((row["divergences"] for row in rows), "mismatch") == 1


def test_target_only_has_the_medians_beside_the_drafters(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(str(value)) for value in range(3)]
    for each, value in zip(rows, (10.0, 99.0, 30.0), strict=True):
        each["speed"]["target-only"] = {"milliseconds": value, "tokens_per_second": 2 * value}
    print_rows(rows, 1)
    assert capsys.readouterr().out.splitlines()[1].split()[-4:] == ["30.0", "60.0", "1.00", "-"]
