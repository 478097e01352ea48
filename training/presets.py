"""What each preset trains: the drafter's choices and the stages of its training."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from poss_export.config import RopeConfig, TargetConfig
from poss_export.drafter_config import Alignment, DrafterConfig, Drafting, Fusion, MaskFeature, TapNorm
from poss_export.errors import InputError

Recipe = Literal["small", "paper"]


@dataclass(frozen=True)
class DrafterChoices:
    """Choices of a drafter, as `DrafterConfig` explains them; None leaves one as it would be."""

    fusion: Fusion | None = None
    fusion_bias: bool | None = None
    alignment: Alignment | None = None
    drafting: Drafting | None = None
    num_specialists: int | None = None
    positions_per_specialist: int | None = None
    num_layers: int | None = None
    num_masks: int | None = None
    shared_mask: bool | None = None
    mask_feature: MaskFeature | None = None
    taps: tuple[int, ...] | None = None
    tap_norm: TapNorm | None = None
    own_head: bool | None = None


@dataclass(frozen=True)
class StageChoices:
    """Values for every stage of a run, as `Stage` explains them; None leaves one to the recipe."""

    steps: int | None = None
    learning_rate: float | None = None
    token_weight: float | None = None
    feature_weight: float | None = None
    top_weight: float | None = None
    step_decay: float | None = None


def given(choices: DrafterChoices | StageChoices) -> dict[str, Any]:
    """Return the values that are not left out, by name."""
    return {name: value for name, value in asdict(choices).items() if value is not None}


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

    `small` are the stages that work best for small targets, `paper` those of the publication.
    """

    choices: DrafterChoices
    small: tuple[Stage, ...]
    paper: tuple[Stage, ...]

    def stages(self, recipe: Recipe, *, started: bool) -> tuple[Stage, ...]:
        """Return the stages of a recipe; a drafter to start from replaces the first of several."""
        stages = self.paper if recipe == "paper" else self.small
        left = stages[1:] if started and len(stages) > 1 else stages
        whole = sum(stage.share for stage in left)
        return tuple(replace(stage, share=stage.share / whole) for stage in left)

    def drafter_config(
        self, target: TargetConfig, draft_vocab_size: int, choices: DrafterChoices
    ) -> DrafterConfig:
        """Return the drafter's facts: layers like the target's, `choices` in place of the preset's."""
        drafter = DrafterConfig(
            hidden_size=target.hidden_size,
            intermediate_size=target.intermediate_size,
            num_heads=target.num_heads,
            num_kv_heads=target.num_kv_heads,
            head_dim=target.head_dim,
            rms_norm_eps=target.rms_norm_eps,
            vocab_size=target.vocab_size,
            draft_vocab_size=draft_vocab_size,
            rope=RopeConfig(theta=target.rope.theta),
            **{**given(self.choices), **given(choices)},
        )
        return drafter.beside(target)


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


_POSS_2 = DrafterChoices(num_specialists=3, positions_per_specialist=2)
_FSPAD = DrafterChoices(fusion="gated", fusion_bias=True, alignment="split")
_PARALLEL = DrafterChoices(drafting="parallel", num_masks=MASKS, mask_feature="repeat_last")
_UNROLLED = (_EAGLE, replace(_EAGLE, steps=6))

# Drafters that read taps feed back states of their own: only tokens count, later steps less.
_EAGLE_3 = Stage(7, 1.0, 5e-5, token_weight=1.0, feature_weight=0.0, step_decay=0.8)
_SMALL_TAPS = (
    replace(_FIRST, token_weight=1.0, feature_weight=0.0),
    replace(_EAGLE_3, steps=6, share=0.55, learning_rate=6e-4),
)
_TAPS = DrafterChoices(fusion="taps", own_head=True)

PRESETS = {
    "eagle": Preset(DrafterChoices(), _small(1), (_EAGLE,)),
    "hass": Preset(DrafterChoices(), _small(3), (replace(_EAGLE, steps=3, top_weight=1.0),)),
    "poss-1": Preset(DrafterChoices(num_specialists=6, positions_per_specialist=1), _small(6), _UNROLLED),
    "poss-2": Preset(_POSS_2, _small(6), _UNROLLED),
    "poss-3": Preset(DrafterChoices(num_specialists=2, positions_per_specialist=3), _small(6), _UNROLLED),
    "fspad": Preset(_FSPAD, _small(1), (replace(_EAGLE, learning_rate=5e-5),)),
    # The paper gives no weights, rates or masks: its recipe is EAGLE's, over the whole group.
    "parallelspec": Preset(_PARALLEL, _SMALL_PARALLEL, (replace(_EAGLE, steps=MASKS + 1),)),
    "eagle3": Preset(_TAPS, _SMALL_TAPS, (_EAGLE_3,)),
    # Published training drops more and more rows of later positions; here they all count, but less.
    "peagle": Preset(
        replace(_TAPS, drafting="parallel", num_layers=4, num_masks=MASKS, shared_mask=True),
        (_SMALL_TAPS[0], replace(_SMALL_TAPS[1], step_decay=0.6)),
        (replace(_EAGLE_3, steps=MASKS + 1, step_decay=0.7),),
    ),
    "poss-2-e3": Preset(
        replace(_TAPS, num_specialists=3, positions_per_specialist=2),
        _SMALL_TAPS,
        (replace(_EAGLE_3, steps=1), replace(_EAGLE_3, steps=8, learning_rate=1e-4, step_decay=0.9)),
    ),
    # Combinations that nobody has published: their recipes are those of the part that is unrolled.
    "poss-2-fspad": Preset(
        replace(_FSPAD, num_specialists=3, positions_per_specialist=2), _small(6), _UNROLLED
    ),
    "parallel-poss-1": Preset(
        replace(_PARALLEL, num_specialists=2, positions_per_specialist=1),
        _SMALL_PARALLEL,
        (replace(_EAGLE, steps=MASKS + 1),),
    ),
}


def preset(name: str) -> Preset:
    """Return a preset by name; raises InputError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"preset {name!r} is unknown; expected one of: {', '.join(PRESETS)}") from None
