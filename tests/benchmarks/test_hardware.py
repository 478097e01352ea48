"""The hardware run keeps what it finds, whatever becomes of a step; its measurements run on the CPU too."""

import json
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import hardware_large, hardware_steps
from benchmarks.hardware import Findings, Step, plan, run_phases
from benchmarks.hardware_steps import answer_in_slots, place_nodes
from poss_export.config import TreeShape
from poss_export.runtime.sessions.ort import OrtOptions


@pytest.fixture(scope="session")
def static_bundle(
    tiny_folder: Callable[[str], Path],
    random_drafter: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a tiny bundle of the form that GPUs run."""
    from poss_export.bundling.build import build_bundle
    from poss_export.bundling.plan import plan_build
    from poss_export.drafters.checkpoint import DrafterCheckpoint
    from poss_export.targets.checkpoint import open_target

    target = open_target(str(tiny_folder("llama")))
    drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
    tree = TreeShape(depth=4, top_k=3, nodes=8)
    folder = tmp_path_factory.mktemp("static") / "bundle"
    build_bundle(
        plan_build(target, drafter, tree=tree, capacity=48, precision="fp32", cache_form="static"), folder
    )
    return folder


def python(name: str, code: str, seconds: float = 60, **fields: Any) -> Step:
    return Step(name, [sys.executable, "-c", code], seconds, **fields)


def run(out: Path, *phases: list[Step], seconds: float = 60) -> list[dict[str, Any]]:
    run_phases(phases, Findings(out), seconds)
    return [json.loads(line) for line in (out / "hardware.jsonl").read_text().splitlines()]


def test_findings_and_words_go_to_their_files(tmp_path: Path) -> None:
    found, ended = run(tmp_path, [python("step", "print('hello'); print('{\"width\": 4}')")])
    assert (found["step"], found["width"]) == ("step", 4)
    assert ended["exit"] == 0
    assert (tmp_path / "log.txt").read_text() == "step: hello\n"


def test_a_failing_step_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    steps = [python("bad", "raise SystemExit('no such device')")], [python("good", "")]
    bad, good = run(tmp_path, *steps)
    assert (bad["exit"], bad["last"]) == (1, "no such device")
    assert (good["step"], good["exit"]) == ("good", 0)


def test_a_hanging_step_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; print('{\"early\": 1}', flush=True);"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    start = time.monotonic()
    early, ended = run(tmp_path, [python("slow", code, seconds=3)])
    assert time.monotonic() - start < 30
    assert (early["early"], ended["ended"]) == (1, "time was up")


def test_a_report_is_a_finding(tmp_path: Path) -> None:
    report = tmp_path / "cost.json"
    (found, _) = run(tmp_path, [python("cost", f"open({str(report)!r}, 'w').write('[1]')", report=report)])
    assert found["report"] == [1]


def test_what_cannot_run_is_named(tmp_path: Path) -> None:
    steps = [python("verify", "", needs=[tmp_path / "bundle"])], [python("late", "")]
    (skipped,) = run(tmp_path, steps[0])
    assert skipped["skipped"] == "needs bundle"
    (late,) = run(tmp_path, steps[1], seconds=0)
    assert late["skipped"] == "no time was left"


def test_steps_of_a_phase_run_together(tmp_path: Path) -> None:
    wait = (
        "import pathlib, time; pathlib.Path({0!r}).touch()\n"
        "while not pathlib.Path({1!r}).exists(): time.sleep(.1)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    found = run(tmp_path, [python("one", wait.format(a, b), 30), python("two", wait.format(b, a), 30)])
    assert [entry["exit"] for entry in found] == [0, 0]


def test_a_step_may_follow_another_while_the_others_go_on(tmp_path: Path) -> None:
    wait = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(.1)"
    flag = tmp_path / "flag"
    after = python("after", "import os, pathlib; pathlib.Path(os.environ['FLAG']).touch()", 30)
    chain = replace(python("first", "", 30), then=replace(after, variables={"FLAG": str(flag)}))
    found = run(tmp_path, [chain, python("other", wait.format(str(flag)), 30)])
    assert [(entry["step"], entry["exit"]) for entry in found] == [("first", 0), ("after", 0), ("other", 0)]
    patient = chain.with_patience(2)
    assert (patient.seconds, patient.then and patient.then.seconds) == (60, 60)


def test_the_plan_asks_what_matters_first(tmp_path: Path) -> None:
    first, *measured = plan(tmp_path, "smollm2-135m", "poss-2", "cuda", "8b", 8)
    assert {step.name for step in first} >= {"machine", "build fp16", "build fp32", "build large"}
    verified = [step.then for step in first if step.then is not None]
    assert [step.name for step in verified] == ["verify fp16", "verify fp32"]
    assert all("XDG_CACHE_HOME" in step.variables for step in verified), "costs found beside builds"
    assert [len(phase) for phase in measured] == [1] * len(measured), "what is timed has the machine"
    names = [step.name for (step,) in measured]
    assert names[:4] == ["cost fp16", "placement fp16", "slots fp16", "cost fp32"]
    assert names[-1] == "pytest"


def test_nodes_are_counted_by_where_they_ran(static_bundle: Path) -> None:
    target, draft = place_nodes(static_bundle, OrtOptions())
    assert (target["graph"], draft["graph"]) == ("target", "draft")
    assert set(target["nodes"]) == {"CPUExecutionProvider"}
    assert target["host_or_copies"]["Attention"] == 2


def test_answers_at_once_are_timed(static_bundle: Path) -> None:
    found = list(answer_in_slots(static_bundle, "cpu", ["<5> <9>", "<7>"]))
    assert [entry["slots"] for entry in found] == [1, 4, 8]
    assert all(entry["answers"] == 2 and entry["tokens_per_second"] > 0 for entry in found)


def test_the_large_target_has_one_layer_of_weights(tmp_path: Path) -> None:
    graphs = str(tmp_path / "large")
    assert CliRunner().invoke(hardware_large.main, ["write", graphs, "--shape", "tiny"]).exit_code == 0
    config = hardware_large.SHAPES["tiny"]
    layer = 64 * (128 + 64 + 192 + 96) + 2 * 64
    expected = 2 * (2 * config.vocab_size * config.hidden_size + layer)
    size = (tmp_path / "large" / "target.onnx.data").stat().st_size
    assert expected <= size < 1.2 * expected + 128 * 1024  # rotary tables too
    arguments = ["measure", graphs, "--provider", "cpu", "--repeats", "1"]
    found = json.loads(CliRunner().invoke(hardware_large.main, arguments).stdout)
    assert list(map(int, found["milliseconds_by_width"])) == list(hardware_large.WIDTHS)
    assert found["round_milliseconds"] > 0
    assert list(found["draft_milliseconds_by_rows"]) == ["1", "5"]


def test_the_machine_is_described() -> None:
    found = json.loads(CliRunner().invoke(hardware_steps.main, ["machine"]).stdout)
    assert found["cores"] >= 1
    assert isinstance(found["device"], dict)


def test_the_page_tells_what_was_found(tmp_path: Path) -> None:
    generator = runpy.run_path("docs/generate_hardware.py")
    parts = {"round": 2.0, "target": 1.5, "draft": 0.3, "tau": 1.0}
    entries = [
        {
            "step": "machine",
            "date": "2026-11-28T10:00:00+00:00",
            "processor": "a processor",
            "cores": 16,
            "device": {"name": "NVIDIA H100", "driver_version": "580.1"},
            "packages": {"onnxruntime-gpu": "1.31.1"},
        },
        {"step": "verify fp16", "name": "files", "passed": True, "detail": "9 files"},
        {"step": "verify fp16", "name": "parity", "passed": False, "detail": "difference 9"},
        {
            "step": "cost fp16",
            "report": {
                "speculative": {**parts, "tau": 3.0},
                "target_only": parts,
                "milliseconds_by_width": {"1": 2.0, "8": 3.0},
            },
        },
        {"step": "placement fp16", "graph": "draft", "nodes": {"CUDA": 5}, "host_or_copies": {"TopK": 1}},
        {"step": "verify fp32", "skipped": "needs bundle-fp32"},
        {"step": "pytest", "exit": 1, "last": "a | b"},
    ]
    (tmp_path / "h100.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page = generator["page"]([generator["read_record"](tmp_path / "h100.jsonl")])
    assert "No GPU has run anything" not in page
    for words in (
        "## NVIDIA H100, 28 November 2026",
        "onnxruntime-gpu 1.31.1; 16 cores",
        "| parity | **fails** | difference 9 |",
        "3.00 times as fast as the target alone",
        "| plain steps | 1.00 | 1.50 |",
        "On the host, or copies to it: 1 TopK.",
        "| verify fp32 | skipped: needs bundle-fp32 |",
        "| pytest | failed: a \\| b |",
    ):
        assert words in page
