"""The commands about TensorRT engines: what they print, and one clear message for every bad input."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.runtime.sessions import cuda
from tests.cli.command import refused, run


def test_lint_passes_a_static_graph(target_graph: Callable[..., Path]) -> None:
    result = run("inspect", "--lint", target_graph("llama", "static"))
    assert result.exit_code == 0
    assert "0 violations of the rules of 20" in result.stdout


def test_lint_names_node_rule_and_remedy(target_graph: Callable[..., Path]) -> None:
    path = target_graph("llama", "shared")
    text, values = (run("inspect", "--lint", path, *options) for options in ([], ["--json"]))
    assert text.exit_code == values.exit_code == 1
    violations: list[dict[str, Any]] = json.loads(values.stdout)["violations"]
    assert len(text.stdout.splitlines()) == len(violations) + 1
    assert {violation["rule"] for violation in violations} == {"domain"}
    first = text.stdout.splitlines()[0]
    assert first.startswith(f"GroupQueryAttention '{violations[0]['node']}' breaks rule domain (")
    assert first.endswith("export with cache form 'static', which has standard operators only")


def test_lint_refuses_what_is_no_graph(tmp_path: Path) -> None:
    result = run("inspect", "--lint", tmp_path / "none.onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be read as ONNX" in result.stderr


RTX = ("--backend", "tensorrt-rtx")


def test_build_says_what_each_engine_took(target: Path, tmp_path: Path) -> None:
    command = (
        "build",
        target,
        "-o",
        tmp_path / "b",
        *RTX,
        "--compute-capability",
        "8.9",
        "--precision",
        "bf16",
    )
    result = run(*command)
    assert result.exit_code == 0, result.output
    line = result.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"target-tensorrt-rtx-sm89-128\.engine: \d+ MB in \d+\.\d s, peak memory \d+ MB, attention: 2 fused",
        line,
    )
    assert "building target-tensorrt-rtx-sm89-128.engine 6/6" in result.stderr
    again = run(*command)
    assert again.exit_code == 0
    assert "is unchanged: nothing to build" in again.stderr
    assert again.stdout == result.stdout


def test_a_dry_run_estimates_engines(target: Path, tmp_path: Path) -> None:
    result = run("build", target, "-o", tmp_path / "b", *RTX, "--compute-capability", "12.0", "--dry-run")
    assert result.exit_code == 0
    assert not list(tmp_path.iterdir())
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["cache_form"].strip() == "static"
    assert rows["engines.backend"].startswith("tensorrt-rtx 1.")
    assert int(rows["engines.estimates.target.engine"].replace(",", "")) > 1_000_000
    assert int(rows["engines.estimates.target.peak_memory"].replace(",", "")) > 100_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RTX, "no compute capability; name one of 7.5,"),
        ((*RTX, "--compute-capability", "9.0"), "compute capability '9.0' is unknown to TensorRT-RTX"),
        (
            (*RTX, "--compute-capability", "8.9", "--optimization-level", 3),
            "TensorRT-RTX has no option optim",
        ),
        ((*RTX, "--compute-capability", "8.9", "--timing-cache", "t"), "TensorRT-RTX has no timing cache"),
        ((*RTX, "--compute-capability", "8.9", "--cache-form", "shared"), "'shared' is not for TensorRT"),
        ((*RTX, "--compute-capability", "8.9", "--capacity", 129), "capacity is 129 tokens; this target was"),
        (
            (*RTX, "--compute-capability", "8.9", "--engine-capacity", 128),
            "engine capacity is 128 tokens; beside",
        ),
        (
            (*RTX, "--compute-capability", "8.9", "--engine-width", 0),
            "engine width is 0 rows; it may be 1 to 128, the longest chunk of a prompt (--engine-width)",
        ),
        (("--engine-width", 4), "options of engines need a backend that builds some"),
        (("--engine-capacity", 64), "options of engines need a backend that builds some"),
        (("--compute-capability", "8.9"), "options of engines need a backend that builds some"),
        (("--precision", "bf16"), "precision bf16 is for TensorRT"),
    ],
)
def test_build_refuses_what_it_cannot_do(
    options: tuple[Any, ...], message: str, target: Path, tmp_path: Path
) -> None:
    assert message in refused("build", target, "-o", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_build_says_which_extra_a_backend_needs(target: Path, tmp_path: Path) -> None:
    message = refused("build", target, "-o", tmp_path / "out", "--backend", "tensorrt")
    assert message == ("TensorRT needs tensorrt, which is not installed: pip install 'poss-export[tensorrt]'")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(cuda.has_driver(), reason="there is a GPU driver")
def test_engines_need_a_gpu_to_run(engine_bundle: Callable[..., Path]) -> None:
    message = refused("generate", engine_bundle("fp16"), "<5>", "--raw", *RTX)
    assert message.startswith("no CUDA driver on this machine (libcuda.so.1): TensorRT engines run on")


def test_engines_of_another_backend_are_not_there(engine_bundle: Callable[..., Path]) -> None:
    message = refused("generate", engine_bundle("fp16"), "<5>", "--raw", "--backend", "tensorrt")
    assert message.endswith("run its build again for backend tensorrt")


def test_inspect_names_the_engines(engine_bundle: Callable[..., Path]) -> None:
    folder = engine_bundle("fp16")
    card = " ".join(run("inspect", folder).stdout.split())
    assert "ONNX Runtime, TensorRT-RTX; static caches" in card
    assert "for 8.9, 12.0: 48 tokens; " in card
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert facts["engines"][1]["spec"]["options"]["compute_capabilities"] == ["8.9", "12.0"]
    assert facts["sizes"]["engines"] > 0
