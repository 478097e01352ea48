"""`poss-export synthesise`."""

from pathlib import Path

import click

from poss_export.cli import options
from poss_export.cli.printing import print_json
from poss_export.cli.progress import show_progress
from poss_export.errors import InputError

_DATA = (
    click.option("--answer-tokens", default=500_000, help="Write until the folder holds so many."),
    click.option("--minutes", type=float, show_default="no limit", help="End after so long all the same."),
    options.prompts(default="the target invents them"),
    click.option(
        "--held-apart",
        metavar="FILE",
        type=options.FILE,
        multiple=True,
        help="JSON Lines of evaluation prompts; what asks one of them is left out. Repeatable.",
    ),
    click.option("--seed", default=0, help="Of what the target invents."),
    click.option("--threads", type=int, show_default="PyTorch's choice", help="CPU threads."),
)
_OUTPUT = (
    click.option("-o", "--output", "folder", metavar="FOLDER", type=options.FILE, required=True),
    options.json_flag("Print the card as JSON."),
)


@options.headed({"Dialogues": _DATA, "Output": _OUTPUT})
@click.command(cls=options.HeadedCommand, short_help="Let a target write dialogues to train drafters on.")
@click.argument("target")
def synthesise(
    target: str,
    answer_tokens: int,
    minutes: float | None,
    prompts: Path | None,
    held_apart: tuple[Path, ...],
    seed: int,
    threads: int | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Let TARGET write dialogues into FOLDER, for `train`.

    What is there stays: the command goes on where it was killed, and may run several times at once, one
    process for each core, say. One part in four has answers sampled at temperature 1, the others greedy ones.
    """
    from poss_export.drafters.checkpoint import refuse_drafter
    from poss_export.targets.checkpoint import open_target
    from poss_export.training.dialogue_folder import SynthesisOptions
    from poss_export.training.dialogue_folder import synthesise as write_dialogues
    from poss_export.training.hardware import use_threads

    request = SynthesisOptions(
        answer_tokens=answer_tokens,
        minutes=minutes,
        prompts=() if prompts is None else _first_turns(prompts),
        held_apart=tuple(turn for file in held_apart for turn in _turns(file)),
        seed=seed,
    )
    use_threads(threads)
    refuse_drafter(target)
    with show_progress() as progress:
        card = write_dialogues(open_target(target), folder, request, progress)
    if as_json:
        print_json(card)
        return
    click.echo(f"{folder}: {card['dialogues']:,} dialogues, {card['answer_tokens']:,} answer tokens")
    for kind, counts in card["kinds"].items():
        click.echo(f"  {kind}: {counts['dialogues']:,} dialogues, {counts['answer_tokens']:,} answer tokens")


def _turns(file: Path) -> tuple[str, ...]:
    from poss_export.prompts import read_prompts

    return tuple(turn for prompt in read_prompts(file) for turn in prompt.turns)


def _first_turns(file: Path) -> tuple[str, ...]:
    from poss_export.prompts import read_prompts

    asked = read_prompts(file)
    for prompt in asked:
        if prompt.before:
            raise InputError(
                f"{prompt.source} has messages before the user's, which training does not read; "
                "give the user's turn as prompt",
                options=("prompts",),
            )
    return tuple(prompt.turns[0] for prompt in asked)
