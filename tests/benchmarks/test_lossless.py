"""The command that compares answers: what it counts, and what makes its exit code 1."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks import lossless
from poss_export.evaluation.equality import Divergence


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given") / "prompts.npz"
    np.savez(
        path,
        ids=np.array([10, 11, 12, 20, 21, 22], np.uint16),
        answer_mask=np.array([0, 1, 1, 0, 0, 1], np.uint8),
        offsets=np.array([0, 3, 6]),
        validation=np.array([True, True]),
    )
    return path


def run(bundle: Path, prompts: Path, *more: str) -> Result:
    arguments = [bundle, "--prompts", prompts, "--max-new-tokens", 8, "--threads", 1, *more]
    return CliRunner().invoke(lossless.main, [str(value) for value in arguments])


def test_equal_answers(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, prompts, "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 0, result.output
    heading, row, total = result.stdout.splitlines()
    assert heading.split()[:4] == ["prompts", "answers", "tokens", "tau"]
    assert row.split()[:3] == ["prompts.npz", "2", "16"]
    assert total == "2 prompts: 2 equal, 0 near-ties, 0 mismatches"
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["divergences"] == {}
    assert [len(answer["token_ids"]) for answer in values["answers"]["prompts.npz"]] == [8, 8]


def test_sampled_answers_are_equal_for_every_seed(tiny_bundle: Path, prompts: Path) -> None:
    sampled = ("--temperature", "1", "--top-p", "0.9", "--seed", "3", "--seed", "4")
    result = run(tiny_bundle, prompts, *sampled)
    assert result.exit_code == 0, result.output
    *_, row, total = result.stdout.splitlines()
    assert row.split()[:3] == ["prompts.npz", "4", "32"]
    assert total == "2 prompts with 2 seeds: 4 equal, 0 near-ties, 0 mismatches"


INEXACT = {"least_width": None, "siblings": 0.5}
EXACT = {"least_width": 3, "siblings": 1e-7}


@pytest.mark.parametrize(
    ("widths", "gap", "line", "total", "code"),
    [
        (None, 1e-6, "near-tie: ", "0 equal, 2 near-ties, 0 mismatches", 0),
        (None, 1.0, "MISMATCH: ", "0 equal, 0 near-ties, 2 mismatches", 1),
        (EXACT, 1e-6, "MISMATCH: ", "0 equal, 0 near-ties, 2 mismatches", 1),
        (
            INEXACT,
            1e-6,
            "not claimed: ",
            "0 equal, 0 near-ties, 0 mismatches, 2 differ where nothing is claimed",
            0,
        ),
    ],
)
def test_what_differs_is_judged_as_by_verify(
    widths: Any,
    gap: float,
    line: str,
    total: str,
    code: int,
    tiny_bundle: Path,
    prompts: Path,
    changed: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tiny_bundle
    if widths is not None:
        bundle = changed(quantisation={"target": {"scheme": "w8a8"}}, quality={"widths": widths})
    monkeypatch.setattr(lossless, "find_divergence", lambda *_: Divergence(3, gap))
    result = run(bundle, prompts)
    assert result.exit_code == code, result.output
    *_, first, second, last = result.stdout.splitlines()
    for told, number in ((first, 0), (second, 1)):
        assert told == f"{line}prompts.npz:{number}, token 3, gap {gap:.2e}"
    assert last == f"2 prompts: {total}"
