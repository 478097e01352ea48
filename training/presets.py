"""What each preset trains: the drafter's choices and the stages of its training."""

from dataclasses import dataclass

from poss_export.config import DrafterConfig, RopeConfig, TargetConfig
from poss_export.errors import InputError


@dataclass(frozen=True)
class Stage:
    """Part of a training run with one unroll length.

    share: of the row-step budget (a row unrolled j steps counts j); weights: of the two losses.
    """

    steps: int
    share: float
    learning_rate: float
    token_weight: float = 1.0
    feature_weight: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A published drafter, sized for the target it is trained for."""

    num_specialists: int
    positions_per_specialist: int | None
    stages: tuple[Stage, ...]

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


def _unrolled(steps: int) -> tuple[Stage, ...]:
    # One step first, for most of the budget: unrolling a drafter that cannot yet draft one token wastes it.
    return (
        Stage(steps=1, share=0.4, learning_rate=1e-3),
        Stage(steps=steps, share=0.6, learning_rate=6e-4, feature_weight=0.3),
    )


PRESETS = {
    "eagle": Preset(1, None, (Stage(steps=1, share=1.0, learning_rate=1e-3),)),
    "hass": Preset(1, None, _unrolled(3)),
    "poss-1": Preset(6, 1, _unrolled(6)),
    "poss-2": Preset(3, 2, _unrolled(6)),
    "poss-3": Preset(2, 3, _unrolled(6)),
}


def preset(name: str) -> Preset:
    """Return a preset by name; raises InputError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"preset {name!r} is unknown; expected one of: {', '.join(PRESETS)}") from None
