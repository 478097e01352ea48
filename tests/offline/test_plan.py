"""A plan says what runs when, and from what."""

from pathlib import Path

import pytest

from offline.plan import DEFAULT, Job, PlanError, Stage, arguments, read_plan
from poss_export.training.presets import PRESETS


def test_the_default_plan_trains_presets_behind_dialogues() -> None:
    (first,), *later = [stage.jobs for stage in read_plan(DEFAULT)]
    assert first == Job("dialogues", count=3)
    assert {job.name for jobs in later for job in jobs} <= PRESETS.keys()


def test_stages_are_read() -> None:
    found = read_plan(["2.5:eagle", "1: poss-2<eagle , eagle3"])
    assert found == [Stage(2.5, (Job("eagle"),)), Stage(1, (Job("poss-2", "eagle"), Job("eagle3")))]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["eagle"], "job '' cannot be read"),
        (["much:eagle"], "stage 'much:eagle' has no share"),
        (["1:eagle<"], "job 'eagle<' cannot be read"),
        (["1:poss-2<eagle", "1:eagle"], "poss-2 starts from eagle, which no stage before it makes"),
        (["1:eagle,eagle"], "eagle comes twice"),
    ],
)
def test_what_is_no_plan_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan(texts)


def test_a_drafter_reads_the_dialogues_that_are_there(tmp_path: Path) -> None:
    written, packed = tmp_path / "dialogues", tmp_path / "packed"
    packed.mkdir()
    (packed / "part-0000.npz").touch()
    written.mkdir()  # nothing came of it in time
    command = arguments(Job("poss-2", "eagle"), "t", (written, packed), tmp_path, tmp_path / "eagle", 2.5)
    assert command[:4] == ["train", "t", "--preset", "poss-2"]
    assert command.count("--dialogues") == 1
    assert str(packed) in command
    assert command[-4:] == ["--start", str(tmp_path / "eagle"), "--minutes", "2.50"]
    assert "--start" not in arguments(Job("poss-2", "eagle"), "t", (packed,), tmp_path, None, 2.5)
