"""Train drafters at once over one view of the target: it is computed, and in a device's memory, once.

    python -m offline.together TARGET --dialogues PATH ... --job LOG "--preset poss-2 -o FOLDER ..." ...

Each job is a `poss-export train` in a process of its own, which writes to its LOG.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch import multiprocessing

from poss_export.cli.main import main as poss_export
from poss_export.progress import silent
from poss_export.targets.checkpoint import open_target
from poss_export.training.features import TargetView
from poss_export.training.hardware import matmul_dtype, training_device
from poss_export.training.views import load_dialogues, see


def view_of(name: str, dialogues: Sequence[Path]) -> TargetView:
    """Return what a target knows about all these dialogues, on the device that trains."""
    target, device = open_target(name), training_device()
    decoder = target.load_decoder().to(device, matmul_dtype(device))
    return see(target, decoder, load_dialogues(target, dialogues), (), None, silent)


def train_one(log: Path, words: Sequence[str], view: TargetView) -> None:
    """Run `poss-export train` with these words and a view that another process holds."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    poss_export(["train", *words], obj=view)


@click.command(help=__doc__.partition("\n")[0])
@click.argument("target")
@click.option("--dialogues", multiple=True, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--job", "jobs", multiple=True, required=True, type=(click.Path(path_type=Path), str), metavar="LOG WORDS"
)
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads of each job.")
def main(target: str, dialogues: tuple[Path, ...], jobs: tuple[tuple[Path, str], ...], threads: int) -> None:
    """Compute the view, start the jobs, wait for them."""
    view = view_of(target, dialogues)
    torch.cuda.empty_cache()  # what computing it took is for the jobs
    os.environ["OMP_NUM_THREADS"] = str(threads)
    read = [word for path in dialogues for word in ("--dialogues", str(path))]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=train_one, args=(log, [target, *read, *shlex.split(words)], view))
        for log, words in jobs
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
