"""The table of costs: what lies between measurements, and whose table is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.costs import Costs, cached_costs, keep, load_cached
from poss_export.errors import InputError

FINGERPRINT: dict[str, str | int | None] = {"target": "abc", "threads": 2}
COSTS = Costs(
    FINGERPRINT,
    contexts=(64, 192),
    widths=(1, 2, 4),
    rounds=((10.0, 9.0, 14.0), (20.0, 19.0, 24.0)),
    rows=(2, 10),
    drafts=(1.0, 5.0),
)


def test_between_measurements_is_a_line_and_beyond_it_is_flat() -> None:
    assert COSTS.by_width(64)[2:] == [9.0, 11.5, 14.0]
    assert COSTS.by_width(128)[2:] == [14.0, 16.5, 19.0]
    assert COSTS.by_width(5000) == COSTS.by_width(192)
    assert COSTS.by_width(0) == COSTS.by_width(64)
    assert [COSTS.draft(rows) for rows in (1, 6, 50)] == [1.0, 3.0, 5.0]


def test_no_call_costs_more_than_a_wider_one() -> None:
    assert COSTS.by_width(64)[1] == 9.0  # filled up to 2 rows


def test_a_table_is_read_back(tmp_path: Path) -> None:
    COSTS.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json", FINGERPRINT) == COSTS


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"target": "abd", "threads": 2}, "target 'abc', here it is 'abd'"),
        ({"target": "abc"}, "threads 2, here it is None"),
        ({**FINGERPRINT, "provider": "cuda"}, "provider None, here it is 'cuda'"),
    ],
)
def test_a_table_of_something_else_is_refused(
    tmp_path: Path, other: dict[str, str | int | None], told: str
) -> None:
    COSTS.save(tmp_path / "costs.json")
    with pytest.raises(InputError, match=told):
        Costs.load(tmp_path / "costs.json", other)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 1}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(InputError, match="is no table of costs"):
        Costs.load(tmp_path / "costs.json", FINGERPRINT)


@pytest.mark.parametrize("field", ["widths", "contexts"])
def test_a_table_that_fills_the_memory_is_refused(field: str, tmp_path: Path) -> None:
    """Costs between the measured ones are filled in."""
    sizes: dict[str, Any] = {field: (*getattr(COSTS, field)[:-1], 1 << 40)}
    replace(COSTS, **sizes).save(tmp_path / "costs.json")
    with pytest.raises(InputError, match="a context or a width of too many tokens"):
        Costs.load(tmp_path / "costs.json", FINGERPRINT)


def test_tables_are_kept_by_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_cached(FINGERPRINT) is None
    assert keep(COSTS) == cached_costs(FINGERPRINT)
    assert load_cached(FINGERPRINT) == COSTS
    assert load_cached({**FINGERPRINT, "threads": 1}) is None
    cached_costs(FINGERPRINT).write_text("{")
    assert load_cached(FINGERPRINT) is None  # measured anew, and written over
    assert keep(replace(COSTS, drafts=(2.0, 6.0))) is not None


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep(COSTS) is None
