"""What the folders of drafters record of their training."""

from pathlib import Path

import pytest

from benchmarks.drafters_file import training_of
from poss_export.errors import CheckpointError
from tests.fixtures.write_record import write_record


def test_rows_are_row_steps_by_the_steps_of_each_stage(tmp_path: Path) -> None:
    write_record(tmp_path, stages=[{"share": 0.4, "steps": 1}, {"share": 0.6, "steps": 6}])
    assert training_of(str(tmp_path)) == {
        "seconds": 60,
        "row_steps": 1000,
        "rows": 500,
        "started_from": "eagle",
    }


def test_a_record_without_stages_leaves_the_rows_unknown(tmp_path: Path) -> None:
    write_record(tmp_path)
    found = training_of(str(tmp_path))
    assert found is not None
    assert (found["row_steps"], found["rows"]) == (1000, None)


def test_a_folder_without_a_record_and_one_with_a_damaged_one(tmp_path: Path) -> None:
    assert training_of(str(tmp_path)) is None
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"training\.json: not a training record"):
        training_of(str(tmp_path))


def test_what_a_run_of_minutes_did_is_not_its_budget(tmp_path: Path) -> None:
    write_record(tmp_path, stages=[{"share": 1.0, "steps": 6}], row_steps=600)
    found = training_of(str(tmp_path))
    assert found is not None
    assert (found["row_steps"], found["rows"]) == (600, 100)
