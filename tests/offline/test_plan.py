"""A plan says what runs when, and from what."""

from pathlib import Path

import pytest

from offline.plan import DEFAULT, Job, PlanError, Stage, read_plan, training, writing
from poss_export.training.presets import PRESETS


def test_the_default_plan_trains_presets_behind_dialogues() -> None:
    (first,), *later = [stage.jobs for stage in read_plan(DEFAULT)]
    assert first == Job("dialogues", "dialogues", count=2)
    assert {job.preset for jobs in later for job in jobs} <= PRESETS.keys()


def test_stages_are_read() -> None:
    found = read_plan(["2.5:eagle", "1: poss-2<eagle --steps 4 , slow=hass<out/a.b,eagle3"])
    jobs = Job("poss-2", "poss-2", "eagle", words=("--steps", "4")), Job("slow", "hass", "out/a.b")
    assert found == [Stage(2.5, (Job("eagle", "eagle"),)), Stage(1, (*jobs, Job("eagle3", "eagle3")))]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["eagle"], "job '' cannot be read"),
        (["much:eagle"], "stage 'much:eagle' has no share"),
        (["1:eagle<"], "job 'eagle<' cannot be read"),
        (["1:eagle steps"], "job 'eagle steps' cannot be read"),
        (["1:poss-2<eagle", "1:eagle"], "poss-2 starts from eagle, which no stage before it makes"),
        (["1:eagle,poss-2<eagle"], "poss-2 starts from eagle, which no stage before it makes"),
        (["1:eagle,eagle"], "eagle comes twice"),
        (["1:dialogues,eagle"], "writes dialogues and reads them"),
    ],
)
def test_what_is_no_plan_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan(texts)


def test_jobs_become_commands() -> None:
    job = Job("slow", "hass", "eagle", words=("--learning-rate", "1e-4"))
    command = training(job, Path("out/slow"), "out/eagle", 2.5)
    assert command[:4] == ["--preset", "hass", "-o", "out/slow"]
    assert command[4:] == ["--start", "out/eagle", "--minutes", "2.50", "--learning-rate", "1e-4"]
    assert "--start" not in training(job, Path("out/slow"), None, 2.5)
    writers = Job("dialogues", "dialogues", count=2, words=("--seed", "1"))
    assert writing(writers, "t", Path("d"), 1.0)[:4] == ["synthesise", "t", "-o", "d"]
    assert writing(writers, "t", Path("d"), 1.0)[-2:] == ["--seed", "1"]
