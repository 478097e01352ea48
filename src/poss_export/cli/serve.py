"""`poss-export serve`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import log
from poss_export.engine_spec import Backend

if TYPE_CHECKING:
    from poss_export.manifest import Manifest
    from poss_export.runtime.sessions.ort import Provider

_SLOTS = 8
_ADDRESS = (
    click.option("--host", default="127.0.0.1", help="Address to listen at: by default this machine only."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: a free one."),
    click.option(
        "--api-key-file",
        metavar="FILE",
        type=options.FILE,
        help="API keys, one a line, of which requests must send one; so may POSS_EXPORT_API_KEYS hold some.",
    ),
    click.option("--model-name", show_default="the bundle's folder", help="The model's name in the API."),
)
_LIMITS = (
    click.option(
        "--slots",
        type=click.IntRange(1),
        show_default="8, with engines as many as they are made for, 1 where answers would change",
        help="Answers made at once.",
    ),
    click.option(
        "--queue", type=click.IntRange(1), default=64, help="Answers that may wait; more are refused."
    ),
    click.option(
        "--max-body", "body", type=click.IntRange(1), default=1 << 20, help="Bytes of a request's body."
    ),
    click.option(
        "--max-prompt-tokens",
        "prompt_tokens",
        type=click.IntRange(1),
        show_default="the bundle's capacity",
        help="Tokens of a prompt.",
    ),
    click.option(
        "--max-new-tokens",
        "new_tokens",
        type=click.IntRange(1),
        show_default="the bundle's capacity",
        help="Tokens of an answer.",
    ),
    click.option("--max-choices", "choices", type=click.IntRange(1), default=8, help="Answers to a request."),
    click.option(
        "--timeout",
        "seconds",
        type=click.FloatRange(0, min_open=True),
        default=600.0,
        help="Seconds a request.",
    ),
    click.option(
        "--drain-seconds",
        type=click.IntRange(0),
        default=30,
        help="After SIGTERM, let answers end for so long.",
    ),
)


@options.headed({"Address": _ADDRESS, "Limits": _LIMITS, "Engine": (*options.ENGINE, options.LOOKUP)})
@click.command(cls=options.HeadedCommand, short_help="Serve a bundle over HTTP, as OpenAI's API.")
@options.BUNDLE
def serve(
    bundle: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    model_name: str | None,
    slots: int | None,
    queue: int,
    body: int,
    prompt_tokens: int | None,
    new_tokens: int | None,
    choices: int,
    seconds: float,
    drain_seconds: int,
    lookup: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
) -> None:
    """Serve BUNDLE over HTTP in the form of OpenAI's API, until SIGTERM or Ctrl-C."""
    from poss_export.manifest import read_manifest
    from poss_export.runtime.bundle import open_bundle
    from poss_export.runtime.scheduler import Scheduler
    from poss_export.server.run import address_of, is_local, listen, run, warm
    from poss_export.server.settings import Limits, Settings, read_keys

    limits = Limits(body, prompt_tokens, new_tokens, choices, seconds)
    settings = Settings(model_name or bundle.resolve().name, read_keys(api_key_file), limits)
    slots = _slots(read_manifest(bundle), backend, slots)
    opened = open_bundle(
        bundle, threads=threads, provider=provider, backend=backend, lookup=lookup, slots=slots
    )
    with listen(host, port) as listening:
        if not is_local(listening) and not settings.keys:
            log("warning: other machines reach this server, and it asks for no key (--api-key-file)")
        with opened, Scheduler(opened, queue=queue) as scheduler:
            warm(scheduler)
            log(f"serving {settings.model!r} at {address_of(listening)}/v1")
            run(scheduler, settings, listening, drain_seconds)


def _slots(manifest: "Manifest", backend: Backend, asked: int | None) -> int:
    """Return how many answers are made at once; tell where they may not be those made alone."""
    from poss_export.cli.cards import at_once

    engines = manifest.engines if backend != "onnxruntime" else ()
    made_for = [entry.spec.slots for entry in engines if entry.spec.flavour == backend]
    claimed, told = manifest.exactness.beside_tie is not None, f"answers beside others: {at_once(manifest)}"
    if asked is None and manifest.beside is not None and not claimed and not made_for:
        log(f"answering in turns ({told}); --slots asks for more")
        return 1
    slots = asked or min(made_for, default=_SLOTS)
    if slots > 1 and not claimed:
        log(f"warning: {told}; --slots 1 answers in turns")
    return slots
