"""A whole training run on a tiny made target: it learns, it resumes, it reproduces itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from poss_export.drafters.checkpoint import load_drafter
from poss_export.errors import InputError
from poss_export.targets.checkpoint import Target, open_target
from poss_export.training.decoding import BatchDecoder
from poss_export.training.dialogues import Dialogues
from poss_export.training.hardware import matmul_dtype
from poss_export.training.options import TrainOptions
from poss_export.training.presets import DrafterChoices, Stage
from poss_export.training.run import train
from poss_export.training.synthesis import greedy
from poss_export.training.trainer import Trainer
from poss_export.training.views import load_dialogues, see


@pytest.fixture(scope="module")
def target(tiny_folder: Callable[[str], Path]) -> Target:
    return open_target(str(tiny_folder("llama")))


@pytest.fixture(scope="module")
def dialogues(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Greedy answers of the target; a random target cannot be generalised, so the held-out ones repeat."""
    random = np.random.default_rng(0)
    prompts = random.integers(3, 90, (20, 6)).tolist()
    batch = BatchDecoder(target.load_decoder(), slots=16, capacity=40)
    answers = dict(batch.run(prompts, 24, stop_ids=(), choose=greedy))
    path = tmp_path_factory.mktemp("data") / "dialogues.npz"
    pairs = [(prompt, answers[i]) for i, prompt in enumerate(prompts)]
    Dialogues.from_answers([pair for pair in pairs for _ in range(2)], holdout=0.5).save(path)
    return path


def options(dialogues: Path, **changes: Any) -> TrainOptions:
    values: dict[str, Any] = {
        "preset": "poss-2",
        "dialogues": (dialogues,),
        "budget": 150_000,
        "draft_vocab_size": 64,
    }
    return TrainOptions(**{**values, **changes})


def silent(activity: str, done: int, total: int, note: str) -> None:
    assert done >= 0
    assert total > 0


def test_features_that_stay_on_the_device_train_the_same_drafter(
    target: Target, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does: the features go from the target to the trainer without a file."""
    short = options(dialogues, budget=2000)
    train(target, short, tmp_path / "kept", silent)
    decoder = target.load_decoder().to(dtype=matmul_dtype(torch.device("cpu")))
    view = see(target, decoder, load_dialogues(target, short.dialogues), (), None, silent)
    train(target, short, tmp_path / "passed-on", silent, view=view)
    kept, other = (tmp_path / name / "model.safetensors" for name in ("kept", "passed-on"))
    assert other.read_bytes() == kept.read_bytes()


def test_a_run_learns_and_writes_what_the_exporter_needs(
    target: Target, dialogues: Path, tmp_path: Path
) -> None:
    record = train(target, options(dialogues), tmp_path / "poss-2", silent)
    untrained = train(target, options(dialogues, budget=1), tmp_path / "untrained", silent)
    assert record["held_out"]["chain_tau"] > 1.4 * untrained["held_out"]["chain_tau"]
    loaded = load_drafter(str(tmp_path / "poss-2"))
    assert loaded.target_sha256 == target.sha256
    assert loaded.drafter.config.num_specialists == 3
    assert loaded.drafter.config.positions_per_specialist == 2
    assert len(loaded.drafter.draft_ids) == 64
    assert (tmp_path / "poss-2" / "training.jsonl").stat().st_size > 0


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights(
    target: Target, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(dialogues, budget=60_000, preset="poss-3")
    train(target, chosen, tmp_path / "whole", silent)

    monkeypatch.setattr("poss_export.training.trainer.SAVE_EVERY_SECONDS", 0.0)
    training = 0

    def kill(activity: str, done: int, total: int, note: str) -> None:
        nonlocal training
        training += activity == "training"
        if training in (3, 28):  # once in each stage
            training += 1
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            train(target, chosen, tmp_path / "killed", kill)
    train(target, chosen, tmp_path / "killed", kill)
    whole, resumed = (load_drafter(str(tmp_path / name)).drafter for name in ("whole", "killed"))
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_one_seed_gives_one_drafter_and_another_seed_another(
    target: Target, dialogues: Path, tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(target, options(dialogues, budget=20_000, seed=seed), tmp_path / name, silent)
        weights.append(load_drafter(str(tmp_path / name)).drafter.fusion.fc.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_held_out_dialogues_are_never_trained_on(
    target: Target, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    step = Trainer._step

    def watch(self: Trainer, stage: Stage, indices: np.ndarray) -> dict[str, Tensor]:
        seen.update(indices.tolist())
        return step(self, stage, indices)

    monkeypatch.setattr(Trainer, "_step", watch)
    train(target, options(dialogues, budget=20_000), tmp_path / "out", silent)
    assert seen == set(np.flatnonzero(~Dialogues.load(dialogues).validation).tolist())


def test_bad_options_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="preset 'poss-9' is unknown; expected one of: eagle"):
        TrainOptions(preset="poss-9")
    with pytest.raises(InputError, match="budget is 0; it must be at least 1"):
        TrainOptions(preset="eagle", budget=0)


def test_a_trained_drafter_replaces_the_first_stage(target: Target, dialogues: Path, tmp_path: Path) -> None:
    train(target, options(dialogues, preset="eagle"), tmp_path / "eagle", silent)
    chosen = options(dialogues, budget=1, start=str(tmp_path / "eagle"))
    train(target, chosen, tmp_path / "poss-2", silent)
    start, begun = (load_drafter(str(tmp_path / name)).drafter for name in ("eagle", "poss-2"))
    assert torch.equal(start.draft_ids, begun.draft_ids)
    assert begun.config.num_specialists == 3
    first = start.specialists[0].state_dict()
    for specialist in begun.specialists:  # after one step at the learning rate of a warm-up's beginning
        for name, weight in specialist.state_dict().items():
            torch.testing.assert_close(weight, first[name], atol=0.01, rtol=0.01)

    train(target, options(dialogues, budget=1, start=str(tmp_path / "poss-2")), tmp_path / "again", silent)
    again = load_drafter(str(tmp_path / "again")).drafter
    for one, two in zip(begun.specialists, again.specialists, strict=True):
        torch.testing.assert_close(one.state_dict(), two.state_dict(), atol=0.01, rtol=0.01)

    begin = options(dialogues, preset="eagle", start=str(tmp_path / "poss-2"))
    with pytest.raises(InputError, match="other specialists than the one to train"):
        train(target, begin, tmp_path / "no", silent)


def test_a_started_drafter_may_get_another_vocabulary(
    target: Target, dialogues: Path, tmp_path: Path
) -> None:
    train(target, options(dialogues, preset="eagle"), tmp_path / "eagle", silent)
    more = options(dialogues, preset="eagle", budget=1, start=str(tmp_path / "eagle"), draft_vocab_size=80)
    train(target, more, tmp_path / "more", silent)
    known, grown = (load_drafter(str(tmp_path / name)).drafter.draft_ids for name in ("eagle", "more"))
    assert len(grown) == 80
    assert set(known.tolist()) < set(grown.tolist())  # of the same dialogues

    own = options(dialogues, preset="eagle3", choices=DrafterChoices(taps=(0,)))
    train(target, own, tmp_path / "own", silent)
    begin = replace(own, start=str(tmp_path / "own"), draft_vocab_size=32)
    with pytest.raises(InputError, match=r"draft_vocab_size is 32, but .*own has a head of its own"):
        train(target, begin, tmp_path / "no-words", silent)
