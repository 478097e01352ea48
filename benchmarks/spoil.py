"""Write a bad drafter, made from a good one: its proposals are useless, and no output may change.

python -m benchmarks.spoil poss-2 -o out/random --how random
poss-export build smollm2-135m --drafter out/random -o out/random-bundle
python -m benchmarks.lossless out/random-bundle --limit 20
"""

from pathlib import Path

import click

from benchmarks import environment
from poss_export.drafters.checkpoint import load_drafter, save_drafter


@click.command(help=__doc__.partition("\n")[0])
@click.argument("drafter")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option(
    "--how",
    required=True,
    type=click.Choice(["random", "corrupted"]),
    help="random: all weights drawn anew; corrupted: one weight in a hundred replaced.",
)
@click.option("--seed", default=0, show_default=True)
def main(drafter: str, output: Path, how: str, seed: int) -> None:
    """Load, spoil, save."""
    import torch

    checkpoint = load_drafter(drafter)
    generator = torch.Generator().manual_seed(seed)
    for weight in checkpoint.drafter.parameters():
        noise = torch.randn(weight.shape, generator=generator) * weight.std(correction=0)
        if how == "random":
            weight.copy_(noise)
        else:
            hit = torch.rand(weight.shape, generator=generator) < 0.01
            weight.copy_(torch.where(hit, 30 * noise, weight))
    save_drafter(output, checkpoint.drafter, checkpoint.target_sha256, torch.float32)


if __name__ == "__main__":
    environment.run(main)
