"""`poss-export train`, as a user types it."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from poss_export.cli.main import main
from poss_export.drafters.checkpoint import load_drafter
from poss_export.files import lock, opened
from poss_export.training.dialogues import Dialogues


@pytest.fixture
def train(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Result]:
    """Return train(*arguments): runs the command on a tiny target and a few dialogues."""
    random = np.random.default_rng(0)
    pairs = [(random.integers(3, 90, 5).tolist(), random.integers(3, 90, 20).tolist()) for _ in range(12)]
    Dialogues.from_answers(pairs, holdout=0.25).save(tmp_path / "dialogues.npz")

    def run(*arguments: str) -> Result:
        fixed = ["train", str(tiny_folder("llama")), "--dialogues", str(tmp_path / "dialogues.npz")]
        sizes = ["--budget", "500", "--draft-vocab", "64"]
        return CliRunner().invoke(main, [*fixed, *sizes, *arguments])

    return run


def test_it_writes_a_drafter_with_its_record_and_says_what_it_is_worth(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    out = tmp_path / "drafter"
    result = train("--preset", "poss-1", "-o", str(out))
    assert result.exit_code == 0, result.stderr
    assert "acceptance by depth [" in result.stdout
    assert "training 500/500" in result.stderr
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "training.json",
        "training.jsonl",
        "training.png",
    }
    assert load_drafter(str(out)).drafter.config.num_specialists == 6
    held_out = json.loads((out / "training.json").read_text())["held_out"]
    assert len(held_out["alpha"]) == 6
    assert held_out["tree_tau"].keys() == {"8", "16", "32"}
    assert all(tau >= 1 for tau in held_out["tree_tau"].values())


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    result = train("--preset", "eagle", "-o", str(tmp_path / "drafter"))
    assert result.exit_code == 2
    assert "plots need matplotlib, which is not installed" in result.stderr
    assert not (tmp_path / "drafter").exists()


def test_choices_recipe_and_losses_are_the_users(train: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "drafter"
    choices = ("--fusion", "gated", "--drafting", "parallel", "--num-masks", "3", "--shared-mask", "true")
    losses = ("--recipe", "paper", "--token-weight", "0.5", "--top-weight", "2")
    result = train("--preset", "poss-2", *choices, *losses, "-o", str(out))
    assert result.exit_code == 0, result.stderr
    config = load_drafter(str(out)).drafter.config
    assert (config.fusion, config.drafting, config.num_masks, config.shared_mask) == (
        "gated",
        "parallel",
        3,
        True,
    )
    assert (config.num_specialists, config.positions_per_specialist) == (3, 2)
    record = json.loads((out / "training.json").read_text())
    assert [stage["learning_rate"] for stage in record["stages"]] == [3e-5, 3e-5]
    assert {(stage["token_weight"], stage["top_weight"]) for stage in record["stages"]} == {(0.5, 2.0)}
    assert record["held_out"]["tree_tau"] == {}  # four positions are too few for trees of depth 6


def test_it_never_overwrites_a_drafter_or_joins_another_run(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "drafter"
    train("--preset", "eagle", "-o", str(out))
    before = (out / "model.safetensors").read_bytes()
    result = train("--preset", "eagle", "-o", str(out))
    assert result.exit_code == 2
    assert "already holds a drafter" in result.stderr
    assert (out / "model.safetensors").read_bytes() == before

    busy = tmp_path / "busy" / ".training"
    busy.mkdir(parents=True)
    with opened(busy) as descriptor:
        assert lock(descriptor)
        result = train("--preset", "eagle", "-o", str(busy.parent))
    assert result.exit_code == 2
    assert "another process is training into" in result.stderr

    killed = tmp_path / "killed"
    with monkeypatch.context() as kill:
        kill.setattr("poss_export.training.trainer.Trainer.run", lambda *_: 1 / 0)
        assert train("--preset", "eagle", "-o", str(killed)).exit_code == 1
    result = train("--preset", "eagle", "--seed", "7", "-o", str(killed))
    assert result.exit_code == 2
    assert "unfinished run with other options" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "poss-9"), "'poss-9' is not one of 'eagle', 'hass'"),
        (("--preset", "eagle", "--budget", "0"), "budget is 0; it must be at least 1"),
        (("--preset", "eagle", "--draft-vocab", "97"), "draft vocabulary of 97 ids: expected 1 to 96"),
        (("--preset", "eagle", "--dialogues", "missing.npz"), "missing.npz: not a dialogues file"),
        (("--preset", "eagle", "--answer-tokens", "0"), "answer_tokens is 0; it must be at least 1"),
        (("--preset", "eagle", "--minutes", "0"), "minutes is 0.0; it must be more than 0 (--minutes)"),
        (("--preset", "eagle", "--seed", "-1"), "seed is -1; it must be 0 or a positive number (--seed)"),
        (("--preset", "eagle", "--steps", "0"), "steps is 0; it must be at least 1 (--steps)"),
        (("--preset", "eagle", "--threads", "0"), "threads is 0; it must be at least 1"),
        (("--preset", "eagle", "--num-layers", "2"), "only drafting 'parallel' takes more than 1 layer"),
        (("--preset", "eagle", "--start", "no-drafter"), "'no-drafter' is neither a folder nor"),
        (("--preset", "eagle3"), "a target of 2 layers lacks the usual taps, 2, half and 3 before the end"),
        (("--preset", "eagle3", "--tap", "1", "--tap", "2"), "layers [1, 2], the target has 2 layers"),
        (("--preset", "eagle", "--tap", "1"), "fusion 'linear' has taps; only fusion 'taps' takes it"),
        (
            ("--preset", "eagle3", "--tap", "0", "--feature-weight", "1"),
            "feature_weight must be 0 (--feature-weight)",
        ),
    ],
)
def test_bad_input_is_one_message(
    train: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = train(*arguments, "-o", str(tmp_path / "drafter"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "drafter").exists()


def test_dialogues_that_are_spoilt_or_cannot_be_written_leave_nothing(
    train: Callable[..., Result], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out, spoilt = tmp_path / "drafter", tmp_path / "spoilt.npz"
    spoilt.write_bytes(b"PK\x03\x04junk")
    result = train("--preset", "eagle", "--dialogues", str(spoilt), "-o", str(out))
    assert (result.exit_code, out.exists()) == (2, False)
    assert "spoilt.npz: not a dialogues file" in result.stderr
    arguments = ["train", str(tiny_folder("llama")), "--preset", "eagle", "-o", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, out.exists()) == (2, False)
    assert "has no chat template to write dialogues with: give dialogues (--dialogues)" in result.stderr


def test_dialogues_of_which_none_is_held_out_are_refused_before_the_work(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "few.npz"
    Dialogues.from_answers([([5, 6], [7] * 20), ([8, 9], [10] * 20)], holdout=0.01).save(path)
    (tmp_path / "dialogues.npz").write_bytes(path.read_bytes())
    result = train("--preset", "eagle", "-o", str(tmp_path / "drafter"))
    assert result.exit_code == 2
    assert "0 of 2 dialogues are held out" in result.stderr


def test_a_folder_of_something_else_is_left_alone(train: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    result = train("--preset", "eagle", "-o", str(tmp_path / "bundle"))
    assert result.exit_code == 2
    assert "holds other files; give a new folder" in result.stderr
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["manifest.json"]
