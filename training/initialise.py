"""Where training starts: the first specialist begins as the target's last layer."""

import torch

from poss_export.drafters.model import Drafter
from poss_export.targets.decoder import Decoder, Layer

RESIDUAL_SCALE = 0.3  # of output projections: the copied layer starts as a small change of its input


@torch.no_grad()
def start_from_target(drafter: Drafter, decoder: Decoder, feature_spread: float, seed: int) -> None:
    """Fill the drafter's weights.

    The fusion passes the feature through and adds a little of the (unit-spread) embedding; each
    specialist copies the target's last layer with its input norm folded into q, k and v.
    `feature_spread` is the root mean square of the target's features, which that norm would divide by.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = drafter.config.hidden_size
    fc = drafter.fusion.fc
    fc.weight.normal_(0, 0.2 / hidden**0.5, generator=generator)
    fc.weight[hidden:] += torch.eye(hidden)
    if fc.bias is not None:
        fc.bias.zero_()
    last = decoder.layers[-1]
    assert isinstance(last, Layer)
    q, k, v = (last.qkv.weight.float().cpu() * last.input_norm.weight.float().cpu()[:, None]).split(
        last.widths, dim=1
    )
    for position in range(1, drafter.config.num_specialists + 1):
        specialist = drafter.specialists[position - 1]
        specialist.q.weight.copy_(q / feature_spread)  # type: ignore[union-attr, operator]
        specialist.kv.weight.copy_(torch.cat((k, v), dim=1) / feature_spread)  # type: ignore[union-attr, operator]
        specialist.output.weight.copy_(last.output.weight * RESIDUAL_SCALE)  # type: ignore[union-attr, operator]
        specialist.alignment.norm.weight.copy_(last.post_norm.weight)  # type: ignore[union-attr, operator]
        specialist.alignment.mlp.gate_up.weight.copy_(last.mlp.gate_up.weight)  # type: ignore[union-attr, operator]
        specialist.alignment.mlp.down.weight.copy_(last.mlp.down.weight * RESIDUAL_SCALE)  # type: ignore[union-attr, operator]
