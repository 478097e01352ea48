"""What a tree is worth, measured with a tiny target that is exported once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.tuning import capacity_for, exported, measure_tree
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.targets.checkpoint import open_target

PROMPTS = [[5, 9, 11], [7]]


def test_capacity_holds_prompt_answer_and_last_tree() -> None:
    trees = [TreeShape(2, 1, 2), TreeShape(3, 2, 7)]
    assert capacity_for([[1] * 60, [1] * 90], 30, trees) == 90 + 30 + 7


def test_figures_of_shapes(tiny_folder: Callable[[str], Path], random_drafter: Callable[..., Any]) -> None:
    target = open_target(str(tiny_folder("llama")))
    taps = random_drafter(target.config, 1, fusion="taps", taps=(0, 1))
    drafters = [DrafterCheckpoint("a", "0" * 64, random_drafter(target.config, 3), None)]
    drafters.append(DrafterCheckpoint("b", "0" * 64, taps, None))  # it needs another target graph
    shapes = [TreeShape(2, 1, 2), TreeShape(3, 2, 4)]
    with exported(target, capacity_for(PROMPTS, 8, shapes)) as bundle:
        plain = bundle.target
        pairs = zip(drafters, shapes, strict=True)
        found = [measure_tree(bundle, target, drafter, shape, PROMPTS, 8) for drafter, shape in pairs]
        assert (bundle.drafter, bundle.target) == (None, plain)
    assert [figures["tree"] for figures in found] == [vars(shape) for shape in shapes]
    for figures in found:
        assert figures["tau"] >= 1
        assert figures["round"] == pytest.approx(figures["target"] + figures["draft"] + figures["outside"])
        # A round that emits tau tokens, beside so many plain steps.
        assert figures["ratio"] == pytest.approx(figures["tau"] * figures["plain"] / figures["round"])
