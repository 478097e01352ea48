"""`poss-export train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from poss_export.cli import options
from poss_export.cli.options import choice
from poss_export.cli.progress import show_progress
from poss_export.drafter_config import Alignment, Drafting, Fusion, MaskFeature, TapNorm
from poss_export.training.presets import PRESETS, DrafterChoices, Recipe, StageChoices

if TYPE_CHECKING:
    from poss_export.training.features import TargetView

_RECIPES = "the recipe's"

_DRAFTER = (
    click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Kind of drafter."),
    choice("fusion", click.Choice(get_args(Fusion)), "How embedding and feature become one vector."),
    choice("alignment", click.Choice(get_args(Alignment)), "Whether LM head and feedback share one vector."),
    choice("drafting", click.Choice(get_args(Drafting)), "Level by level, or all positions in one pass."),
    choice("num-specialists", int, "Layers that share the draft positions."),
    choice("positions-per-specialist", int, "Draft positions of each specialist."),
    choice("num-layers", int, "Layers that a row passes (parallel drafting, or fusion taps)."),
    choice("num-masks", int, "Mask rows: draft positions after the first (parallel drafting)."),
    choice("shared-mask", bool, "Whether all mask rows have one embedding (parallel drafting)."),
    choice("mask-feature", click.Choice(get_args(MaskFeature)), "What mask rows read as their feature."),
    click.option(
        "--tap",
        "taps",
        type=int,
        multiple=True,
        show_default="2, half and 3 before the end",
        help="Layer of the target whose input is read (fusion taps); repeatable, ascending.",
    ),
    choice("tap-norm", click.Choice(get_args(TapNorm)), "Norms before taps are projected (fusion taps)."),
    choice("own-head", bool, "Whether the drafter has an LM head of its own (fusion taps)."),
    click.option(
        "--draft-vocab",
        "draft_vocab_size",
        type=int,
        show_default="8192, or that of --start",
        help="Tokens that the drafter can propose.",
    ),
    click.option(
        "--start",
        metavar="DRAFTER",
        help="Trained drafter to start from, in place of the first stage; what it lacks starts without "
        "effect.",
    ),
)
_DATA = (
    click.option(
        "--dialogues",
        metavar="FOLDER",
        type=options.FILE,
        multiple=True,
        help="Train on dialogues that the target wrote: a folder of `synthesise`, or one of its files; "
        "repeatable.",
    ),
    click.option(
        "--answer-tokens",
        default=500_000,
        help="Answers that the target writes first, in tokens, where no dialogues are given.",
    ),
)
_TRAINING = (
    click.option(
        "--recipe",
        type=click.Choice(get_args(Recipe)),
        default="small",
        help="Stages, losses and rates: what works best for small targets, or as published.",
    ),
    choice("token-weight", float, "Of the loss on the target's distribution.", _RECIPES),
    choice("top-weight", float, "Of that loss on the ten likeliest tokens only.", _RECIPES),
    choice("feature-weight", float, "Of the loss on the feature that is fed back.", _RECIPES),
    choice("learning-rate", float, "At the height of each stage.", _RECIPES),
    choice("steps", int, "Positions that each row is unrolled for, in every stage.", _RECIPES),
    choice("step-decay", float, "What a step counts against the one before it.", _RECIPES),
    click.option("--budget", default=20_000_000, help="Scored rows times unrolled steps to train on."),
    click.option(
        "--minutes", type=float, show_default="the budget's", help="Train so long, instead of a budget."
    ),
    click.option("--seed", default=0, help="Repeats a run on the same machine."),
    click.option("--threads", type=int, show_default="PyTorch's choice", help="CPU threads."),
)
_OUTPUT = (
    click.option("-o", "--output", "drafter", metavar="DRAFTER", type=options.FILE, required=True),
    click.option(
        "--cache",
        type=options.FILE,
        help="Keep the target's features of the dialogues here, for other runs on them.",
    ),
)


@options.headed({"Drafter": _DRAFTER, "Data": _DATA, "Training": _TRAINING, "Output": _OUTPUT})
@click.command(cls=options.HeadedCommand, short_help="Train a drafter for a target.")
@click.argument("target")
@click.pass_obj
def train(
    view: "TargetView | None",
    target: str,
    preset: str,
    fusion: Fusion | None,
    alignment: Alignment | None,
    drafting: Drafting | None,
    num_specialists: int | None,
    positions_per_specialist: int | None,
    num_layers: int | None,
    num_masks: int | None,
    shared_mask: bool | None,
    mask_feature: MaskFeature | None,
    taps: tuple[int, ...],
    tap_norm: TapNorm | None,
    own_head: bool | None,
    draft_vocab_size: int | None,
    start: str | None,
    dialogues: tuple[Path, ...],
    answer_tokens: int,
    recipe: Recipe,
    token_weight: float | None,
    top_weight: float | None,
    feature_weight: float | None,
    learning_rate: float | None,
    steps: int | None,
    step_decay: float | None,
    budget: int,
    minutes: float | None,
    seed: int,
    threads: int | None,
    drafter: Path,
    cache: Path | None,
) -> None:
    """Train a drafter for TARGET on answers that TARGET writes itself; DRAFTER is a new folder.

    A run that was killed goes on where it stood when the same command is given again.
    """
    from poss_export.drafters.checkpoint import refuse_drafter
    from poss_export.targets.checkpoint import open_target
    from poss_export.training.hardware import use_threads
    from poss_export.training.options import TrainOptions
    from poss_export.training.run import train as train_drafter

    request = TrainOptions(
        preset=preset,
        choices=DrafterChoices(
            fusion=fusion,
            alignment=alignment,
            drafting=drafting,
            num_specialists=num_specialists,
            positions_per_specialist=positions_per_specialist,
            num_layers=num_layers,
            num_masks=num_masks,
            shared_mask=shared_mask,
            mask_feature=mask_feature,
            taps=taps or None,
            tap_norm=tap_norm,
            own_head=own_head,
        ),
        recipe=recipe,
        losses=StageChoices(
            steps=steps,
            step_decay=step_decay,
            token_weight=token_weight,
            top_weight=top_weight,
            feature_weight=feature_weight,
            learning_rate=learning_rate,
        ),
        dialogues=dialogues,
        answer_tokens=answer_tokens,
        start=start,
        budget=budget,
        minutes=minutes,
        draft_vocab_size=draft_vocab_size,
        seed=seed,
    )
    use_threads(threads)
    refuse_drafter(target)
    with show_progress() as progress:
        record = train_drafter(open_target(target), request, drafter, progress, cache, view)
    _print_held_out(drafter, record["held_out"])


def _print_held_out(drafter: Path, held_out: Mapping[str, Any]) -> None:
    taus = ", ".join(f"{nodes} nodes {tau}" for nodes, tau in held_out["tree_tau"].items())
    click.echo(f"{drafter}: acceptance by depth {held_out['alpha']}")
    click.echo(f"tokens a round: chains {held_out['chain_tau']}, trees of {taus}")
