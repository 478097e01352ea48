"""What runs on a device, and what that costs, within some minutes; everything is in files as it comes.

    python -m benchmarks.hardware out/hardware --minutes 8

OUT/hardware.jsonl gets a line for each thing found, so that a run that is cut off tells what it knew;
OUT/log.txt what the commands said. `docs/generate_hardware.py` makes the page of it. Every step is a process
of its own, which may fail, hang or crash. The steps of one phase run together: all builds do, and what is
timed has the machine to itself. Whether a bundle loses nothing is asked as soon as it is there.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks import environment
from offline import processes
from offline.processes import COMMAND

PRECISIONS = ("fp16", "fp32")


@dataclass(frozen=True)
class Step:
    """A command that is run for at most `seconds`; `needs` must exist, or it is skipped.

    Lines of JSON that it prints are findings; so is what it writes to `report`. `variables` are added to the
    environment. `then` follows in the same phase, while the phase's other steps go on.
    """

    name: str
    command: Sequence[str]
    seconds: float
    needs: Sequence[Path] = ()
    report: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    then: "Step | None" = None

    def with_patience(self, times: float) -> "Step":
        """Return it with so many times the seconds, and what follows too."""
        then = self.then and self.then.with_patience(times)
        return replace(self, seconds=times * self.seconds, then=then)


class Findings:
    """The run's two files; several threads may write."""

    def __init__(self, out: Path) -> None:
        """Begin both files anew in `out`."""
        out.mkdir(parents=True, exist_ok=True)
        self._lines, self._log, self._lock = out / "hardware.jsonl", out / "log.txt", threading.Lock()
        for path in (self._lines, self._log):
            path.write_text("", encoding="utf-8")

    def add(self, step: str, **values: Any) -> None:
        """Write a finding, for good: whoever ends this process cannot take it back."""
        entry = {"step": step, "at": datetime.now(UTC).isoformat(timespec="seconds"), **values}
        self._append(self._lines, json.dumps(entry))

    def say(self, step: str, line: str) -> None:
        """Write what a step said."""
        self._append(self._log, f"{step}: {line}")

    def _append(self, path: Path, line: str) -> None:
        with self._lock, path.open("a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")
            file.flush()
            os.fsync(file.fileno())


def run_phases(phases: Sequence[Sequence[Step]], findings: Findings, seconds: float) -> None:
    """Run phase after phase, the steps of each together, until the time is up."""
    end = time.monotonic() + seconds
    for phase in phases:
        threads = [threading.Thread(target=_run_chain, args=(step, findings, end)) for step in phase]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _run_chain(step: Step | None, findings: Findings, end: float) -> None:
    while step is not None:
        _run_step(step, findings, end)
        step = step.then


def _run_step(step: Step, findings: Findings, end: float) -> None:
    absent = [path.name for path in step.needs if not path.exists()]
    seconds = min(step.seconds, end - time.monotonic())
    if absent or seconds <= 0:
        why = f"needs {', '.join(absent)}" if absent else "no time was left"
        findings.add(step.name, skipped=why)
        return
    start = time.monotonic()
    with subprocess.Popen(
        step.command,
        env={**os.environ, **step.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        timer = threading.Timer(seconds, processes.end, [process])
        timer.start()
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if not _found(step.name, line, findings) and line.strip():
                last = line.strip()
                findings.say(step.name, line)
    timer.cancel()
    code = process.returncode
    if step.report is not None and step.report.exists():
        findings.add(step.name, report=json.loads(step.report.read_text(encoding="utf-8")))
    took = time.monotonic() - start
    ended = {"ended": "time was up"} if took >= seconds else {}
    findings.add(step.name, exit=code, seconds=round(took, 1), **ended, last=last)


def _found(step: str, line: str, findings: Findings) -> bool:
    """Write a line that is a JSON object as a finding; return whether it was one."""
    if not line.startswith("{"):
        return False
    with suppress(ValueError):
        findings.add(step, **json.loads(line))
        return True
    return False


def plan(work: Path, target: str, drafter: str, provider: str, large: str, limit: int) -> list[list[Step]]:
    """Return the steps by phase: what is built, then what is measured, the most telling first."""
    bundles = {precision: work / f"bundle-{precision}" for precision in PRECISIONS}
    engines, graphs, at = work / "bundle-engines", work / "large", ("--provider", provider)
    few = {"OMP_NUM_THREADS": "4"}  # as builds run beside each other
    # What rounds cost beside builds is kept apart: later steps plan by the costs that are kept.
    apart = {"XDG_CACHE_HOME": str(work / "cache")}
    build = (*COMMAND, "build", target, "--drafter", drafter, "--cache-form", "static")
    verify = (*COMMAND, "verify", "--target", target, "--drafter", drafter, "--json")

    def module(name: str, *arguments: Any) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]

    def built(precision: str, seconds: float) -> Step:
        command = [*build, "--precision", precision, "-o", str(bundles[precision])]
        return Step(f"build {precision}", command, seconds, variables=few, then=verified(precision))

    def verified(precision: str) -> Step:
        command = [*verify, str(bundles[precision]), *at]
        return Step(f"verify {precision}", command, 75, [bundles[precision]], variables=apart)

    def measured(name: str, precision: str, seconds: float) -> Step:
        folder = bundles[precision]
        return Step(f"{name} {precision}", module("hardware_steps", name, folder, *at), seconds, [folder])

    def cost(precision: str) -> Step:
        folder, report = bundles[precision], work / f"cost-{precision}.json"
        command = module("cost", folder, *at, "--limit", limit, "--json", report)
        return Step(f"cost {precision}", command, 60, [folder], report)

    first = [
        Step("machine", module("hardware_steps", "machine"), 30),
        built("fp16", 150),
        built("fp32", 130),
        Step("build large", module("hardware_large", "write", graphs, "--shape", large), 100, variables=few),
        Step("ask tensorrt-rtx", module("hardware_steps", "ask-rtx"), 40),
    ]
    then = [
        cost("fp16"),
        measured("placement", "fp16", 30),
        measured("slots", "fp16", 60),
        cost("fp32"),
        Step("large", module("hardware_large", "measure", graphs, *at), 60, [graphs / "done"]),
        measured("slots", "fp32", 60),
        measured("placement", "fp32", 30),
        Step(
            "build tensorrt-rtx",
            module("hardware_steps", "build-engines", target, drafter, bundles["fp16"], engines),
            120,
            [bundles["fp16"]],
        ),
        Step(
            "verify tensorrt-rtx",
            [*verify, str(engines), "--backend", "tensorrt-rtx"],
            75,
            [engines / "manifest.json"],
        ),
        # Other versions of libraries warn of other things.
        Step(
            "pytest",
            [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-W", "default", "tests/runtime"],
            120,
        ),
    ]
    return [first, *([step] for step in then)]


@click.command(help=__doc__.partition("\n")[0])
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Where bundles go.  [OUT]")
@click.option("--minutes", type=click.FloatRange(0), default=8, show_default=True)
@click.option("--target", default="smollm2-135m", show_default=True)
@click.option("--drafter", default="fspad", show_default=True)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cuda", show_default=True)
@click.option("--large", default="8b", show_default=True, help="Shape of the large target: 8b or tiny.")
@click.option("--limit", default=8, show_default=True, help="Questions that are answered for the speed.")
@click.option("--patience", default=1.0, show_default=True, help="Times longer that each step may take.")
def main(
    out: Path,
    work: Path | None,
    minutes: float,
    target: str,
    drafter: str,
    provider: str,
    large: str,
    limit: int,
    patience: float,
) -> None:
    """Run everything; say where the findings are."""
    phases = [
        [step.with_patience(patience) for step in phase]
        for phase in plan(work or out, target, drafter, provider, large, limit)
    ]
    run_phases(phases, Findings(out), 60 * minutes)
    click.echo(f"{out / 'hardware.jsonl'}")


if __name__ == "__main__":
    environment.run(main)
