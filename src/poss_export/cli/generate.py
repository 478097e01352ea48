"""`poss-export generate`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poss_export.cli import options
from poss_export.cli.printing import answer_figures, log, print_json
from poss_export.engine_spec import Backend
from poss_export.errors import InputError

if TYPE_CHECKING:
    from poss_export.runtime.generation import Generation, Stream
    from poss_export.runtime.sessions.ort import Provider

_PROMPT = (
    options.prompts(),
    options.SYSTEM,
    click.option(
        "--template-variable",
        "variables",
        metavar="NAME=VALUE",
        multiple=True,
        help="For the chat template, such as enable_thinking=false; JSON, or else text; repeatable.",
    ),
    click.option(
        "--control-tokens",
        is_flag=True,
        help="Let control tokens in prompts, such as <|im_end|>, take effect; they can end a turn and begin "
        "another. Else they are text.",
    ),
    click.option(
        "--raw",
        is_flag=True,
        help="Continue the prompt as plain text, without the chat template; control tokens take effect.",
    ),
)
_ANSWER: tuple[options.Add, ...] = (
    click.option("--max-new-tokens", default=128, help="Longest answer, in tokens."),
    click.option(
        "--stop",
        metavar="STRING",
        multiple=True,
        help="End the answer before this; a control token, such as <|im_end|>, too; repeatable.",
    ),
    *options.SAMPLING,
    click.option("--target-only", is_flag=True, help="Decode one token a round, the baseline."),
    click.option(
        "--fixed-tree", is_flag=True, help="Verify the drafter's whole tree every round, whatever it costs."
    ),
    options.LOOKUP,
)


@options.headed(
    {
        "Prompt": _PROMPT,
        "Answer": _ANSWER,
        "Engine": options.ENGINE,
        "Output": (options.json_flag("Print one JSON object an answer."),),
    }
)
@click.command(cls=options.HeadedCommand, short_help="Answer prompts with a bundle.")
@options.BUNDLE
@click.argument("prompt", nargs=-1)
def generate(
    bundle: Path,
    prompt: tuple[str, ...],
    prompts: Path | None,
    system: str | None,
    variables: tuple[str, ...],
    control_tokens: bool,
    raw: bool,
    max_new_tokens: int,
    stop: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    target_only: bool,
    fixed_tree: bool,
    lookup: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Answer prompts with BUNDLE, by draft and verify."""
    from poss_export.prompts import Refused, as_prompts, read_prompts, with_system
    from poss_export.runtime.bundle import open_bundle
    from poss_export.runtime.planning.planner import ADAPTIVE
    from poss_export.runtime.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    asked = [*as_prompts(prompt), *(read_prompts(prompts) if prompts else ())]
    if not asked:
        raise InputError(
            "no prompt; write one behind the bundle, or name a file of them", options=("prompts",)
        )
    if system is not None:
        asked = [with_system(one, system) for one in asked]
    given = _variables(variables)
    answers = []
    refused = Refused(len(asked))
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend, lookup=lookup) as engines:
        for one in asked:
            with refused.noted():
                for stream in engines.conversation(
                    one,
                    max_new_tokens=max_new_tokens,
                    sampling=sampling,
                    stop=stop,
                    target_only=target_only,
                    planning=None if fixed_tree else ADAPTIVE,
                    raw=raw,
                    variables=given,
                    control_tokens=control_tokens,
                ):
                    answers.append(_show(stream, as_json))
    if len(answers) > 1:
        log(f"{len(answers)} answers: {answer_figures(answers)}")
    refused.check()


def _variables(texts: Sequence[str]) -> dict[str, Any]:
    """Return template variables by name, from NAME=VALUE."""
    from poss_export.files import parse_json

    found = dict[str, Any]()
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(
                f"the template variable is {text!r}; expected NAME=VALUE", options=("variables",)
            )
        if value in ("True", "False", "None"):
            # As text each would be true.
            raise InputError(
                f"template variable {name} is {value}; write true, false or null", options=("variables",)
            )
        try:
            found[name] = parse_json(value)
        except ValueError:
            found[name] = value
    return found


def _show(stream: "Stream", as_json: bool) -> "Generation":
    """Print an answer, on a terminal while it grows."""
    if as_json:
        print_json(stream.run().to_dict(), indent=None)
    else:
        for piece in stream if sys.stdout.isatty() else [stream.run().text]:
            click.echo(piece, nl=False)
        click.echo()
    log(f"{answer_figures([stream.result])}, finish: {stream.result.finish_reason}")
    if stream.result.summary.drafts_in_vain:
        log(
            "warning: nothing that the drafter proposed was accepted; is it a drafter of this target? "
            "`poss-export verify` compares both with their checkpoints"
        )
    return stream.result
