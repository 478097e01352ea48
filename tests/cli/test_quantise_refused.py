"""`build` of quantised bundles: one clear message for every bad input, and nothing left behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.calibration.record import load_record, save_record
from tests.cli.command import run, words

# What lines begin with that tell what is done.
PROGRESS: tuple[str, ...] = ("loading", "exporting", "checking", "quantising", "observing", "measuring")
PROGRESS += ("reading", "answering", "timing", "calibrating", "writing")


@pytest.fixture(scope="module")
def spoilt(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of samples that do not serve."""
    folder, record = tmp_path_factory.mktemp("spoilt"), load_record(samples)
    save_record(replace(record, target_sha256="1" * 64), folder / "target.npz")
    save_record(replace(record, drafter_sha256="1" * 64), folder / "drafter.npz")
    save_record(replace(record, dialogues=record.dialogues[:7]), folder / "few.npz")
    content = samples.read_bytes()
    (folder / "damaged.npz").write_bytes(content[: len(content) // 2])
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "short.txt").write_text(words(5, 6, 7), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--drafter {drafter} --observer mse", "observer is of quantised graphs"),
        ("--precision w8a8 --samples {spoilt}/none.npz", "none.npz"),
        ("--precision w8a8 --samples {spoilt}/damaged.npz", "damaged.npz"),
        ("--precision w8a8 --samples {spoilt}/target.npz", "the samples are of target"),
        ("--precision w8a8 --samples {spoilt}/few.npz", "the samples have 7 dialogues"),
        (
            "--precision w8a8 --draft-precision w8a8 --drafter {drafter} --samples {spoilt}/drafter.npz",
            "expected hash",
        ),
        ("--precision int3", "Invalid value for '--precision'"),
        ("--draft-precision fp32", "Invalid value for '--draft-precision'"),
        ("--draft-precision float", "a draft precision needs a drafter"),
        ("--precision fp8 --samples {samples}", "target precision fp8 is for TensorRT"),
        ("--precision int8 --cache-form static", "target precision int8 (weights only) is for ONNX Runtime"),
        ("--precision int8 --draft-precision int8", "a draft precision needs a drafter"),
        ("--precision int8 --layer-precision head", "layer precision 'head': expected LAYER=PRECISION"),
        ("--precision int8 --layer-precision =int8", "layer precision '=int8': expected LAYER=PRECISION"),
        ("--precision int8 --layer-precision head=int3", "'head=int3': expected LAYER=PRECISION"),
        ("--precision int8 --layer-precision nose=int8", "no layer fits 'nose'"),
        ("--budget 0.1", "budget is of quantised graphs"),
        ("--layer-precision head=int8", "precisions of layers are of a quantised target"),
        ("--precision int8 --draft-layer-precision head=int8", "are of a quantised draft"),
        ("--precision int8 --held-out {spoilt}/none.txt", "none.txt' cannot be read"),
        ("--precision int8 --held-out {spoilt}/short.txt", "short.txt' has 3 tokens; quality is measured on"),
        (
            "--precision int8 --drafter {drafter} --held-out-prompts {spoilt}/empty.jsonl",
            "empty.jsonl' holds no prompts; write some into it",
        ),
        ("--precision int8 --held-out-prompts {spoilt}/none.jsonl", "none.jsonl' cannot be read"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    arguments: str, message: str, options: Any, drafter: Path, samples: Path, spoilt: Path, tmp_path: Path
) -> None:
    given = arguments.format(drafter=drafter, samples=samples, spoilt=spoilt).split()
    result = run(*options, "-o", tmp_path / "out", *given)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(PROGRESS)]
    assert message in lines[-1]
    assert len([line for line in lines if line.lower().startswith("error: ")]) == 1
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_text_is_refused_before_the_work(options: Any, spoilt: Path, tmp_path: Path) -> None:
    result = run(*options, "-o", tmp_path / "out", "--precision", "int8", "--held-out", spoilt / "short.txt")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
