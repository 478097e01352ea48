"""Where training starts: at random, or from a drafter that was trained before."""

import torch
from torch import Tensor, nn

from poss_export.drafters.alignment import JointAlignment, SplitAlignment
from poss_export.drafters.fusion import AnyFusion, LinearFusion
from poss_export.drafters.model import Drafter
from poss_export.drafters.specialist import TapsLayer
from poss_export.errors import InputError
from poss_export.targets.decoder import Decoder

RESIDUAL_SCALE = 0.3  # of projections into the residual stream: layers start as small changes of their input


@torch.no_grad()
def initialise(drafter: Drafter, feature_spread: float, seed: int) -> None:
    """Fill the drafter's weights at random, so that every activation starts near unit spread.

    `feature_spread` is the root mean square of the target's features: what reads them has no norm before it,
    q, k and v of a specialist, or the projection of taps. Copying the target's last layer instead learnt more
    slowly (docs/decisions/0005).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in drafter.named_parameters():
        if name == "masks.embeddings":
            weight.normal_(0, 1, generator=generator)
        elif name == "masks.feature" and drafter.config.reads_taps:
            weight.normal_(0, feature_spread, generator=generator)  # a norm would have no slope at zero
        elif weight.dim() == 2:
            weight.normal_(0, weight.shape[0] ** -0.5, generator=generator)
            taps = name == "fusion.fc.weight" and drafter.config.reads_taps
            if name.endswith(("q.weight", "kv.weight")) or (taps and drafter.config.tap_norm == "none"):
                weight.div_(feature_spread)
            elif name.endswith(("output.weight", "down.weight")):
                weight.mul_(RESIDUAL_SCALE)
        else:
            weight.fill_(float("norm" in name))  # biases and the mask feature start at zero


@torch.no_grad()
def start_output(drafter: Drafter, decoder: Decoder) -> None:
    """Give a drafter's own final norm and head, where it has them, the target's weights."""
    if drafter.final_norm is not None:
        drafter.final_norm.weight.copy_(decoder.norm.weight)
    if drafter.head is not None:
        drafter.head.copy_(decoder.lm_head[drafter.draft_ids.to(decoder.lm_head.device)])


@torch.no_grad()
def start_from(drafter: Drafter, trained: Drafter) -> None:
    """Copy what `trained` has; the parts it lacks start without effect, so that both draft alike.

    Every specialist starts as a copy of the only one of `trained`, as PosS does. `drafter` must have been
    initialised before. Raises InputError where `trained` has parts that `drafter` lacks.
    """
    for flag in ("taps", "norm_before_residual", "feed_back_normed"):
        _check(getattr(drafter.config, flag) == getattr(trained.config, flag), flag)
    _start_fusion(drafter.fusion, trained.fusion)
    _check(len(trained.specialists) in (1, len(drafter.specialists)), "specialists")
    fewest = len(drafter.shared_layers) if drafter.config.reads_taps else 0  # first and last are not alike
    _check(len(trained.shared_layers) in (fewest, len(drafter.shared_layers)), "layers")
    for index, specialist in enumerate(drafter.specialists):
        _start_layer(specialist, trained.specialists[index % len(trained.specialists)])
    for own in ("head", "embeddings"):
        if (table := getattr(trained, own)) is not None:
            _check(getattr(drafter, own) is not None, f"tables ({own})")
            getattr(drafter, own).copy_(table)
    for index, layer in enumerate(drafter.shared_layers):
        if len(trained.shared_layers):
            _start_layer(layer, trained.shared_layers[index])
        else:
            layer.output.weight.zero_()  # type: ignore[union-attr, operator]
            layer.alignment.mlp.down.weight.zero_()  # type: ignore[union-attr, operator]
    if trained.masks is not None:
        _check(drafter.masks is not None, "drafting")
        _load(drafter.masks, trained.masks.state_dict())


def copy_first_specialist(drafter: Drafter) -> None:
    """Make every specialist a copy of the first, which trained for all of them (PosS)."""
    for specialist in drafter.specialists[1:]:
        specialist.load_state_dict(drafter.specialists[0].state_dict())


def _start_fusion(fusion: AnyFusion, trained: AnyFusion) -> None:
    if type(fusion) is type(trained):
        _load(fusion, trained.state_dict())
        return
    _check(type(trained) is LinearFusion and isinstance(fusion, LinearFusion), "fusion")
    fusion.fc.weight.copy_(trained.fc.weight)
    if fusion.fc.bias is not None and trained.fc.bias is not None:
        fusion.fc.bias.copy_(trained.fc.bias)
    fusion.down.weight.zero_()  # type: ignore[union-attr, operator]


def _start_layer(layer: nn.Module, trained: nn.Module) -> None:
    state: dict[str, Tensor] = trained.state_dict()
    if isinstance(layer, TapsLayer):
        _load(layer, state)
        return
    down = "alignment.mlp.down.weight"
    if isinstance(layer.alignment, SplitAlignment) and isinstance(trained.alignment, JointAlignment):
        state[down] = state[down].repeat(1, 2)  # predict and regress begin as the one vector
    _check(state[down].shape == layer.state_dict()[down].shape, "alignment")
    _load(layer, state)


def _load(module: nn.Module | None, state: dict[str, Tensor]) -> None:
    """Load weights; a bias that they lack stays at zero."""
    assert module is not None
    own = module.state_dict()
    fits = all(name in own and own[name].shape == weight.shape for name, weight in state.items())
    fits = fits and all(name in state or name.endswith("bias") for name in own)
    _check(fits, f"weights in its {type(module).__name__}")
    module.load_state_dict(state, strict=False)


def _check(fits: bool, part: str) -> None:
    if not fits:
        raise InputError(
            f"the drafter to start from has other {part} than the one to train: start from a drafter whose "
            "parts this one has too, such as eagle"
        )
