"""What a training run does in its minutes: stages in turn, the jobs of a stage at once."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Jobs of a stage share the target's view of the dialogues (1.5 KB a token), which is computed once: so one
# stage has all drafters, from one that was trained before. What reads taps cannot be among them.
DEFAULT = (
    "25:dialogues*2",
    "75:hass<eagle,poss-2<eagle,fspad<eagle --steps 3 --token-weight 1,parallelspec --num-layers 2",
)
ANSWER_TOKENS = 5_000_000  # after which dialogues are enough: what is left of their time is for the drafters
WRITERS = "dialogues"  # the job that writes dialogues in place of a drafter
PARTS = "part-*.npz"  # of a folder of them
_JOB = re.compile(
    r"((?P<name>[\w.-]+)=)?(?P<preset>[\w.-]+?)(\*(?P<count>\d+)|<(?P<start>[^\s<>]+))?(\s+(?P<words>--.+))?"
)


class PlanError(ValueError):
    """A plan cannot be read."""


@dataclass(frozen=True)
class Job:
    """A drafter of a preset, or who writes dialogues.

    start: the job whose drafter it goes on with, or a drafter; None: it begins at random; words: further
    options of its command.
    """

    name: str
    preset: str
    start: str | None = None
    count: int = 1  # processes that write dialogues
    words: tuple[str, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether it writes dialogues."""
        return self.preset == WRITERS


@dataclass(frozen=True)
class Stage:
    """Jobs that run at once, for a share of the time."""

    share: float
    jobs: tuple[Job, ...]


def read_plan(texts: Sequence[str]) -> list[Stage]:
    """Return the stages of texts like "30:dialogues*3" and "40:poss-2<eagle,slow=hass<eagle --steps 4".

    Raises PlanError where a text is none, a stage both writes dialogues and reads them, a job comes twice, or
    one starts from a job that comes later.
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
        if len({job.writes for job in jobs}) == 2:
            raise PlanError(f"stage {text!r} writes dialogues and reads them: give each a stage of its own")
        for job in jobs:
            if job.name in known:
                raise PlanError(f"{job.name} comes twice: give it another name, NAME={job.preset}")
            known.add(job.name)
    earlier = set[str]()
    for stage in stages:
        for job in stage.jobs:
            if job.start in known - earlier:
                raise PlanError(f"{job.name} starts from {job.start}, which no stage before it makes")
        earlier |= {job.name for job in stage.jobs}
    return stages


def _read_job(text: str) -> Job:
    if (found := _JOB.fullmatch(text.strip())) is None:
        raise PlanError(
            f"job {text!r} cannot be read; expected [NAME=]PRESET[<START] or {WRITERS}*COUNT, then options"
        )
    name, words = found["name"] or found["preset"], tuple(shlex.split(found["words"] or ""))
    return Job(name, found["preset"], found["start"], int(found["count"] or 1), words)


def writing(job: Job, target: str, folder: Path, minutes: float) -> list[str]:
    """Return the command line, after `poss-export`, of a job that writes dialogues into `folder`."""
    ended = ("--answer-tokens", str(ANSWER_TOKENS), "--minutes", f"{minutes:.2f}")
    return ["synthesise", target, "-o", str(folder), *ended, *job.words]


def training(job: Job, out: Path, start: str | None, minutes: float) -> list[str]:
    """Return the options of `poss-export train` for a job that goes on with a drafter; dialogues apart."""
    begun = [] if start is None else ["--start", start]
    return ["--preset", job.preset, "-o", str(out), *begun, "--minutes", f"{minutes:.2f}", *job.words]
