"""The table of drafters: its figures from answers made by hand, and whole runs with tiny models."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks import drafters
from benchmarks.drafters import parted, speed_figures, tau_figures
from benchmarks.questions import Question
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import load_drafter, save_drafter
from poss_export.errors import InputError
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import open_bundle
from tests.fixtures.answers import made
from tests.fixtures.write_record import write_record

TREE = TreeShape(depth=3, top_k=2, nodes=4)


def test_tau_is_pooled_over_rounds_and_over_prompts() -> None:
    figures = tau_figures(TREE, [made(9, rounds=2), made(3, rounds=2), made(1, rounds=0)])
    assert figures["tau"] == pytest.approx((8 + 2) / 4)
    assert figures["tau_by_prompt"] == pytest.approx((4 + 1) / 2)
    assert (figures["tree"], figures["rounds"], figures["tokens"]) == ("3,2,4", 4, 13)


def test_speed_is_that_of_the_same_prompts() -> None:
    ours = [made(9, rounds=4, seconds=2.0), made(3, rounds=1, seconds=3.0)]
    plain = [made(9, seconds=5.0), made(3, seconds=3.0)]
    figures = speed_figures(TREE, ours, plain)
    assert figures["tokens_per_second"] == pytest.approx(12 / 5)
    assert figures["target-only"]["tokens_per_second"] == pytest.approx(12 / 8)
    assert figures["ratio"] == pytest.approx(8 / 5)
    assert figures["median_ratio"] == pytest.approx((2.5 + 1) / 2)
    assert figures["decode_ratio"] == pytest.approx(6 / 3)
    assert figures["milliseconds"] == pytest.approx(
        {"draft": 100.0, "target": 200.0, "round": 600.0, "outside": 300.0}
    )


def test_an_answer_that_differs_is_named(tiny_bundle: Path) -> None:
    asked = [Question("q", Prompt("1", ("?",)), [5, 6, 7]), Question("q", Prompt("2", ("?",)), [8, 9])]
    plain = [made(4), made(4)]
    ours = [plain[0], replace(plain[1], token_ids=(0, 1, 9, 3))]
    with open_bundle(tiny_bundle) as bundle:
        found = parted("tree 3,2,4", bundle, asked, ours, plain)
    assert list(found) == ["tree 3,2,4, q:2"]
    assert found["tree 3,2,4, q:2"]["position"] == 2


@pytest.fixture(scope="module")
def tiny(
    tiny_folder: Callable[[str], Path],
    random_drafter: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """A target, a PosS-2 drafter, one that drafts four positions at once, prompts; and a table of them."""
    import torch

    from poss_export.drafters.model import Drafter
    from poss_export.targets.checkpoint import open_target
    from poss_export.training.initialise import initialise

    folder = tmp_path_factory.mktemp("table")
    target = open_target(str(tiny_folder("llama")))
    levels = random_drafter(target.config, 3)
    at_once = Drafter(replace(levels.config, drafting="parallel", num_masks=3))
    at_once.draft_ids.copy_(levels.draft_ids)
    for name, drafter in (("levels", levels), ("at-once", at_once)):
        initialise(drafter, 1.0, 0)  # as before training: surer drafters give a chain the score 0
        save_drafter(folder / name, drafter, target.sha256, torch.float32)
    write_record(folder / "levels")
    np.savez(
        folder / "prompts.npz",
        ids=np.array([10, 11, 12, 20, 21, 22], np.uint16),
        answer_mask=np.array([0, 1, 1, 0, 0, 1], np.uint8),
        offsets=np.array([0, 3, 6]),
        validation=np.array([True, True]),
    )
    found = SimpleNamespace(target=tiny_folder("llama"), folder=folder, table=folder / "table.json")
    plot = folder / "table.png"
    found.result = run(found, "levels", "at-once", "--json", str(found.table), "--plot", str(plot))
    found.plot = plot
    return found


def run(tiny: SimpleNamespace, *arguments: str) -> Result:
    """Run the command; folders of drafters by their names. A tree is measured besides 3,2,4."""
    named = [str(tiny.folder / value) if value in ("levels", "at-once") else value for value in arguments]
    prompts = [] if "--prompts" in arguments else ["--prompts", str(tiny.folder / "prompts.npz")]
    shape = ["--max-new-tokens", "8", "--tree", "3,2,4", "--speed-tree", "3,2,4"]
    return CliRunner().invoke(drafters.main, [str(tiny.target), *shape, *prompts, *named])


def copied(tiny: SimpleNamespace, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    table = tmp_path / "table.json"
    table.write_bytes(tiny.table.read_bytes())
    return table, json.loads(table.read_text())


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("measured")


def test_a_table_of_drafters_that_draft_level_by_level_and_at_once(tiny: SimpleNamespace) -> None:
    assert tiny.result.exit_code == 0, tiny.result.output
    first, second = json.loads(tiny.table.read_text())["drafters"]
    assert (first["drafter"], second["drafter"]) == ("levels", "at-once")
    assert first["parameters"] == load_drafter(str(tiny.folder / "levels")).parameters
    assert [len(found["acceptance"]) for found in (first, second)] == [6, 4]  # of at-once, all it has
    assert [found["chain"]["tree"] for found in (first, second)] == ["6,1,6", "4,1,4"]
    for found in (first, second):
        assert found["answers"] == 2 * 2 + 2  # prompts with chain and tree, and those timed
        assert found["divergences"] == {}
        assert found["trees"][0]["tau"] >= 1
        assert found["speed"]["tau"] == found["trees"][0]["tau"]  # the same prompts and tree
        assert found["chain"]["tokens"] == found["trees"][0]["tokens"]
    assert "12 answers: 12 equal to target-only" in tiny.result.output


def test_the_picture_is_a_png(tiny: SimpleNamespace) -> None:
    assert tiny.plot.read_bytes().startswith(b"\x89PNG")


def test_rows_of_the_file_are_not_measured_again(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = copied(tiny, tmp_path)
    monkeypatch.setattr(drafters, "exported", refuse)
    again = run(tiny, "at-once", "levels", "--json", str(table))
    assert again.exit_code == 0, again.output
    lines = [sorted(result.stdout.splitlines()[:-1]) for result in (again, tiny.result)]
    assert lines[0] == lines[1]  # but for the order of the drafters, and the load average
    for changed in (["--again"], ["--tree", "2,2,4"], ["--max-new-tokens", "7"], ["--speed-limit", "1"]):
        assert str(run(tiny, "levels", "--json", str(table), *changed).exception) == "measured"


def test_a_killed_run_keeps_what_it_measured(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, values = copied(tiny, tmp_path)
    table = tmp_path / "killed.json"
    figures = values["drafters"][0]
    measured = iter([figures])
    monkeypatch.setattr(drafters, "exported", lambda *_: nullcontext())
    monkeypatch.setattr(drafters, "answer", lambda *_, **__: None)
    monkeypatch.setattr(drafters, "measure", lambda *_: next(measured))
    assert run(tiny, "levels", "at-once", "--json", str(table)).exit_code == 1
    (kept,) = json.loads(table.read_text())["drafters"]
    assert kept == figures


def test_rows_of_other_drafters_stay_in_the_file(tiny: SimpleNamespace, tmp_path: Path) -> None:
    table, values = copied(tiny, tmp_path)
    assert run(tiny, "at-once", "--json", str(table)).exit_code == 0
    key = str
    assert sorted(json.loads(table.read_text())["drafters"], key=key) == sorted(values["drafters"], key=key)


def test_a_mismatch_is_an_exit_code(tiny: SimpleNamespace, tmp_path: Path) -> None:
    table, values = copied(tiny, tmp_path)
    for verdict, code in (("near-tie", 0), ("not claimed", 0), ("mismatch", 1)):
        found = {"position": 3, "gap": 1.0, "verdict": verdict}
        values["drafters"][1]["divergences"] = {"tree 3,2,4, q:1": found}
        table.write_text(json.dumps(values))
        result = run(tiny, "levels", "at-once", "--json", str(table))
        assert result.exit_code == code, result.output
        assert ("MISMATCH: at-once, tree 3,2,4, q:1" in result.output) == bool(code)


MISTAKES = {
    "an unknown drafter": (["levels", "nobody"], "drafter 'nobody' is neither"),
    "a tree that is too deep": (["levels", "at-once", "--tree", "5,2,4"], "at-once, tree 5,2,4: tree depth"),
    "no tree": (["levels", "--tree", "5,2"], "tree '5,2': expected"),
    "no prompts": (["levels", "--prompts", "empty.jsonl"], "'empty.jsonl' holds no prompts"),
    "a folder that is missing": (["levels", "--plot", "nowhere/x.png"], "no folder 'nowhere'"),
    "another JSON file": (["levels", "--json", "other.json"], "'other.json' is no table"),
    "a broken JSON file": (["levels", "--json", "broken.json"], "'broken.json' is no table"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_told_before_any_work(
    tiny: SimpleNamespace,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"empty.jsonl": "", "other.json": '{"trees": []}', "broken.json": '{"drafters": ['}
    for name, text in files.items():
        Path(name).write_text(text)
    monkeypatch.setattr(drafters, "exported", refuse)
    if "--json" not in arguments:
        arguments = [*arguments, "--json", "table.json"]
    result = run(tiny, *arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_two_drafters_of_one_name_are_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    other = shutil.copytree(tiny.folder / "at-once", tmp_path / "levels")
    result = run(tiny, "levels", str(other))
    assert isinstance(result.exception, InputError)
    assert "two drafters are named levels" in str(result.exception)
