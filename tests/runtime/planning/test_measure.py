"""Costs measured with real engines of a tiny bundle, and who measures when."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.costs import Costs, cached_costs, keep
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.planning import planners
from poss_export.runtime.planning.measure import CAREFUL, Effort, measure_together
from tests.fixtures.graphs import CAPACITY


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("effort", [Effort((1, 2, 4, 8), (4, 8), 2), replace(CAREFUL, repeats=1)])
def test_what_fits_a_small_capacity_is_measured(tiny_bundle: Path, effort: Effort) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        costs = bundle.planners.measure(effort)
    assert costs.widths == tuple(width for width in effort.widths if width <= CAPACITY // 2)
    assert len(costs.rounds) == len(costs.contexts)
    assert all(ms > 0 for row in costs.rounds for ms in row)
    assert all(ms > 0 for ms in costs.drafts)
    assert costs.rows[0] == 2
    assert costs.fingerprint["threads"] == 1


@pytest.mark.parametrize("form", ["shared", "static"])
def test_a_table_of_several_has_each_ones_share_of_a_draft_call(form: str, bundle_of_form: Any) -> None:
    with open_bundle(bundle_of_form(form), threads=1, slots=3) as bundle:
        assert bundle.drafter is not None
        alone = Costs(bundle.planners.fingerprint, (8,), (1, 2), ((1.0, 2.0),), (2, 16, 40), (7.0, 8.0, 99.0))
        costs = measure_together(bundle.target, bundle.drafter, alone, 3, vocab=96, chains=False)
        assert [bundle.drafter.length(slot) for slot in range(3)] == [0, 0, 0]
    assert costs.widths == (3, 6, 12, 24)
    assert costs.rows == (2, 16, 40)
    assert costs.drafts[2] == 99.0  # as alone: so many rows share no call
    assert 0 < costs.drafts[0] != 7.0
    assert costs.fingerprint["sequences"] == 3


def test_answers_are_as_before_a_measurement(planned_bundle: Path) -> None:
    with open_bundle(planned_bundle, threads=1) as bundle:
        before = bundle.generate("<5> <9>", raw=True, target_only=True, max_new_tokens=12).token_ids
        bundle.planners.measure(Effort((1, 2, 4), (8,), 1))
        assert bundle.generate("<5> <9>", raw=True, max_new_tokens=12).token_ids == before


def test_a_table_is_measured_once_and_read_afterwards(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        first = bundle.planners.costs
    with open_bundle(tiny_bundle, threads=1) as bundle:
        monkeypatch.setattr(planners, "measure_costs", lambda *_, **__: pytest.fail("measured again"))
        assert bundle.planners.costs == first


@pytest.mark.parametrize("change", [{"threads": 7}, {"target": "0" * 64}, {"device": "another"}])
def test_a_table_of_another_machine_or_bundle_is_not_read(
    tiny_bundle: Path, change: dict[str, str | int]
) -> None:
    """Also where somebody put it in the place of this one."""
    with open_bundle(tiny_bundle, threads=1) as bundle:
        planted = Costs({**bundle.planners.fingerprint, **change}, (1,), (1, 2), ((1.0, 2.0),), (2,), (1.0,))
        assert keep(planted) is not None
        place = cached_costs(bundle.planners.fingerprint)
        cached_costs(planted.fingerprint).rename(place)
        assert bundle.planners.costs.fingerprint == bundle.planners.fingerprint
    assert Costs.load(place, bundle.planners.fingerprint) == bundle.planners.costs


def test_a_home_that_cannot_be_written_is_no_error(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with open_bundle(tiny_bundle, threads=1) as bundle:
        assert bundle.planners.costs.widths[0] == 1


def test_a_stream_that_is_asked_for_disturbs_none_that_runs(planned_bundle: Path) -> None:
    """Costs are measured when an answer begins, not when it is asked for: that empties the sessions."""
    with open_bundle(planned_bundle, threads=1) as bundle:
        whole = bundle.generate("<5> <9>", raw=True, target_only=True, max_new_tokens=12).token_ids
        stream = bundle.stream("<5> <9>", raw=True, target_only=True, max_new_tokens=12)
        next(iter(stream))
        bundle.stream("<7>", raw=True)
        assert stream.run().token_ids == whole
