"""`poss-export verify` on tiny bundles: what passes, what is skipped, what fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.exporters.embedding import find_embedding
from poss_export.manifest import describe_files, read_manifest, write_manifest
from tests.cli.command import refused, run
from tests.fixtures.stored import overwrite


def checks(*arguments: object) -> dict[str, dict[str, Any]]:
    lines = run("verify", *arguments, "--json", "--max-new-tokens", 12, "--draws", 1200).stdout.splitlines()
    return {check["name"]: check for check in map(json.loads, lines)}


NAMES = [
    "files",
    "text",
    "tables",
    "parity: target features",
    "parity: target logits",
    "parity: draft scores",
    "next token = highest logit",
    "n tokens = n steps",
    "tree = its paths",
    "commit = fresh run",
    "draft rows at once = in parts",
    "greedy: speculative = target-only",
    "sampled: speculative = target-only",
    "rounds: own tokens accepted",
    "rounds: drafts = afresh",
    "sampling: filters",
    "sampling: distribution",
]


def test_verify_passes_what_was_built(bundle: Path, target: Path, drafter: Path) -> None:
    made = checks(bundle, "--target", target, "--drafter", drafter)
    assert sorted(made) == sorted(NAMES)
    assert all(check["passed"] is True for check in made.values()), made
    assert "8 answers, 96 tokens, 0 mismatches" in made["greedy: speculative = target-only"]["detail"]


def test_verify_skips_parity_without_the_checkpoints(bundle: Path, target: Path) -> None:
    result = run("verify", bundle, "--num-prompts", 1, "--max-new-tokens", 2, "--draws", 8)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[3] for row in rows if row[:1] == ["parity:"]] == ["skipped"] * 3
    without_drafter = checks(bundle, "--target", target, "--num-prompts", 1)
    assert without_drafter["parity: target logits"]["passed"] is True
    assert without_drafter["parity: draft scores"]["passed"] is None
    assert "name its place as the drafter" in without_drafter["parity: draft scores"]["detail"]


def test_verify_fails_a_bundle_of_other_weights(copy: Path, target: Path, drafter: Path) -> None:
    """Its manifest is right and its engines agree with each other: only PyTorch knows better."""
    manifest = read_manifest(copy)
    data = copy / "target.onnx.data"
    weights = bytearray(data.read_bytes())
    weights[:4096] = bytes(4096)  # the first tokens' embeddings
    data.write_bytes(weights)
    write_manifest(copy, replace(manifest, files=describe_files(copy, manifest.files)))
    options = ("--target", target, "--drafter", drafter, "--max-new-tokens", 2, "--draws", 8)
    result = run("verify", copy, *options, "--num-prompts", 1)
    assert result.exit_code == 1
    failed = [line.split()[1:3] for line in result.stdout.splitlines() if "FAILED" in line]
    assert ["target", "logits"] in failed


def rebuild(folder: Path, graph: str, tensor: Any, change: Callable[[Any], Any]) -> None:
    """Change a tensor as if the bundle had been built so."""
    manifest = read_manifest(folder)
    overwrite(folder / graph, tensor, change)
    target = replace(manifest.target, embedding=find_embedding(folder / "target.onnx"))
    write_manifest(folder, replace(manifest, files=describe_files(folder, manifest.files), target=target))


def test_a_report_is_written_also_of_what_fails(copy: Path, tmp_path: Path) -> None:
    options = ("--num-prompts", 1, "--max-new-tokens", 2, "--draws", 8)
    assert run("verify", copy, *options, "--report", tmp_path / "right.html").exit_code == 0
    rebuild(copy, "target.onnx", "decoder.norm.weight", lambda values: values * np.nan)
    assert run("verify", copy, *options, "--report", tmp_path / "wrong.html").exit_code == 1
    right, wrong = ((tmp_path / f"{name}.html").read_text() for name in ("right", "wrong"))
    assert 'class="failed"' not in right
    assert '<td class="failed">failed</td><td class="detail">difference nan' in wrong


def test_a_report_that_cannot_be_is_refused_at_once(bundle: Path, tmp_path: Path) -> None:
    told = refused("verify", bundle, "--report", tmp_path / "report.txt")
    assert told.endswith("name a file that ends in .html (--report)")
    told = refused("verify", bundle, "--report-prompts")
    assert told == "prompts go into a report, and none is asked for (--report)"


def row(number: int) -> Callable[[Any], Any]:
    """Return how to spoil a row that no token of the parity check reaches."""

    def change(values: Any) -> Any:
        values[number] *= 0.99
        return values

    return change


def last_id(values: Any) -> Any:
    values[-1] -= 1
    return values


def draft_ids(values: Any) -> bool:
    return bool(values.dtype == np.int64) and values.shape == (60,)


@pytest.mark.parametrize(
    ("graph", "tensor", "change", "told"),
    [
        ("target.onnx", "cos", row(40), "target.onnx has other cosines"),
        ("draft.onnx", "sin", row(40), "draft.onnx has other sines"),
        ("draft.onnx", draft_ids, last_id, "draft.onnx has other draft ids"),
    ],
)
def test_a_wrong_table_is_named(
    graph: str, tensor: Any, change: Any, told: str, copy: Path, target: Path, drafter: Path
) -> None:
    rebuild(copy, graph, tensor, change)
    made = checks(copy, "--target", target, "--drafter", drafter, "--num-prompts", 1)
    assert {name for name, check in made.items() if check["passed"] is not True} == {"tables"}
    assert made["tables"]["detail"] == told


def test_noise_of_other_tokens_is_named(copy: Path, target: Path, drafter: Path) -> None:
    """It would cost acceptance and change no token."""
    manifest, ids = read_manifest(copy), np.load(copy / "draft_ids.npy")
    np.save(copy / "draft_ids.npy", ids[::-1])
    write_manifest(copy, replace(manifest, files=describe_files(copy, manifest.files)))
    made = checks(copy, "--target", target, "--drafter", drafter, "--num-prompts", 1)
    assert made["tables"]["detail"] == "draft_ids.npy has other draft ids"
