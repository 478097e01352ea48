"""The target's view of the dialogues that a run reads; files keep it for other runs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from poss_export.errors import InputError
from poss_export.files import whole
from poss_export.progress import Progress
from poss_export.targets.checkpoint import Target
from poss_export.targets.decoder import Decoder
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import TargetView, view_dialogues


def load_dialogues(target: Target, paths: Sequence[Path]) -> list[Dialogues]:
    """Return the dialogues of files and folders.

    Raises:
        InputError: one holds none, or they are not of this target.
    """
    return [_load(path, target) for path in paths]


def _load(path: Path, target: Target) -> Dialogues:
    dialogues = Dialogues.load(path)
    if (highest := int(dialogues.ids.max())) >= target.config.vocab_size:
        raise InputError(
            f"{str(path)!r} holds token {highest}, target {target.name!r} has {target.config.vocab_size} "
            "tokens: give dialogues that this target wrote"
        )
    return dialogues


def see(
    target: Target,
    decoder: Decoder,
    sources: Sequence[Dialogues],
    taps: tuple[int, ...],
    cache: Path | None,
    report: Progress,
) -> TargetView:
    """Return the view of `Dialogues.joined(sources)`; folder `cache` keeps that of each source."""
    if cache is None:
        return view_dialogues(decoder, Dialogues.joined(sources), taps, progress=report)
    views = [_kept_view(target, decoder, source, taps, cache, report) for source in sources]
    if len(views) == 1:
        return views[0]
    together = sum(sources[1:], start=sources[0])
    # Only the joined one stays: it is the most that a run has in memory.
    return TargetView.joined(views).kept(torch.from_numpy(together.first_told.repeat(together.lengths)))


def _kept_view(
    target: Target,
    decoder: Decoder,
    dialogues: Dialogues,
    taps: tuple[int, ...],
    cache: Path,
    report: Progress,
) -> TargetView:
    from safetensors.torch import load_file, save_file

    digest = hashlib.sha256(target.sha256.encode() + dialogues.ids.tobytes()).hexdigest()[:16]
    read = "".join(f"-{layer}" for layer in taps)
    path = cache / f"view-{digest}{read}.safetensors"
    if not path.exists():
        view = view_dialogues(decoder, dialogues, taps, progress=report)
        with whole(path) as partial:
            save_file(vars(view), partial)
    return TargetView(**load_file(path))
