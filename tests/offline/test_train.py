"""A training run brings home what is there, when all goes well and when it is cut off."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from offline import train as runner
from offline.parts import join
from offline.results import Results

# Stands in for `synthesise` and `offline.together`: writes what they write, hangs where the preset says so.
STAND_IN = """
import json, pathlib, shlex, sys, time
words = sys.argv[1:]
if words[0] == "synthesise":
    out = pathlib.Path(words[words.index("-o") + 1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "part-0000.npz").write_bytes(b"dialogues")
    raise SystemExit
jobs = [words[at + 1 : at + 3] for at, word in enumerate(words) if word == "--job"]
for log, text in jobs:
    job = shlex.split(text)
    out, hangs = pathlib.Path(job[job.index("-o") + 1]), "fspad" in job
    folder = out / ".training" / "drafter" if hangs or "hass" in job else out
    folder.mkdir(parents=True)
    (out / "training.jsonl").write_text(json.dumps({"done": 1}) + "\\n")
    (folder / "model.safetensors").write_bytes((" ".join(words[:5]) + text).encode())
    (folder / "config.json").write_text("{}")
    if "hass" in job:
        pathlib.Path(log).write_text("no memory")
time.sleep(60 if hangs else 0)
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, object]]:
    for name in ("COMMAND", "TOGETHER"):
        monkeypatch.setattr(runner, name, (sys.executable, "-c", STAND_IN))
    places = [str(tmp_path / "work"), str(tmp_path / "home")]
    result = CliRunner().invoke(runner.main, [*places, "--reserve", "0", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in (tmp_path / "home" / "run.log").read_text().splitlines()]


def brought(tmp_path: Path, name: str) -> dict[str, bytes]:
    """Return the files of a drafter that came home."""
    (archive,) = join(tmp_path / "home", tmp_path / "joined", [f"{name}.tar.xz"])
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {file: content.read() for file, content in files.items() if content is not None}


def test_drafters_come_home_and_start_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ("--stage", "1:dialogues*2", "--stage", "1:eagle", "--stage", "1:poss-2<eagle")
    lines = run(tmp_path, monkeypatch, "--minutes", "1", *stages)
    assert [line["process"] for line in lines if "exit" in line] == [
        *("dialogues-0", "dialogues-1", "together", "together")
    ]
    assert [line["job"] for line in lines if line.get("finished")] == ["eagle", "poss-2"]
    model = brought(tmp_path, "poss-2")["poss-2/model.safetensors"].decode()
    assert f"--start {tmp_path}/work/eagle" in model
    assert f"--dialogues {tmp_path}/work/dialogues" in model
    assert brought(tmp_path, "dialogues")["dialogues/part-0000.npz"] == b"dialogues"
    assert lines[-1]["done"]


def test_a_run_that_is_cut_off_yields_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(tmp_path, monkeypatch, "--minutes", "0.1", "--stage", "1:fspad", "--stage", "1:poss-2<fspad")
    assert [line["process"] for line in lines if line.get("ended") == "time was up"] == ["together"]
    assert [line["finished"] for line in lines if "finished" in line] == [False, True]
    assert "fspad/model.safetensors" in brought(tmp_path, "fspad")
    assert f"--start {tmp_path}/work/fspad/.training/drafter" in str(brought(tmp_path, "poss-2"))


def test_a_job_that_fails_says_why_and_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(tmp_path, monkeypatch, "--minutes", "1", "--stage", "1:hass,eagle")
    ends = {line["job"]: line for line in lines if "finished" in line}
    assert ends["hass"] == {**ends["hass"], "finished": False, "said": "no memory"}
    assert ends["eagle"]["finished"]


def test_a_job_goes_on_with_a_drafter_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, "--minutes", "1", "--stage", "1:slow=poss-2<some/eagle --steps 4")
    model = brought(tmp_path, "slow")["slow/model.safetensors"].decode()
    assert "--start some/eagle" in model
    assert model.endswith("--steps 4")


def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        runner.main, [str(tmp_path / "work"), str(tmp_path / "home"), "--minutes", "1", "--stage", "eagle"]
    )
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


def results(tmp_path: Path, files: int, total: int = 10_000) -> Results:
    (tmp_path / "home").mkdir(exist_ok=True)
    return Results(tmp_path / "store", tmp_path / "home", ["a", "b", "c"], 1500, files, total)


def folder(path: Path, size: int) -> Path:
    """Write a folder whose file does not get smaller."""
    path.mkdir(exist_ok=True)
    content = b"".join(hash_of.to_bytes(8, "big") for hash_of in map(_mixed, range(size // 8)))
    (path / "model").write_bytes(content)
    return path


def _mixed(number: int) -> int:
    return (number + 1) * 0x9E3779B97F4A7C15 % (1 << 64)


def test_what_does_not_fit_stays_and_the_first_come_first(tmp_path: Path) -> None:
    kept = results(tmp_path, files=3)
    for name, size in (("c", 100), ("b", 1500), ("a", 100)):
        kept.pack(name, folder(tmp_path / name, size))
    assert kept.bring_home() == ["b.tar.xz.000", "b.tar.xz.001", "b.tar.xz.002", "b.tar.xz.003"]
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"a.tar.xz.000", "c.tar.xz.000"}
    assert results(tmp_path, files=9, total=1200).bring_home()[0] == "b.tar.xz.000"


def test_a_result_that_grows_out_of_its_place_leaves_home(tmp_path: Path) -> None:
    kept = results(tmp_path, files=1)
    kept.pack("a", folder(tmp_path / "a", 100))
    assert kept.bring_home() == []
    kept.pack("a", folder(tmp_path / "a", 1500))
    assert len(kept.bring_home()) == 4
    assert not list((tmp_path / "home").iterdir())


def test_what_has_not_changed_is_not_packed_again(tmp_path: Path) -> None:
    kept, source = results(tmp_path, files=3), folder(tmp_path / "a", 100)
    kept.pack("a", source)
    (part,) = (tmp_path / "store").iterdir()
    before = part.stat().st_mtime_ns
    kept.pack("a", source)
    assert part.stat().st_mtime_ns == before


def test_whoever_ends_the_run_ends_its_jobs(tmp_path: Path) -> None:
    work, code = tmp_path / "work", "from offline import train; train.TOGETHER = {}; train.main()"
    command = [sys.executable, "-c", code.format((sys.executable, "-c", STAND_IN))]
    words = [str(work), str(tmp_path / "home"), "--minutes", "1", "--stage", "1:fspad"]
    with subprocess.Popen([*command, *words]) as runner_process:
        while not (work / "fspad" / ".training" / "drafter" / "config.json").exists():
            time.sleep(0.1)
        (job,) = (
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"{work}/fspad" in path.read_text(errors="replace")
        )
        runner_process.terminate()
    assert runner_process.returncode == 143
    assert not Path(f"/proc/{job}").exists()


def test_a_drafter_that_is_not_finished_brings_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, monkeypatch, "--minutes", "0.1", "--stage", "1:fspad")
    assert brought(tmp_path, "fspad")["fspad/training.jsonl"] == b'{"done": 1}\n'
