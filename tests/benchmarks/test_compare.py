"""The figures of a comparison, from answers made by hand."""

from typing import Any

import pytest

from benchmarks.compare import Row, summary
from benchmarks.contestants import BASELINE, Answer


def answer(tokens: list[int], seconds: float, rounds: int | None = None) -> Answer:
    return Answer(tokens, prefill_seconds=1.0, seconds=seconds, rounds=rounds or len(tokens) - 1)


def figures(*rows: Row) -> dict[str, dict[str, Any]]:
    return {row["engine"]: row for row in summary(list(rows), prompt_tokens=30)}


BASE = Row(BASELINE, [[answer([1, 2, 3, 4], 5.0)], [answer([1, 2, 3, 4], 3.0)], [answer([1, 2, 3, 4], 4.0)]])
FAST = Row("fast", [[answer([1, 2, 3, 4], 2.0, 1)]] * 2 + [[answer([1, 2, 3, 4], 9.0, 1)]])


def test_ratios_are_of_medians() -> None:
    found = figures(FAST, BASE)
    assert found[BASELINE]["tokens_per_second"] == pytest.approx(1.0)
    assert found["fast"]["ratio"] == pytest.approx(2.0)


def test_prefill_and_decode_are_apart() -> None:
    found = figures(BASE)[BASELINE]
    assert found["prefill_tokens_per_second"] == pytest.approx(30.0)
    assert found["decode_tokens_per_second"] == pytest.approx(1.0)


def test_tau_counts_tokens_after_prefill() -> None:
    found = figures(FAST, BASE)
    assert found["fast"]["tau"] == pytest.approx(3.0)
    assert found[BASELINE]["tau"] == pytest.approx(1.0)


def test_differences_name_prompt_and_token() -> None:
    base = Row(BASELINE, [[answer([1, 2, 3], 2.0), answer([1, 2, 3], 2.0), answer([1, 2, 3], 2.0)]])
    other = Row("other", [[answer([1, 2, 3], 2.0), answer([1, 9, 3], 2.0), answer([1, 2], 2.0)]])
    found = figures(other, base)["other"]
    assert found["first_differences"] == [(1, 1), (2, 2)]
    assert found["equal_answers"] == 1
