"""Options that commands share, and headings that group those of one command in its help."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from poss_export.engine_spec import BACKENDS

Add = Callable[[click.Command], click.Command]  # what `click.option` and `click.argument` return

FILE = click.Path(path_type=Path)

_COLUMN = 30  # characters of the first column in help: as wide as click makes it


class HeadedCommand(click.Command):
    """A command whose help shows its options under `headings`, then those that have none."""

    headings: Mapping[str, Sequence[click.Parameter]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section a heading, all in the same columns."""
        headed = [option for options in self.headings.values() for option in options]
        others = [option for option in self.get_params(ctx) if option not in headed]
        for heading, options in {**self.headings, "Other": others}.items():
            records = (option.get_help_record(ctx) for option in options if isinstance(option, click.Option))
            with formatter.section(heading):
                formatter.write_dl([_wide(*record) for record in records if record is not None])


def _wide(names: str, text: str) -> tuple[str, str]:
    return (names.ljust(_COLUMN) if text else names), text


def headed(groups: Mapping[str, Sequence[Add]]) -> Callable[[HeadedCommand], HeadedCommand]:
    """Return a decorator that adds options to a command, under these headings and in this order."""

    def add(command: HeadedCommand) -> HeadedCommand:
        headings = {}
        for heading, options in groups.items():
            known = len(command.params)
            for option in options:
                option(command)
            headings[heading] = command.params[known:]
        command.headings = headings
        return command

    return add


def choice(name: str, kind: Any, text: str, default: str = "the preset's") -> Add:
    """Return an option whose value, left out, is decided elsewhere."""
    return click.option(f"--{name}", type=kind, show_default=default, help=text)


PROMPT = "Why is the sky blue?"  # where any would do

BUNDLE = click.argument("bundle", type=FILE)

POSITIONS = click.option(
    "--positions-per-specialist",
    type=click.IntRange(1),
    show_default="what the drafter says",
    help="Draft positions of each specialist of a PosS release (the 3 of PosS-3), whose files do not "
    "state it.",
)

DRAFT_VOCAB = click.option(
    "--draft-vocab",
    "draft_vocab_size",
    metavar="N",
    type=int,
    show_default="all that the drafter has",
    help="Cut a drafter that can propose every token to the N most frequent ones, by --samples or else by "
    "the tokenizer's order: rounds are faster, and what is emitted does not depend on it.",
)

THREADS = click.option("--threads", type=int, show_default="ONNX Runtime's choice", help="CPU threads.")

# What runs a bundle.
ENGINE: tuple[Add, ...] = (
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="onnxruntime",
        help="Run the graphs, or the engines that were built of them.",
    ),
    click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Of ONNX Runtime."),
    THREADS,
)

SYSTEM = click.option("--system", metavar="TEXT", help="System message in front of every prompt.")

# How tokens are chosen.
SAMPLING: tuple[Add, ...] = (
    click.option("--temperature", default=0.0, help="0: greedy."),
    click.option("--top-k", default=0, help="Sample from the likeliest tokens only; 0: all."),
    click.option("--top-p", default=1.0, help="Sample from the likeliest tokens that reach this share."),
    click.option(
        "--min-p", default=0.0, help="Sample from tokens at least this share as likely as the likeliest."
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
)

LOOKUP = click.option(
    "--lookup",
    metavar="FILE",
    type=FILE,
    help="Plain text whose continuations are proposed too, beside those of prompt and answer.",
)

FORCE = click.option("--force", is_flag=True, help="Replace files that are there.")


def prompts(default: str | None = None) -> Add:
    """Return the option that names a file of prompts; `default` says what is asked without it."""
    return click.option(
        "--prompts",
        metavar="FILE",
        type=FILE,
        show_default=default or False,
        help="JSON Lines of `prompt`, of `turns`, which are all asked, or of `messages`, whose last is "
        "asked; -: standard input.",
    )


def plot(text: str) -> Add:
    """Return the option that draws a picture."""
    return click.option("--plot", metavar="FILE.png", type=FILE, help=text)


def json_flag(text: str = "Print a JSON object.") -> Add:
    """Return the option that asks for JSON."""
    return click.option("--json", "as_json", is_flag=True, help=text)
