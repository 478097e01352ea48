"""The command line: each command parses, calls one function and shows what it returns.

Errors become exit codes. Results go to stdout, everything else to stderr. Heavy libraries are imported
inside the commands.
"""

import errno
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from poss_export.cli.bench import bench
from poss_export.cli.build import build
from poss_export.cli.calibrate import calibrate
from poss_export.cli.chat import chat
from poss_export.cli.feeds import feeds
from poss_export.cli.generate import generate
from poss_export.cli.inspect import inspect
from poss_export.cli.printing import log, prepare_streams
from poss_export.cli.profile import profile
from poss_export.cli.serve import serve
from poss_export.cli.synthesise import synthesise
from poss_export.cli.train import train
from poss_export.cli.verify import verify
from poss_export.errors import PossExportError

# What extras bring; a deployment may have none of it.
_EXTRAS = {
    **dict.fromkeys(
        ("gguf", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch", "transformers"), "export"
    ),
    "polygraphy": "polygraphy",
    **dict.fromkeys(("prometheus_client", "pydantic", "starlette", "uvicorn"), "server"),
}


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals that end a process clear up first, as an interrupt does: unfinished folders are large."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    ending = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL
    ]
    before = {number: signal.signal(number, end) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Commands(click.Group):
    """A group whose commands end a `PossExportError` with its message and exit code.

    `context.meta["argv"]` is what was typed.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note what was typed, before anything is taken from it."""
        ctx.meta["argv"] = ["poss-export", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            prepare_streams()
            with _ended_by_signals():
                return super().invoke(ctx)
        except PossExportError as error:
            flags = self._flags(error.options, ctx.invoked_subcommand)
            log(f"error: {error}{f' ({flags})' if flags else ''}")
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # nobody reads on: click ends the command quietly
            log(f"error: {error.filename or 'cannot write results'}: {error.strerror or error}")
            ctx.exit(1)
        except MemoryError:
            log("error: there is not enough memory for this")
            ctx.exit(1)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            log(
                f"error: this command needs {error.name}, which is not installed: "
                f"pip install 'poss-export[{_EXTRAS[error.name]}]'"
            )
            ctx.exit(1)

    def _flags(self, names: Sequence[str], running: str | None) -> str:
        """Return how parameters with these names are typed: in the running command, or in another."""
        flags = (self._flag(name, running) for name in names)
        return ", ".join(flag for flag in flags if flag is not None)

    def _flag(self, name: str, running: str | None) -> str | None:
        for command in sorted(self.commands.values(), key=lambda command: command.name != running):
            for option in command.params:
                if option.name == name and isinstance(option, click.Option):
                    where = "" if command.name == running else f"poss-export {command.name} "
                    return f"{where}{option.opts[0]}"
        return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="poss-export")
def main() -> None:
    """Lossless speculative decoding on ONNX Runtime, TensorRT and TensorRT-RTX.

    Export a target model and a drafter, build a bundle of them, verify it, run it; train drafters.
    """


_COMMANDS = (
    build,
    generate,
    chat,
    serve,
    inspect,
    verify,
    bench,
    profile,
    feeds,
    calibrate,
    synthesise,
    train,
)
for _command in _COMMANDS:
    main.add_command(_command)
