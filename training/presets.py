"""What each preset trains: the drafter's choices and the stages of its training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from poss_export.config import DrafterConfig, RopeConfig, TargetConfig
from poss_export.errors import InputError

Recipe = Literal["small", "paper"]


@dataclass(frozen=True)
class Stage:
    """Part of a training run with one unroll length.

    share: of the row-step budget (a row unrolled j steps counts j). Weights of the losses, as EAGLE gives
    them where they are left out: of the target's distribution, of the feature fed back, and of the
    distribution restricted to the target's ten likeliest tokens (HASS). Each step counts `step_decay` times
    as much as the one before it.
    """

    steps: int
    share: float
    learning_rate: float
    token_weight: float = 0.1
    feature_weight: float = 1.0
    top_weight: float = 0.0
    step_decay: float = 1.0

    @property
    def step_weights(self) -> tuple[float, ...]:
        """What each step counts; their sum is 1."""
        weights = [self.step_decay**step for step in range(self.steps)]
        return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True)
class Preset:
    """A drafter, sized for the target it is trained for.

    `choices` are values of `DrafterConfig`; `small` are the stages that work best for small targets,
    `paper` those of the publication.
    """

    choices: Mapping[str, Any]
    small: tuple[Stage, ...]
    paper: tuple[Stage, ...]

    def stages(self, recipe: Recipe, *, started: bool) -> tuple[Stage, ...]:
        """Return the stages of a recipe; a drafter to start from replaces the first of several."""
        stages = self.paper if recipe == "paper" else self.small
        left = stages[1:] if started and len(stages) > 1 else stages
        whole = sum(stage.share for stage in left)
        return tuple(replace(stage, share=stage.share / whole) for stage in left)

    def drafter_config(
        self, target: TargetConfig, draft_vocab_size: int, choices: Mapping[str, Any]
    ) -> DrafterConfig:
        """Return the drafter's facts: layers like the target's, `choices` in place of the preset's."""
        return DrafterConfig(
            hidden_size=target.hidden_size,
            intermediate_size=target.intermediate_size,
            num_heads=target.num_heads,
            num_kv_heads=target.num_kv_heads,
            head_dim=target.head_dim,
            rms_norm_eps=target.rms_norm_eps,
            vocab_size=target.vocab_size,
            draft_vocab_size=draft_vocab_size,
            rope=RopeConfig(theta=target.rope.theta),
            **{**self.choices, **choices},
        )


MASKS = 5  # of parallel presets: with the last real row they draft six positions

# One step first: unrolling a drafter that cannot yet draft one token wastes the rows. All presets share
# this stage, so that those trained with one seed and budget start their second stage from equal weights.
_FIRST = Stage(steps=1, share=0.45, learning_rate=1e-3)


def _small(steps: int) -> tuple[Stage, ...]:
    if steps == 1:
        return (_FIRST, Stage(steps, share=0.55, learning_rate=6e-4))
    # A single step is judged by the feature it hands on; unrolled steps feel a bad feature themselves, so
    # that the tokens can count more. A higher rate sets the first stage back (docs/shipped-drafters.md).
    return (_FIRST, Stage(steps, share=0.55, learning_rate=3e-4, token_weight=1.0))


# Features of parallel drafts are fed to nobody; mask rows start from nothing and need the higher rate. What
# they cannot know outweighs what the first position learns, unless later steps count less.
_SMALL_PARALLEL = (
    _FIRST,
    Stage(MASKS + 1, 0.55, 6e-4, token_weight=1.0, feature_weight=0.1, step_decay=0.6),
)
_EAGLE = Stage(steps=1, share=1.0, learning_rate=3e-5)


def _specialists(count: int, positions: int) -> dict[str, Any]:
    return {"num_specialists": count, "positions_per_specialist": positions}


_FSPAD = {"fusion": "gated", "fusion_bias": True, "alignment": "split"}
_PARALLEL = {"drafting": "parallel", "num_masks": MASKS, "mask_feature": "repeat_last"}
_POSS_2 = _specialists(3, 2)

PRESETS = {
    "eagle": Preset({}, _small(1), (_EAGLE,)),
    "hass": Preset({}, _small(3), (replace(_EAGLE, steps=3, top_weight=1.0),)),
    "poss-1": Preset(_specialists(6, 1), _small(6), (_EAGLE, replace(_EAGLE, steps=6))),
    "poss-2": Preset(_POSS_2, _small(6), (_EAGLE, replace(_EAGLE, steps=6))),
    "poss-3": Preset(_specialists(2, 3), _small(6), (_EAGLE, replace(_EAGLE, steps=6))),
    "fspad": Preset(_FSPAD, _small(1), (replace(_EAGLE, learning_rate=5e-5),)),
    # The paper gives no weights, rates or masks: its recipe is EAGLE's, over the whole group.
    "parallelspec": Preset(_PARALLEL, _SMALL_PARALLEL, (replace(_EAGLE, steps=MASKS + 1),)),
    # Combinations that nobody has published: their recipes are those of the part that is unrolled.
    "poss-2-fspad": Preset({**_POSS_2, **_FSPAD}, _small(6), (_EAGLE, replace(_EAGLE, steps=6))),
    "parallel-poss-1": Preset(
        {**_specialists(2, 1), **_PARALLEL}, _SMALL_PARALLEL, (replace(_EAGLE, steps=MASKS + 1),)
    ),
}


def preset(name: str) -> Preset:
    """Return a preset by name; raises InputError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"preset {name!r} is unknown; expected one of: {', '.join(PRESETS)}") from None
