"""Where training starts."""

import torch

from poss_export.drafters.model import Drafter

RESIDUAL_SCALE = 0.3  # of projections into the residual stream: layers start as small changes of their input


@torch.no_grad()
def initialise(drafter: Drafter, feature_spread: float, seed: int) -> None:
    """Fill the drafter's weights at random, so that every activation starts near unit spread.

    `feature_spread` is the root mean square of the target's features; q, k and v have no norm before
    them. Copying the target's last layer instead learnt more slowly (docs/decisions/0005).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in drafter.named_parameters():
        if weight.dim() == 2:
            weight.normal_(0, weight.shape[0] ** -0.5, generator=generator)
            if name.endswith(("q.weight", "kv.weight")):
                weight.div_(feature_spread)
            elif name.endswith(("output.weight", "down.weight")):
                weight.mul_(RESIDUAL_SCALE)
        else:
            weight.fill_(float(name.endswith("norm.weight")))  # biases start at zero
