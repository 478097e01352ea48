"""What a drafter is: its choices and its sizes, parsed once at the edge like those of `config.py`."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from poss_export.config import RopeConfig, TargetConfig
from poss_export.errors import CheckpointError
from poss_export.fields import check_fields

Fusion = Literal["linear", "gated", "guided", "taps"]
Alignment = Literal["joint", "split"]
Drafting = Literal["tree", "parallel"]
MaskFeature = Literal["learned", "repeat_last", "zeros", "none"]
TapNorm = Literal["none", "joint", "each"]
_OF_TAPS = (
    "taps",
    "target_hidden_size",
    "tap_norm",
    "norm_before_residual",
    "feed_back_normed",
    "qk_norm",
    "own_head",
    "own_embeddings",
)


@dataclass(frozen=True)
class DrafterConfig:
    """Facts of a drafter: its four choices (fusion, alignment, specialists, drafting) and its sizes.

    `positions_per_specialist` None means that the only specialist drafts every position.
    `vocab_size` is the target's; `draft_vocab_size` ids of it can be proposed.

    For drafting "parallel": `num_masks` rows stand for the positions after the first, each with an embedding
    of its own unless `shared_mask`, and with the feature that `mask_feature` says. Of the `num_layers` that a
    row passes, the last is its specialist.

    Fusion "taps" is EAGLE-3's: a row reads the residual streams that enter the layers `taps` of the target
    (`target_hidden_size` wide, None: as wide as the drafter), under no norm, one `joint` norm, or one for
    `each`; no taps are the usual three, which `beside` a target become its layers. Of its first layer the
    residual begins with the normed state where `norm_before_residual`; what is fed back has passed the final
    norm where `feed_back_normed`. Specialists then share one cache. Tables of its own: `own_head`
    `[draft_vocab, hidden]`, `own_embeddings` `[vocab, hidden]`.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    draft_vocab_size: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    fusion: Fusion = "linear"
    fusion_bias: bool = False
    qkv_bias: bool = False
    alignment: Alignment = "joint"
    drafting: Drafting = "tree"
    num_specialists: int = 1
    positions_per_specialist: int | None = None
    num_layers: int = 1
    num_masks: int = 0
    shared_mask: bool = False
    mask_feature: MaskFeature = "learned"
    taps: tuple[int, ...] = ()
    target_hidden_size: int | None = None
    tap_norm: TapNorm = "none"
    norm_before_residual: bool = False
    feed_back_normed: bool = False
    qk_norm: bool = False
    own_head: bool = False
    own_embeddings: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "drafter's")
        if self.num_specialists > 1 and self.positions_per_specialist is None:
            raise CheckpointError(
                f"a drafter with {self.num_specialists} specialists needs positions_per_specialist "
                "(how many draft positions each one serves): add it to the drafter's config.json"
            )
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"drafter num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                "its configuration is damaged; fetch the checkpoint again"
            )
        self._check_taps()
        if self.drafting == "tree" and (self.num_masks or (self.num_layers > 1 and not self.reads_taps)):
            raise CheckpointError(
                f"a drafter with drafting 'tree' has num_layers {self.num_layers} and num_masks "
                f"{self.num_masks}; only drafting 'parallel' takes more than 1 layer without taps, or masks"
            )
        if self.drafting == "parallel" and self.num_masks < 1:
            raise CheckpointError(
                f"a drafter with drafting 'parallel' needs num_masks of at least 1, not {self.num_masks}"
            )

    def _check_taps(self) -> None:
        """Raise CheckpointError where choices contradict the fusion "taps", or need it."""
        if self.fusion != "taps":
            if told := [name for name in _OF_TAPS if getattr(self, name) != getattr(DrafterConfig, name)]:
                raise CheckpointError(
                    f"a drafter with fusion {self.fusion!r} has {told[0]}; only fusion 'taps' takes it"
                )
            return
        if list(self.taps) != sorted(set(self.taps)):
            raise CheckpointError(
                f"the drafter's taps are {list(self.taps)}; expected ascending layers of its target"
            )
        if self.alignment != "joint" or self.fusion_bias or self.mask_feature == "none":
            raise CheckpointError(
                "a drafter with fusion 'taps' needs alignment 'joint', no fusion_bias, and a mask_feature"
            )
        if self.num_specialists > 1 and (self.num_layers > 1 or self.drafting == "parallel"):
            raise CheckpointError(
                f"a drafter with fusion 'taps' has {self.num_specialists} specialists; only drafting 'tree' "
                "with 1 layer takes them"
            )
        if self.read_size != self.hidden_size and not (self.own_head and self.own_embeddings):
            raise CheckpointError(
                f"the drafter's hidden_size is {self.hidden_size}, its target's {self.read_size}: it needs "
                "own_head and own_embeddings"
            )

    @property
    def reads_taps(self) -> bool:
        """Whether it reads inner layers of its target, and not the last feature."""
        return self.fusion == "taps"

    @property
    def num_taps(self) -> int:
        """How many layers it reads."""
        return (len(self.taps) or 3) if self.reads_taps else 0

    def beside(self, target: TargetConfig) -> "DrafterConfig":
        """Return what it is beside a target: the usual taps are layers 2, half and 3 before the end.

        Raises CheckpointError where the target lacks the layers.
        """
        if not self.reads_taps:
            return self
        layers = target.num_layers
        taps = self.taps or (2, layers // 2, layers - 3)
        if not self.taps and not taps[0] < taps[1] < taps[2]:
            raise CheckpointError(
                f"a target of {layers} layers lacks the usual taps, 2, half and 3 before the end, which the "
                "drafter reads: state its taps"
            )
        if taps[-1] >= layers:
            raise CheckpointError(
                f"the drafter reads what enters layers {list(taps)}, the target has {layers} layers: this "
                "drafter belongs to another target; train one for this target with `poss-export train`"
            )
        return replace(self, taps=taps)

    @property
    def longest_draft(self) -> int | None:
        """Draft positions there are: one more than masks; None where a drafter can go on for ever."""
        return self.num_masks + 1 if self.drafting == "parallel" else None

    def specialist(self, position: int) -> int:
        """Return the specialist that drafts `position` (1-based), s(j) = min((j-1) // p, S-1)."""
        if self.positions_per_specialist is None:
            return 0
        return min((position - 1) // self.positions_per_specialist, self.num_specialists - 1)

    def num_caches(self, depth: int) -> int:
        """Caches for drafts of `depth`: one for each shared layer, then one for each specialist in use.

        With fusion "taps" all specialists share the last one.
        """
        return self.num_layers + (0 if self.reads_taps else self.specialist(depth))

    @property
    def read_size(self) -> int:
        """Hidden size of the target that it was made for."""
        return self.target_hidden_size or self.hidden_size

    @property
    def feature_size(self) -> int:
        """Width of what the drafter reads of the target for each row."""
        return self.read_size * max(self.num_taps, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DrafterConfig":
        """Read what `to_dict` wrote; raises CheckpointError that names a missing or unknown field."""
        try:
            taps = tuple(values.get("taps", ()))
            return cls(**{**values, "rope": RopeConfig.from_dict(values["rope"]), "taps": taps})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"drafter configuration: {error}; expected the config.json that `poss-export train` writes"
            ) from error
