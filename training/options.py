"""What a training run depends on besides its target."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from poss_export.errors import InputError
from poss_export.training.dialogues import Dialogues
from poss_export.training.presets import DrafterChoices, Recipe, Stage, StageChoices, given, preset


@dataclass(frozen=True)
class TrainOptions:
    """What a run depends on besides the target: equal options on equal hardware give an equal drafter."""

    preset: str
    choices: DrafterChoices = field(default_factory=DrafterChoices)  # in place of the preset's
    recipe: Recipe = "small"
    losses: StageChoices = field(default_factory=StageChoices)  # in place of the recipe's
    dialogues: tuple[Path, ...] = ()  # files or folders; empty: the target writes `answer_tokens` of answers
    answer_tokens: int = 500_000
    start: str | None = None  # a trained drafter that replaces the first stage
    budget: int = 20_000_000  # row-steps: scored rows times unrolled steps
    minutes: float | None = None  # of training, instead of the budget
    draft_vocab_size: int | None = None  # None: 8192, or that of `start`
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained before any work is done."""
        preset(self.preset)
        for name in ("answer_tokens", "budget", "draft_vocab_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1", options=(name,))
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes is {self.minutes}; it must be more than 0", options=("minutes",))
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be 0 or a positive number", options=("seed",))
        if self.losses.steps is not None and self.losses.steps < 1:
            raise InputError(f"steps is {self.losses.steps}; it must be at least 1", options=("steps",))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run."""
        stages = preset(self.preset).stages(self.recipe, started=self.start is not None)
        return tuple(replace(stage, **given(self.losses)) for stage in stages)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; files by their names."""
        return {
            **asdict(self),
            "choices": given(self.choices),
            "losses": given(self.losses),
            "dialogues": [path.name for path in self.dialogues],
        }

    def digest(self) -> str:
        """Return a hash of all that the run depends on, of files their content."""
        digest = hashlib.sha256(json.dumps(self.to_dict()).encode())
        for path in self.dialogues:
            digest.update(Dialogues.load(path).ids.tobytes())
        return digest.hexdigest()
