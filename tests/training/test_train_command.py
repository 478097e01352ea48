"""`poss-export train`, as a user types it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from poss_export.cli import main
from poss_export.drafters.checkpoint import load_drafter
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
        ".training",
        "config.json",
        "model.safetensors",
        "training.json",
        "training.jsonl",
    }
    assert load_drafter(str(out)).drafter.config.num_specialists == 6


def test_it_never_overwrites_a_drafter_or_joins_another_run(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    out = tmp_path / "drafter"
    train("--preset", "eagle", "-o", str(out))
    before = (out / "model.safetensors").read_bytes()
    result = train("--preset", "eagle", "-o", str(out))
    assert result.exit_code == 2
    assert "already holds a drafter" in result.stderr
    assert (out / "model.safetensors").read_bytes() == before

    (out / "config.json").unlink()  # as a run that was killed before its end
    result = train("--preset", "eagle", "--seed", "7", "-o", str(out))
    assert result.exit_code == 2
    assert "unfinished run with other options" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "poss-9"), "'poss-9' is not one of 'eagle', 'hass'"),
        (("--preset", "eagle", "--budget", "0"), "budget is 0; it must be at least 1"),
        (("--preset", "eagle", "--draft-vocab", "97"), "draft vocabulary of 97 ids: expected 1 to 96"),
        (("--preset", "eagle", "--dialogues", "missing.npz"), "missing.npz: not a dialogues file"),
        (("--preset", "eagle", "--prompts", "missing.jsonl"), "'missing.jsonl' cannot be read"),
        (("--preset", "eagle", "--threads", "0"), "threads is 0; it must be at least 1"),
    ],
)
def test_bad_input_is_one_message(
    train: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = train(*arguments, "-o", str(tmp_path / "drafter"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "drafter" / "config.json").exists()
