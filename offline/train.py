"""Write dialogues and train drafters for some minutes; what is there comes home every minute.

    FOLDER/bin/python -m offline.train WORK HOME --minutes 9 --dialogues FOLDER/dialogues

HOME gets run.log and the drafters, in parts that may come back; those of the first stages come first. What
does not fit stays in WORK/results, with the dialogues. A run that is cut off has lost its last minute.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from offline.parts import MEGABYTE
from offline.plan import DEFAULT, PARTS, WRITERS, Job, PlanError, Stage, read_plan, training, writing
from offline.processes import COMMAND, TOGETHER, end, start
from offline.results import Results

TICK = 60.0  # seconds between two looks
_LOOK = 0.5
_WRITERS_START = 15.0  # seconds until they write, and for their last answers
_LAST_WORDS = 600  # characters of a failed job's log
_GPU = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")


@dataclass
class Run:
    """A run in `work`: its target, the dialogues that it reads, and where its results go."""

    work: Path
    target: str
    dialogues: Sequence[Path]  # the last is what it writes: of dialogues that are told twice, the first stay
    results: Results
    began: float
    known: frozenset[str]  # names of all jobs

    def say(self, **values: object) -> None:
        """Write a line of the log, at home at once."""
        line = json.dumps({"seconds": round(time.monotonic() - self.began, 1), **values})
        click.echo(line)
        with (self.results.home / "run.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def drafter(self, name: str) -> Path | None:
        """Return the folder of a job's drafter: the finished one, or the last that it saved."""
        candidates = (self.work / name, self.work / name / ".training" / "drafter")
        return next((folder for folder in candidates if (folder / "config.json").exists()), None)

    def run_stage(self, stage: Stage, seconds: float, reserve: float) -> None:
        """Run the jobs of a stage at once; what still runs after `seconds` is ended.

        `reserve`: seconds of them for what drafters need before and after their minutes.
        """
        beside = _WRITERS_START if stage.jobs[0].writes else reserve
        running = self._start(stage, max(seconds - beside, 1.0) / 60)
        try:
            self._watch(stage, running, seconds)
        finally:  # they are no part of this process's group
            for process in running.values():
                if process.poll() is None:
                    end(process)
                    process.wait()
        for name, process in running.items():
            self.say(process=name, exit=process.returncode, **self._last_words(name, process.returncode == 0))
        for job in stage.jobs:
            if not job.writes:
                finished = (self.work / job.name / "config.json").exists()
                self.say(job=job.name, finished=finished, **self._last_words(job.name, finished))
        self.tick(stage.jobs)

    def _last_words(self, name: str, well: bool) -> dict[str, str]:
        log = self._log(name)
        return {} if well or not log.exists() else {"said": log.read_text()[-_LAST_WORDS:]}

    def _watch(self, stage: Stage, running: "Mapping[str, subprocess.Popen[bytes]]", seconds: float) -> None:
        """Return when all jobs have ended, or their time has."""
        began = ticked = time.monotonic()
        while alive := [name for name, process in running.items() if process.poll() is None]:
            if time.monotonic() - began > seconds:
                for name in alive:
                    self.say(process=name, ended="time was up")
                return
            if time.monotonic() - ticked > TICK:
                ticked = time.monotonic()
                self.tick(stage.jobs)
            time.sleep(_LOOK)

    def _start(self, stage: Stage, minutes: float) -> "Mapping[str, subprocess.Popen[bytes]]":
        threads = str(max(1, (os.cpu_count() or 1) // sum(job.count for job in stage.jobs)))
        if not stage.jobs[0].writes:
            return {"together": self._train(stage.jobs, minutes, threads)}
        running = {}
        for job in stage.jobs:
            command = writing(job, self.target, self.dialogues[-1], minutes)
            self.say(job=job.name, command=" ".join(command))
            for number in range(job.count):
                name = f"{job.name}-{number}"
                running[name] = start([*COMMAND, *command], self._log(name), {"OMP_NUM_THREADS": threads})
        return running

    def _train(self, jobs: Sequence[Job], minutes: float, threads: str) -> "subprocess.Popen[bytes]":
        # Where nothing was written in time, the others are there.
        there = [path for path in self.dialogues if path.is_file() or any(path.glob(PARTS))]
        command = [self.target, "--threads", threads]
        command += [word for path in there for word in ("--dialogues", str(path))]
        for job in jobs:
            words = training(job, self.work / job.name, self._begun(job), minutes)
            self.say(job=job.name, command=" ".join(words))
            command += ["--job", str(self._log(job.name)), shlex.join(words)]
        return start([*TOGETHER, *command], self._log("together"), {})

    def _begun(self, job: Job) -> str | None:
        """Return the drafter that a job goes on with: what an earlier job has left, or one by its name."""
        if job.start not in self.known:
            return job.start
        folder = self.drafter(job.start)
        return None if folder is None else str(folder)

    def _log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.log"

    def _curve(self, job: Job) -> Path:
        return self.work / job.name / "training.jsonl"

    def tick(self, jobs: Sequence[Job]) -> None:
        """Write how far each job is, and bring home what is new."""
        gpu = ""
        with suppress(OSError):
            gpu = subprocess.run(_GPU, capture_output=True, text=True, check=False).stdout.strip()
        for job in jobs:
            self.say(job=job.name, gpu=gpu, **self._state(job))
            folder = self.dialogues[-1] if job.writes else self.drafter(job.name)
            if folder is not None and folder.exists():
                self.results.pack(job.name, folder, self._curve(job))
        if left := self.results.bring_home():
            self.say(left=left)

    def _state(self, job: Job) -> dict[str, object]:
        if job.writes:
            parts = [part.stat().st_size for part in self.dialogues[-1].glob(PARTS)]
            return {"parts": len(parts), "megabytes": round(sum(parts) / MEGABYTE, 1)}
        log = self._curve(job)
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return {"last": json.loads(lines[-1])} if lines else {}


def train(run: Run, plan: Sequence[Stage], minutes: float, reserve: float) -> None:
    """Run the stages; each has its share of the time that is left when it begins."""
    (run.work / "logs").mkdir(parents=True, exist_ok=True)
    run.results.home.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(plan):
        left = 60 * minutes - (time.monotonic() - run.began)
        shares = sum(later.share for later in plan[number:])
        run.run_stage(stage, left * stage.share / shares, reserve)
    run.say(done=True)


@click.command(help=__doc__.partition("\n")[0])
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.option("--minutes", type=click.FloatRange(0, min_open=True), required=True, help="For everything.")
@click.option("--target", default="smollm2-135m", show_default=True)
@click.option(
    "--dialogues", multiple=True, type=click.Path(path_type=Path), help="Read these too; repeatable."
)
@click.option("--stage", "stages", multiple=True, default=DEFAULT, show_default=True, help="SHARE:JOB,...")
@click.option("--reserve", default=100.0, show_default=True, help="Seconds of a stage beside its training.")
@click.option("--part-megabytes", default=16.0, show_default=True)
@click.option("--files", default=7, show_default=True, help="Parts that may come home.")
@click.option("--megabytes", default=62.0, show_default=True, help="What they may have together.")
def main(
    work: Path,
    home: Path,
    minutes: float,
    target: str,
    dialogues: tuple[Path, ...],
    stages: tuple[str, ...],
    reserve: float,
    part_megabytes: float,
    files: int,
    megabytes: float,
) -> None:
    """Run the plan."""
    try:
        plan = read_plan(stages)
    except PlanError as error:
        raise click.UsageError(str(error)) from error
    jobs = sorted((job for stage in plan for job in stage.jobs), key=lambda job: job.writes)  # drafters first
    results = Results(
        store=work / "results",
        home=home,
        order=[job.name for job in jobs],
        part_bytes=int(part_megabytes * MEGABYTE),
        files=files,
        total_bytes=int(megabytes * MEGABYTE),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that jobs are ended too
    known = frozenset(job.name for job in jobs)
    run = Run(work, target, (*dialogues, work / WRITERS), results, time.monotonic(), known)
    train(run, plan, minutes, reserve)


if __name__ == "__main__":
    main()
