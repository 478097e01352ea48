"""What each preset trains: the drafter's choices and the stages of its training."""

from dataclasses import dataclass, replace

from poss_export.config import DrafterConfig, RopeConfig, TargetConfig
from poss_export.errors import InputError


@dataclass(frozen=True)
class Stage:
    """Part of a training run with one unroll length.

    share: of the row-step budget (a row unrolled j steps counts j); weights: of the two losses, as
    EAGLE gives them where they are left out.
    """

    steps: int
    share: float
    learning_rate: float
    token_weight: float = 0.1
    feature_weight: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A published drafter, sized for the target it is trained for."""

    num_specialists: int
    positions_per_specialist: int | None
    stages: tuple[Stage, ...]

    @property
    def later_stages(self) -> tuple[Stage, ...]:
        """The stages after the first, with the whole budget."""
        left = sum(stage.share for stage in self.stages[1:])
        return tuple(replace(stage, share=stage.share / left) for stage in self.stages[1:])

    def drafter_config(self, target: TargetConfig, draft_vocab_size: int) -> DrafterConfig:
        """Return the drafter's facts; its layers are shaped like the target's."""
        return DrafterConfig(
            hidden_size=target.hidden_size,
            intermediate_size=target.intermediate_size,
            num_heads=target.num_heads,
            num_kv_heads=target.num_kv_heads,
            head_dim=target.head_dim,
            rms_norm_eps=target.rms_norm_eps,
            vocab_size=target.vocab_size,
            draft_vocab_size=min(draft_vocab_size, target.vocab_size),
            rope=RopeConfig(theta=target.rope.theta),
            num_specialists=self.num_specialists,
            positions_per_specialist=self.positions_per_specialist,
        )


# One step first: unrolling a drafter that cannot yet draft one token wastes the rows. All presets share
# this stage, so that those trained with one seed and budget start their second stage from equal weights.
_FIRST = Stage(steps=1, share=0.45, learning_rate=1e-3)


def _second(steps: int) -> Stage:
    if steps == 1:
        return Stage(steps, share=0.55, learning_rate=6e-4)
    # A single step is judged by the feature it hands on; unrolled steps feel a bad feature themselves, so
    # that the tokens can count more. A higher rate sets the first stage back (docs/shipped-drafters.md).
    return Stage(steps, share=0.55, learning_rate=3e-4, token_weight=1.0)


PRESETS = {
    "eagle": Preset(1, None, (_FIRST, _second(1))),
    "hass": Preset(1, None, (_FIRST, _second(3))),
    "poss-1": Preset(6, 1, (_FIRST, _second(6))),
    "poss-2": Preset(3, 2, (_FIRST, _second(6))),
    "poss-3": Preset(2, 3, (_FIRST, _second(6))),
}


def preset(name: str) -> Preset:
    """Return a preset by name; raises InputError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"preset {name!r} is unknown; expected one of: {', '.join(PRESETS)}") from None
