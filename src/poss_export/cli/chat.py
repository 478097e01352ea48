"""`poss-export chat`."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import answer_figures, log
from poss_export.engine_spec import Backend
from poss_export.errors import InputError, PromptError

if TYPE_CHECKING:
    from poss_export.runtime.generation import Generation
    from poss_export.runtime.request import Wanted
    from poss_export.runtime.sampling import Sampling
    from poss_export.runtime.scheduler import Scheduler
    from poss_export.runtime.sessions.ort import Provider
    from poss_export.text import Message

_HELP = (
    "/reset begins anew, /system TEXT does so behind a system message, /exit ends; Ctrl-C ends an answer only"
)
_ANSWER: tuple[options.Add, ...] = (
    options.SYSTEM,
    click.option("--max-new-tokens", default=512, help="Longest answer, in tokens."),
    *options.SAMPLING,
    options.LOOKUP,
)


@options.headed({"Answer": _ANSWER, "Engine": options.ENGINE})
@click.command(cls=options.HeadedCommand, short_help="Talk with a bundle in the terminal.")
@options.BUNDLE
def chat(
    bundle: Path,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    lookup: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
) -> None:
    """Talk with BUNDLE: a line is what you say; /reset, /system TEXT and /exit are commands.

    Ctrl-C ends an answer, Ctrl-D the conversation.
    """
    from poss_export.runtime.bundle import open_bundle
    from poss_export.runtime.sampling import Sampling
    from poss_export.runtime.scheduler import Scheduler

    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend, lookup=lookup) as opened:
        if not opened.chats:
            raise InputError(
                "this target has no chat template, so it knows no turns; "
                "`poss-export generate` continues plain text",
                options=("raw",),
            )
        with Scheduler(opened) as scheduler:
            _Conversation(scheduler, system, max_new_tokens, sampling).run()


class _Conversation:
    """What was said so far, and what answers."""

    def __init__(
        self, scheduler: "Scheduler", system: str | None, max_new_tokens: int, sampling: "Sampling"
    ) -> None:
        self._scheduler, self._max_new_tokens, self._sampling = scheduler, max_new_tokens, sampling
        self._begin(system)

    def _begin(self, system: str | None) -> None:
        self._system = system
        self._said: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def run(self) -> None:
        """Answer line by line, until the last or /exit."""
        if sys.stdin.isatty():
            log(_HELP)
        for line in _lines():
            command, _, rest = line.partition(" ")
            if command == "/exit":
                return
            if command == "/reset":
                self._begin(self._system)
            elif command == "/system":
                self._begin(rest.strip() or None)
            elif command.startswith("/"):
                log(f"{command} is no command: {_HELP}")
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """Answer a line; one that cannot be answered was not said."""
        messages = [*self._said, {"role": "user", "content": line}]
        try:
            text, answer = self._answer(self._scheduler.bundle.encode(messages))
        except PromptError as error:
            log(f"error: {error}; /reset begins anew")
            return
        if text:
            self._said = [*messages, {"role": "assistant", "content": text}]
        if answer is not None:
            log(f"{answer_figures([answer])}, finish: {answer.finish_reason}")

    def _answer(self, ids: list[int]) -> tuple[str, "Generation | None"]:
        """Print an answer while it grows; return its text, and what it was where nobody interrupted it."""
        from poss_export.runtime.answers import follow
        from poss_export.runtime.scheduler import Done

        text = ""
        wanted: Wanted = {"max_new_tokens": self._max_new_tokens, "sampling": self._sampling}
        try:
            for event in follow(self._scheduler, ids, **wanted):
                if isinstance(event, Done):
                    click.echo()
                    return text, event.generation
                text += event.text
                click.echo(event.text, nl=False)
        except KeyboardInterrupt:
            click.echo()
        return text, None


def _lines() -> Iterator[str]:
    """Yield what is typed, or piped in, without the blanks around it."""
    with suppress(ImportError):  # Windows
        import_module("readline")  # lets `input` edit a line, and recall earlier ones
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:  # the line is forgotten
            click.echo()
