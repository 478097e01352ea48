"""The command `calibrate` on tiny bundles: what it writes and prints, and one message for every bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from poss_export.acceptance import AcceptanceCurves
from poss_export.calibration.record import load_record
from tests.cli import command


def done(*arguments: object) -> Result:
    return command.done("calibrate", *arguments, "--threads", 1)


def refused(*arguments: object) -> str:
    return command.refused("calibrate", *arguments, "--threads", 1)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "<{i}> <{i + 1}> <{2 * i}>"}}\n' for i in range(1, 13)))
    return path


def test_given_prompts_are_recorded(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    result = done(tiny_bundle, "<9>", "<8> <7>", "--prompts", prompts, "-o", path, "--max-new-tokens", 7)
    record = load_record(path)
    asked = [dialogue.prompt.tolist() for dialogue in record.dialogues]
    assert asked == [[9], [8, 7], *([i, i + 1, 2 * i] for i in range(1, 13))]
    assert record.argv[:3] == ("poss-export", "calibrate", str(tiny_bundle))
    assert result.stdout == (
        f"{path}: 14 dialogues, {len(record.rounds)} rounds, {record.tokens} tokens, "
        f"tau {record.tau:.2f}, sha256 {record.sha256}\n"
    )
    assert "recording 14/14" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["prompts.jsonl", "samples.npz"]


def test_the_first_prompts_are_enough(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    done(tiny_bundle, "--prompts", prompts, "-o", path, "--num-prompts", 3, "--max-new-tokens", 2)
    assert [d.prompt[0] for d in load_record(path).dialogues] == [1, 2, 3]


def test_prompts_are_invented_where_none_are_given(chat_bundle: Path, tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ("-o", tmp_path / name, "--num-prompts", 4, "--max-new-tokens", 3, "--seed", seed)
        result = done(chat_bundle, *options)
        assert "inventing prompts 4/4" in result.stderr
        made.append([d.prompt.tolist() for d in load_record(tmp_path / name).dialogues])
    assert made[0] == made[1] != made[2]
    assert len(made[0]) == 4
    assert all((prompt[0], prompt[-2:]) == (1, [2, 3]) for prompt in made[0])  # in the chat template


def test_acceptance_and_its_plot(tiny_bundle: Path, prompts: Path, tmp_path: Path) -> None:
    record, acceptance, plot = (tmp_path / name for name in ("r.npz", "acceptance.json", "plot.png"))
    outputs = ("-o", record, "--acceptance", acceptance, "--plot", plot)
    result = done(tiny_bundle, "--prompts", prompts, *outputs, "--json")
    values = json.loads(result.stdout)
    fitted, made = AcceptanceCurves.load(acceptance), load_record(record)
    assert values["record"] == str(record)
    assert values["sha256"] == fitted.record_sha256 == made.sha256
    assert (values["dialogues"], values["rounds"]) == (12, fitted.rounds)
    assert (values["tokens"], values["tau"]) == (made.tokens, pytest.approx(made.tau))
    assert values["acceptance"]["after"] == {"ece": fitted.after.ece, "brier": fitted.after.brier}
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = done(tiny_bundle, "--prompts", prompts, *outputs, "--force").stdout.splitlines()[1]
    assert table.startswith(f"acceptance: expected calibration error {fitted.before.ece:.4f}, fitted ")


def test_what_is_there_is_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "samples.npz", tmp_path / "acceptance.json"
    path.write_bytes(b"old")
    assert "exists: choose another file, or replace it (--force)" in refused(tiny_bundle, "<5>", "-o", path)
    other.write_bytes(b"old")
    new = tmp_path / "new.npz"
    assert "acceptance.json' exists" in refused(tiny_bundle, "<5>", "-o", new, "--acceptance", other)
    assert (path.read_bytes(), other.read_bytes(), new.exists()) == (b"old", b"old", False)
    done(tiny_bundle, "<5>", "-o", path, "--max-new-tokens", 2, "--force")
    assert len(load_record(path).dialogues) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "has no chat template to invent prompts with: give prompts"),
        (("",), "the prompt is empty"),
        (("<5> " * 49,), "the prompt has 49 tokens, the bundle's capacity is 48"),
        (("--prompts", "nowhere.jsonl"), "'nowhere.jsonl' cannot be read"),
        (("--prompts", "/dev/null"), "'/dev/null' holds no prompts; write some into it"),
        (("<5>", "--threads", 0), "threads is 0; it must be at least 1"),
        (("<5>", "--acceptance", "{}/none/a.json"), "for 'a.json'; make it first"),
        (("<5>", "--acceptance", "{}/samples.npz"), "is named for two outputs; name two files"),
        (("<5>", "--plot", "{}/plot.jpg"), "name a file that ends in .png"),
        (("<5>", "--acceptance", "{}/a.json"), "fitted to 1 dialogues"),
        (("<5>", "--plot", "{}/a.png"), "fitted to 1 dialogues"),
    ],
)
def test_bad_requests_leave_nothing(
    arguments: tuple[Any, ...], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = [str(word).format(tmp_path) for word in arguments]
    result = command.run("calibrate", tiny_bundle, "-o", tmp_path / "samples.npz", *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "is a folder; name a file" in refused(tiny_bundle, "<5>", "-o", tmp_path, "--force")


def test_bundles_that_cannot_be_recorded_are_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "samples.npz"
    assert "no bundle folder at" in refused(tmp_path / "none", "<5>", "-o", output)
    bundle = changed(precision="bf16")
    assert "is in bf16, which ONNX Runtime does not run here" in refused(bundle, "<5>", "-o", output)
    assert not output.exists()


def test_acceptance_needs_a_drafter(changed: Callable[..., Path], tmp_path: Path) -> None:
    bundle, output = changed(drafter=None), tmp_path / "samples.npz"
    for option, name in (("--acceptance", "a.json"), ("--plot", "a.png")):
        message = refused(bundle, "<5>", "-o", output, option, tmp_path / name)
        assert "has no drafter, whose acceptance could be calibrated" in message
    assert not output.exists()
    done(bundle, "<5>", "-o", output, "--max-new-tokens", 4)
    assert {len(item.path) for item in load_record(output).rounds} == {1}
    assert {len(item.tree) for item in load_record(output).rounds} == {1}


def test_prompts_that_cannot_be_answered_are_told_behind_the_others(
    tiny_bundle: Path, chat_bundle: Path, tmp_path: Path
) -> None:
    """Also those whose second turn is too long."""
    path, prompts = tmp_path / "samples.npz", tmp_path / "prompts.jsonl"
    lines = [{"prompt": "<5>"}, {"prompt": "<5> " * 49}, {"turns": ["<5>", "<5> " * 49]}, {"prompt": "<7>"}]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = command.run("calibrate", chat_bundle, "--prompts", prompts, "-o", path, "--max-new-tokens", 2)
    assert result.exit_code == 2
    assert len(load_record(path).dialogues) == 3
    assert result.stderr.splitlines()[-3] == "error: 2 of 4 prompts were not answered:"
    assert [n for n in range(1, 5) if f"{str(prompts)!r}, line {n}: " in result.stderr] == [2, 3]
    path.unlink()
    prompts.write_text("\n".join(map(json.dumps, lines[1:2] * 2)), encoding="utf-8")
    result = command.run("calibrate", tiny_bundle, "--prompts", prompts, "-o", path)
    assert (result.exit_code, result.stdout, path.exists()) == (2, "", False)
    assert "2 of 2 prompts were not answered" in result.stderr
