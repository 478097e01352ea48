"""What a training run does in its minutes: stages in turn, the jobs of a stage at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The first drafter and its unrolled training get the most, for all that start from it have what it learnt
# (docs/drafter-study.md). Small networks leave most of a large GPU idle, so those that follow share it;
# eagle3, which reads three layers of the target, holds features of 3.8 KB a token of all dialogues, the
# others 1.5 KB: it comes alone.
DEFAULT = (
    "30:dialogues*3",
    "20:eagle",
    "14:hass<eagle",
    "26:poss-2<hass,fspad<hass,parallelspec<hass",
    "10:eagle3",
)
ANSWER_TOKENS = 5_000_000  # after which dialogues are enough: what is left of their time is for the drafters
WRITERS = "dialogues"  # the job that writes dialogues in place of a drafter
PARTS = "part-*.npz"  # of a folder of them
_JOB = re.compile(r"(?P<name>[\w.-]+?)(\*(?P<count>\d+)|<(?P<start>[\w.-]+))?")


class PlanError(ValueError):
    """A plan cannot be read."""


@dataclass(frozen=True)
class Job:
    """A drafter of preset `name`, from random weights or from the drafter of job `start`; or who writes."""

    name: str
    start: str | None = None
    count: int = 1  # processes that write dialogues

    @property
    def writes(self) -> bool:
        """Whether it writes dialogues."""
        return self.name == WRITERS


@dataclass(frozen=True)
class Stage:
    """Jobs that run at once, for a share of the time."""

    share: float
    jobs: tuple[Job, ...]


def read_plan(texts: Sequence[str]) -> list[Stage]:
    """Return the stages of texts like "30:dialogues*3" and "40:poss-2<eagle,fspad<eagle".

    Raises PlanError where a text is none, a job comes twice, or one starts from a drafter that comes later.
    """
    stages, known = list[Stage](), set[str]()
    for text in texts:
        share, _, names = text.partition(":")
        jobs = tuple(map(_read_job, names.split(",")))
        try:
            stages.append(Stage(float(share), jobs))
        except ValueError as error:
            raise PlanError(
                f"stage {text!r} has no share; expected SHARE:JOB,... as {DEFAULT[1]!r}"
            ) from error
        for job in jobs:
            if job.start is not None and job.start not in known:
                raise PlanError(f"{job.name} starts from {job.start}, which no stage before it makes")
        for job in jobs:
            if job.name in known:
                raise PlanError(f"{job.name} comes twice: name each job once")
            known.add(job.name)
    return stages


def _read_job(text: str) -> Job:
    if (found := _JOB.fullmatch(text.strip())) is None:
        raise PlanError(f"job {text!r} cannot be read; expected NAME, NAME<START, or {WRITERS}*COUNT")
    return Job(found["name"], found["start"], int(found["count"] or 1))


def arguments(
    job: Job, target: str, dialogues: Sequence[Path], work: Path, start: Path | None, minutes: float
) -> list[str]:
    """Return the command line of a job, after `poss-export`; the first of `dialogues` is what is written."""
    if job.writes:
        ended = ("--answer-tokens", str(ANSWER_TOKENS), "--minutes", f"{minutes:.2f}")
        return ["synthesise", target, "-o", str(dialogues[0]), *ended]
    # Where nothing was written in time, the others are there.
    there = [path for path in dialogues if path.is_file() or any(path.glob(PARTS))]
    read = [word for path in there for word in ("--dialogues", str(path))]
    begun = [] if start is None else ["--start", str(start)]
    return [
        *("train", target, "--preset", job.name, "-o", str(work / job.name)),
        *(*read, *begun, "--minutes", f"{minutes:.2f}"),
    ]
