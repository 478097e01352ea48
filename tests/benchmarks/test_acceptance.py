"""Acceptance on held-out dialogues: counts, intervals of differences, the whole command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.acceptance import FIGURES, against, main
from poss_export.drafters.checkpoint import save_drafter
from poss_export.drafters.model import Drafter
from poss_export.targets.checkpoint import open_target
from poss_export.training.chain_acceptance import ChainCounts, dialogue_counts
from poss_export.training.dialogues import Dialogues
from poss_export.training.presets import DrafterChoices, preset


def counts_of(accepted: np.ndarray) -> ChainCounts:
    """Return counts of dialogues with 100 rows, of which so many `[dialogues, 6]` are right at a depth."""
    dialogues = len(accepted)
    reached = np.full((dialogues, 6), 100)
    rounds = np.full(dialogues, 50)
    return ChainCounts(reached, accepted, rounds, rounds + accepted.sum(1))


def test_chains_of_a_dialogue_by_hand() -> None:
    """Step j at row c + j says whether the token at depth j + 1 behind row c is right."""
    right = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    # Accepted from rows 0 to 3: three, one, none, one.
    reached, accepted, rounds, emitted = dialogue_counts(right)
    assert reached.tolist() == [4, 2, 2]
    assert accepted.tolist() == [3, 2, 2]
    assert (rounds, emitted) == (1, 4)
    none = dialogue_counts(torch.zeros(3, 0, dtype=torch.bool))
    assert [np.sum(count) for count in none] == [0, 0, 0, 0]


def test_a_difference_beyond_chance_and_one_within_it() -> None:
    random = np.random.default_rng(1)
    hardness = random.integers(30, 70, (40, 1))
    base = counts_of(hardness + random.integers(-2, 3, (40, 6)))
    better = counts_of(base.accepted + np.array([0, 0, 0, 5, 5, 5]))
    changes = against(better, base)
    assert changes["depths 4 to 6"].low > 0.05
    assert changes["depths 4 to 6"].value == pytest.approx(5 / base.accepted[:, 3:].mean())
    assert (
        changes["depths 1 to 3"].value == changes["depths 1 to 3"].low == changes["depths 1 to 3"].high == 0
    )
    like = against(counts_of(base.accepted + random.integers(-8, 9, (40, 6))), base)["depths 1 to 3"]
    assert like.low < 0 < like.high


def test_drafters_on_held_out_dialogues(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    target = open_target(str(tiny_folder("llama")))
    random = np.random.default_rng(0)
    for name, kind, taps in (("one", "eagle", None), ("taps", "eagle3", (0, 1))):
        config = preset(kind).drafter_config(target.config, 2, DrafterChoices(taps=taps))
        torch.manual_seed(0)
        drafter = Drafter(config)
        drafter.draft_ids.copy_(torch.arange(2))
        save_drafter(tmp_path / name, drafter, target.sha256, torch.float32)
    pairs = [(random.integers(3, 30, 5).tolist(), random.integers(0, 2, 40).tolist()) for _ in range(8)]
    Dialogues.from_answers(pairs, holdout=0.5).save(tmp_path / "dialogues.npz")
    drafters = [str(tmp_path / name) for name in ("one", "one", "taps")]
    options = ["--dialogues", str(tmp_path / "dialogues.npz"), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(
        main, [str(tiny_folder("llama")), *drafters, *options], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "4 held-out dialogues" in result.output
    assert result.output.count("+0.0 % [+0.0, +0.0]") >= 2 * len(FIGURES)  # the first, and itself again
