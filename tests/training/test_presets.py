"""Every preset trains, and its drafter comes back from its folder as it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.checkpoint import load_drafter
from poss_export.drafters.layout import named_tensors
from poss_export.targets.checkpoint import open_target
from poss_export.training.dialogues import Dialogues
from poss_export.training.options import TrainOptions
from poss_export.training.presets import PRESETS, DrafterChoices, Stage
from poss_export.training.run import train
from poss_export.training.trainer import Trainer

# What the papers say of each architecture: specialists, positions of each, and the other choices.
PUBLISHED = {
    "eagle": (1, None, "linear", "joint", "tree"),
    "hass": (1, None, "linear", "joint", "tree"),
    "poss-1": (6, 1, "linear", "joint", "tree"),
    "poss-2": (3, 2, "linear", "joint", "tree"),
    "poss-3": (2, 3, "linear", "joint", "tree"),
    "fspad": (1, None, "gated", "split", "tree"),
    "parallelspec": (1, None, "linear", "joint", "parallel"),
    "eagle3": (1, None, "taps", "joint", "tree"),
    "peagle": (1, None, "taps", "joint", "parallel"),
    "poss-2-e3": (3, 2, "taps", "joint", "tree"),
    "poss-2-fspad": (3, 2, "gated", "split", "tree"),
    "parallel-poss-1": (2, 1, "linear", "joint", "parallel"),
}


def choices(config: DrafterConfig) -> tuple[object, ...]:
    layout = config.num_specialists, config.positions_per_specialist
    return (*layout, config.fusion, config.alignment, config.drafting)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_and_is_kept(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.integers(3, 90, 5).tolist(), random.integers(3, 90, 20).tolist()) for _ in range(8)]
    Dialogues.from_answers(pairs, holdout=0.25).save(tmp_path / "dialogues.npz")
    trained: list[dict[str, torch.Tensor]] = []
    evaluate = Trainer.evaluate

    def watch(self: Trainer, *arguments: int, **others: int) -> object:
        trained.append({name: tensor.clone() for name, tensor in named_tensors(self.drafter)})
        return evaluate(self, *arguments, **others)

    monkeypatch.setattr(Trainer, "evaluate", watch)
    taps = (0, 1) if PUBLISHED[name][2] == "taps" else None  # of two layers
    options = TrainOptions(
        name,
        DrafterChoices(taps=taps),
        dialogues=(tmp_path / "dialogues.npz",),
        budget=1500,
        draft_vocab_size=64,
        recipe="paper",
    )
    train(open_target(str(tiny_folder("llama"))), options, tmp_path / name, lambda *_: None)
    drafter = load_drafter(str(tmp_path / name)).drafter
    assert choices(drafter.config) == PUBLISHED[name]
    first, *_, last = trained
    assert [tensor for tensor in first if torch.equal(first[tensor], last[tensor])] == []  # all were trained
    kept = dict(named_tensors(drafter))
    # What reads embeddings is scaled when it is kept, everything else is rounded to bfloat16.
    scaled = {"fc.weight", "fc.fc.weight", "fc.mlp.gate_proj.weight", "mask_embed.weight"}
    for tensor in kept.keys() - scaled:
        torch.testing.assert_close(kept[tensor], last[tensor], atol=0, rtol=2**-7)


def test_steps_count_less_the_deeper_they_are() -> None:
    assert Stage(4, 1.0, 1e-3).step_weights == (0.25, 0.25, 0.25, 0.25)
    assert Stage(3, 1.0, 1e-3, step_decay=0.5).step_weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))


@pytest.mark.parametrize("name", PRESETS)
def test_a_drafter_to_start_from_replaces_the_first_of_several_stages(name: str) -> None:
    for recipe in ("small", "paper"):
        whole = PRESETS[name].stages(recipe, started=False)
        started = PRESETS[name].stages(recipe, started=True)
        assert sum(stage.share for stage in whole) == pytest.approx(1)
        assert sum(stage.share for stage in started) == pytest.approx(1)
        assert len(started) == max(1, len(whole) - 1)
        assert started[-1].steps == whole[-1].steps
