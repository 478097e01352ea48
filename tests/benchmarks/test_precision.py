"""The table of precisions: its figures from values made by hand, and whole runs with tiny bundles."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks import precision
from benchmarks.answers import Answer
from benchmarks.compare import Row
from benchmarks.precision import bundle_figures, draft_milliseconds, peer_figures
from benchmarks.precision_subjects import PEERS, Ours, open_bundles
from benchmarks.questions import Question
from benchmarks.workers import Setup
from poss_export.config import TreeShape
from poss_export.errors import BundleError, InputError
from poss_export.evaluation.held_out import HELD_OUT
from poss_export.manifest import read_manifest
from poss_export.prompts import Prompt
from tests.fixtures.bundle_row import bundle_row
from tests.fixtures.write_gguf import write_gguf

TREE = TreeShape(depth=4, top_k=3, nodes=8)
CAPACITY = 48
BUILD = Callable[..., Path]


def answer(tokens: list[int], seconds: float, rounds: int, draft_seconds: float = 0.0) -> Answer:
    return Answer(tokens, 1.0, seconds, rounds, draft_seconds=draft_seconds)


def asking(number: int, ids: list[int]) -> Question:
    return Question("q", Prompt(str(number), ("?",)), ids)


def plain_and_drafted() -> tuple[Row, Row]:
    plain = Row("plain", [[answer([1, 2, 3, 4], 4.0, 3), answer([5, 6, 7, 8], 4.0, 3)]] * 3)
    drafted = [
        [answer([1, 2, 3, 4], 1.0, 1, draft), answer([5, 6, 7, 8], 3.0, 3, draft)]
        for draft in (0.4, 0.2, 8.0)
    ]
    return plain, Row("drafted", drafted)


def test_figures_of_a_bundle(tiny_bundle: Path) -> None:
    plain, drafted = plain_and_drafted()
    twice_as_fast = Row("reference", [[answer([1, 2, 3, 4], 2.0, 3)] * 2])
    ours = Ours("tiny", read_manifest(tiny_bundle), Setup(tiny_bundle, (2,), CAPACITY, 1))
    asked = [asking(1, [5]), asking(2, [6, 7])]
    found = bundle_figures(ours, plain, drafted, twice_as_fast, asked)
    assert found["draft_milliseconds"] == pytest.approx(200)  # the median repeat: 0.8 s in 4 rounds
    assert found["target_only"]["tokens_per_second"] == pytest.approx(1.0)
    assert found["target_only"]["to_reference"] == pytest.approx(0.5)
    assert found["speculative"]["ratio"] == pytest.approx(2.0)
    assert found["speculative"]["to_reference"] == pytest.approx(1.0)
    assert found["speculative"]["tau"] == pytest.approx(6 / 4)
    assert found["speculative"]["equal_answers"] == 2
    assert found["divergences"] == {}
    size = {name: (tiny_bundle / name).stat().st_size / 1e6 for name in read_manifest(tiny_bundle).files}
    assert found["megabytes"] == {
        "target": pytest.approx(size["target.onnx"] + size["target.onnx.data"]),
        "draft": pytest.approx(size["draft.onnx"] + size["draft.onnx.data"]),
    }


def test_a_drafter_without_rounds_costs_nothing() -> None:
    assert draft_milliseconds(Row("short", [[answer([1], 1.0, 0)]])) == 0


def test_figures_of_a_peer(tmp_path: Path) -> None:
    plain, drafted = plain_and_drafted()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes(bytes(500_000))
    (tmp_path / "tokenizer.json").write_bytes(bytes(9))
    setup = Setup(tmp_path, (2,), CAPACITY, 1)
    found = peer_figures("onnxruntime-genai int8", setup, drafted, plain, [asking(1, [5])])
    assert found["megabytes"] == pytest.approx(1.0)
    assert found["to_reference"] == pytest.approx(2.0)
    assert "-p int8 -e cpu" in found["made_by"]


@pytest.fixture(scope="module")
def build(random_drafter: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> BUILD:
    """Return build(target_path, precision): a bundle with a random drafter."""

    def make(path: Path, form: Any) -> Path:
        from poss_export.bundling.build import build_bundle
        from poss_export.bundling.plan import plan_build
        from poss_export.drafters.checkpoint import DrafterCheckpoint
        from poss_export.targets.checkpoint import open_target

        target = open_target(str(path))
        drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
        plan = plan_build(target, drafter, tree=TREE, capacity=CAPACITY, precision=form, cache_form="shared")
        folder: Path = tmp_path_factory.mktemp("precision") / form
        build_bundle(plan, folder, argv=["test"], force=False, report=lambda _: None)
        return folder

    return make


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Prompts and a text."""
    folder = tmp_path_factory.mktemp("given")
    np.savez(
        folder / "prompts.npz",
        ids=np.array([10, 11, 12, 20, 21, 22], np.uint16),
        answer_mask=np.array([0, 1, 1, 0, 0, 1], np.uint8),
        offsets=np.array([0, 3, 6]),
        validation=np.array([True, True]),
    )
    (folder / "text.txt").write_text(" ".join(f"<{i % 90 + 3}>" for i in range(40)))
    return SimpleNamespace(folder=folder, prompts=folder / "prompts.npz", text=folder / "text.txt")


def run(given: SimpleNamespace, *arguments: object) -> Result:
    options = ["--max-new-tokens", "6", "--repeats", "2", "--past", "8", "--calls", "2", "--threads", "1"]
    defaults = {"--prompts": given.prompts, "--text": given.text, "--window": "16"}
    for name, value in defaults.items():
        options += [] if name in arguments else [name, str(value)]
    return CliRunner().invoke(precision.main, [*options, *map(str, arguments)])


@pytest.fixture(scope="module")
def half(tiny_folder: Callable[[str], Path], build: BUILD) -> Path:
    """A bundle of the tiny target in fp16."""
    return build(tiny_folder("llama"), "fp16")


@pytest.fixture(scope="module")
def measured(given: SimpleNamespace, tiny_bundle: Path, half: Path) -> SimpleNamespace:
    """A run with an fp32 and an fp16 bundle."""
    table, plot = given.folder / "table.json", given.folder / "table.png"
    result = run(given, tiny_bundle, half, "--json", table, "--plot", plot)
    return SimpleNamespace(result=result, table=table, plot=plot)


def test_two_precisions_in_one_table(measured: SimpleNamespace) -> None:
    assert measured.result.exit_code == 0, measured.result.output
    values = json.loads(measured.table.read_text())
    full, half = values["bundles"]
    assert (full["name"], half["name"]) == ("fp32 / fp32", "fp16 / fp16")
    assert (full["quality"]["divergence"], full["quality"]["agreement"]) == (0.0, 1.0)
    assert 0 < half["quality"]["divergence"] < 1e-2
    assert half["quality"]["perplexity"] == pytest.approx(full["quality"]["perplexity"], rel=0.05)
    assert half["megabytes"]["target"] < 0.75 * full["megabytes"]["target"]
    for row in (full, half):
        assert row["plain_width"] == 1
        assert list(row["milliseconds_by_width"]) == ["1", "2", "4", "8", "12", "16", "24", "32"]
        assert row["plain_steps_by_width"]["1"] == 1.0
        assert row["draft_milliseconds"] > 0
        assert len(row["speculative"]["tokens_per_second_by_repeat"]) == 2
        assert row["speculative"]["tau"] >= row["target_only"]["tau"] == 1.0
    assert full["speculative"]["equal_answers"] == 2
    assert values["peers"] == values["not_installed"] == []
    assert values["text"]["tokens"] == 40
    assert values["environment"]["packages"]["onnxruntime"]
    assert values["settings"]["window"] == "16"


def test_the_table_is_narrow_enough(measured: SimpleNamespace) -> None:
    lines = measured.result.stdout.splitlines()
    tables = lines[: next(i for i, line in enumerate(lines) if "speculative answers" in line)]
    assert max(map(len, tables)) <= 140
    (half,) = [line for line in tables if line.startswith("fp16 / fp16, speculative")]
    assert len(half.split()) == 4 + 10  # name, then every column


def test_the_picture_is_a_png(measured: SimpleNamespace) -> None:
    assert measured.plot.read_bytes().startswith(b"\x89PNG")


def test_answers_that_part_are_found_with_their_gap(tiny_bundle: Path) -> None:
    plain, drafted = plain_and_drafted()
    drafted.answers[0][1] = answer([5, 6, 9, 8], 3.0, 3)
    ours = Ours("tiny", read_manifest(tiny_bundle), Setup(tiny_bundle, (2,), CAPACITY, 1))
    asked = [asking(1, [5]), asking(2, [6, 7])]
    found = precision.divergences(ours, plain, drafted, asked)
    assert list(found) == ["q:2"]
    assert found["q:2"]["position"] == 2
    assert found["q:2"]["verdict"] == "mismatch"


def test_a_mismatch_is_an_exit_code(
    given: SimpleNamespace, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verdict, code in (("near-tie", 0), ("not claimed", 0), ("mismatch", 1)):
        found = {"position": 3, "gap": 1.0, "verdict": verdict}
        rows = {"bundles": [bundle_row(divergences={"q:1": found})], "peers": []}
        monkeypatch.setattr(precision, "measure_all", lambda *_, rows=rows: rows)
        assert run(given, tiny_bundle).exit_code == code


def test_a_peer_that_is_not_installed_has_a_row(
    given: SimpleNamespace, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda _: None)
    monkeypatch.setattr(precision, "measure_all", lambda *_: {"bundles": [bundle_row()], "peers": []})
    result = run(given, tiny_bundle, "--peers")
    assert result.exit_code == 0, result.output
    assert [line.split()[-2:] for line in result.stdout.splitlines() if "not installed" in line] == [
        ["not", "installed"]
    ] * len(PEERS)


def refuse(*_: Any) -> Any:
    raise RuntimeError("measured")


def test_bundles_that_cannot_be_compared(
    given: SimpleNamespace,
    tiny_bundle: Path,
    half: Path,
    changed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "measure_all", refuse)
    target = replace(read_manifest(tiny_bundle).target, name="other", sha256="1" * 64)
    other = changed(target=target).rename(tmp_path / "other")
    alone = changed(drafter=None)
    for bundles, message in (
        ((tiny_bundle, other), "has the target 'other', which is another than that of .*tiny"),
        ((tiny_bundle, alone), "has no drafter to measure"),
        ((half, tiny_bundle), "the first bundle, which must be in fp32: .*fp16 / fp16"),
        ((tiny_bundle, tmp_path / "nothing"), "no bundle folder"),
        ((tiny_bundle, "--window", "49"), "need a capacity of 49, .*tiny' has 48"),
        ((tiny_bundle, "--past", "17"), "need a capacity of 49"),
        ((tiny_bundle, "--plot", tmp_path / "x.pdf"), "ends in .png"),
    ):
        with pytest.raises((InputError, BundleError), match=message):
            raise run(given, *bundles).exception or AssertionError(message)


def test_texts_that_cannot_be_read(given: SimpleNamespace, tiny_bundle: Path, tmp_path: Path) -> None:
    for content, message in ((b"\xff\xfe\x00", "is no text"), (b"<5>", "has 1 tokens")):
        (tmp_path / "text").write_bytes(content)
        result = run(given, tiny_bundle, "--text", tmp_path / "text")
        assert isinstance(result.exception, InputError)
        assert message in str(result.exception)


def test_two_bundles_of_one_precision_have_names_of_their_own(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    found = open_bundles([tiny_bundle, copy], 1)
    assert [ours.name for ours in found] == [f"fp32 / fp32, {folder}" for folder in (tiny_bundle, copy)]


def test_the_held_out_text_is_long_enough_for_its_windows() -> None:
    words = HELD_OUT.read_text(encoding="utf-8").split()
    assert len(words) > 1000


def test_every_peer_answers_and_is_judged(
    given: SimpleNamespace, tiny_folder: Callable[[str], Path], build: BUILD, tmp_path: Path
) -> None:
    if not all(map(find_spec, ("onnxruntime_genai", "llama_cpp"))):
        pytest.skip("needs the peers: pip install -c constraints.txt -r benchmarks/requirements.txt")
    target = write_gguf(tmp_path / "target.gguf", tiny_folder("llama"), "llama")
    bundle = build(target, "fp32")
    text = tmp_path / "text.txt"
    text.write_text("abccbabbacabcaab")
    table = tmp_path / "table.json"
    peers = ["--peers", "--target", target, "--cache", tmp_path / "peers"]
    result = run(given, bundle, *peers, "--text", text, "--json", table)
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    rows = {row["name"]: row for row in json.loads(table.read_text())["peers"]}
    assert list(rows) == list(PEERS)
    for row in rows.values():
        assert math.isfinite(row["quality"]["perplexity"])
        assert row["target_only"]["tokens_per_second"] > 0
        assert all(map(os.path.getsize, row["files"]))
    # Only llama.cpp's: for targets as tiny as these genai's own fp32 files give other logits.
    assert (
        0 < rows["llama.cpp Q8_0"]["quality"]["divergence"] < rows["llama.cpp Q4_1"]["quality"]["divergence"]
    )
