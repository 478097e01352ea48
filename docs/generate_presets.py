"""Print the training presets as Markdown: `python docs/generate_presets.py > docs/presets.md`."""

from collections.abc import Iterator
from typing import get_args

from poss_export.drafter_config import DrafterConfig
from poss_export.training.presets import PRESETS, Preset, Recipe, Stage, given

HEAD = """\
# Training presets

What `poss-export train --preset NAME` trains, and how. Every value can be replaced on the command line
(`cli.md`); what a value means is said in `src/poss_export/drafter_config.py` (`DrafterConfig`) and
`training/presets.py` (`Stage`). The last two presets are combinations that nobody has published. Generated
by `make docs` from `training/presets.py`."""

STAGES = """\
## Stages

A stage unrolls each row so many steps, up to that learning rate, with those weights: of the loss on the
target's distribution (token), on its ten likeliest tokens (top), on the feature that is fed back (feature).
*share* is of the budget. `--recipe small`, the default, is what works best for a small target and minutes
of training (`decisions/0005`); `--recipe paper` has the publication's values; where there are none
(ParallelSpec), EAGLE's. A drafter given by `--start` replaces the first of several stages."""


def preset_row(name: str, preset: Preset) -> str:
    """Return a preset's choices as a table row."""
    named = {"num_specialists", "positions_per_specialist", "fusion", "alignment", "drafting"}
    chosen = given(preset.choices)
    others = (f"{key} {value}" for key, value in chosen.items() if key not in named)
    specialists = chosen.get("num_specialists", DrafterConfig.num_specialists)
    positions = chosen.get("positions_per_specialist", "all")
    kinds = ("fusion", "alignment", "drafting")
    choices = (chosen.get(kind, getattr(DrafterConfig, kind)) for kind in kinds)
    cells = name, f"{specialists}, {positions} positions each", *choices, ", ".join(others) or "-"
    return f"| `{cells[0]}` | {' | '.join(cells[1:])} |"


def stage_row(name: str, recipe: str, number: int, stage: Stage) -> str:
    """Return a stage as a table row."""
    weights = f"{stage.token_weight:g} | {stage.top_weight:g} | {stage.feature_weight:g}"
    cells = f"{stage.steps} | {stage.share:.0%} | {stage.learning_rate:g} | {weights} | {stage.step_decay:g}"
    return f"| `{name}` | {recipe} | {number} | {cells} |"


def page() -> Iterator[str]:
    """Yield the blocks of the page."""
    yield HEAD
    columns = ["preset", "specialists", "fusion", "alignment", "drafting", "else"]
    yield table(columns, (preset_row(name, preset) for name, preset in PRESETS.items()))
    yield STAGES
    stage_columns = [
        "preset",
        "recipe",
        "stage",
        "steps",
        "share",
        "rate",
        "token",
        "top",
        "feature",
        "decay",
    ]
    rows = (
        stage_row(name, recipe, number, stage)
        for name, preset in PRESETS.items()
        for recipe in get_args(Recipe)
        for number, stage in enumerate(preset.stages(recipe, started=False), start=1)
    )
    yield table(stage_columns, rows)


def table(columns: list[str], rows: Iterator[str]) -> str:
    """Return a Markdown table."""
    return "\n".join((f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *rows))


if __name__ == "__main__":
    print("\n\n".join(page()))
