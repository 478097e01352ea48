"""`poss-export feeds`."""

from pathlib import Path

import click

from poss_export.cli import options


@click.command(cls=options.HeadedCommand, short_help="Write inputs of real calls for Polygraphy and trtexec.")
@options.BUNDLE
@click.option("-o", "--output", "output", metavar="FOLDER", type=options.FILE, required=True)
@click.option("--prompt", default=options.PROMPT, help="What is answered.")
@click.option("--threads", type=int, show_default="cores", help="Of ONNX Runtime on the CPU.")
def feeds(bundle: Path, output: Path, prompt: str, threads: int | None) -> None:
    """Write what the graphs of BUNDLE read in an answer's first calls to FOLDER; print what to do with it.

    The calls are a chunk of the prompt, a plain step, a draft and its verification. The files are for
    Polygraphy, and where the caches are static for trtexec.
    """
    from poss_export.evaluation.feeds import write_feeds
    from poss_export.runtime.bundle import open_bundle

    with open_bundle(bundle, threads=threads) as opened:
        ids = opened.encode(prompt, raw=not opened.chats)
        for line in write_feeds(opened, ids, output):
            click.echo(line)
