"""`poss-export train`: from a target to a drafter folder, in steps that each resume.

OUT/.training/   view-*.safetensors, state.pt: what a killed run goes on from; drafter/: the drafter so far;
                 gone when the run is finished
OUT/             dialogues/ (if the target wrote them), training.jsonl (log), training.json and
                 training.png (report), then config.json and model.safetensors
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poss_export.config import TargetConfig
from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.checkpoint import load_drafter, pair, save_drafter
from poss_export.drafters.model import Drafter
from poss_export.drafters.vocabulary import USUAL_SIZE
from poss_export.errors import CheckpointError, InputError
from poss_export.files import lock, make_writable, opened, write_whole
from poss_export.plots import check_library
from poss_export.progress import Progress
from poss_export.targets.checkpoint import Target
from poss_export.targets.decoder import Decoder
from poss_export.training.corpus import Corpus
from poss_export.training.dialogue_folder import SynthesisOptions, check_writes, synthesise
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import TargetView
from poss_export.training.hardware import keep_memory, matmul_dtype, training_device
from poss_export.training.held_out import DEPTH, judge
from poss_export.training.initialise import initialise, start_from, start_output
from poss_export.training.log import append_log, read_log
from poss_export.training.options import TrainOptions
from poss_export.training.plot import plot_training
from poss_export.training.presets import preset
from poss_export.training.trainer import RunState, Trainer
from poss_export.training.views import load_dialogues, see
from poss_export.training.vocabulary import check_size, choose_vocabulary, coverage

LOG = "training.jsonl"
LOGGED = 20  # points of the learning curves, beside the first
LOOKS = 20  # steps from one look at the loss to the next: a device must be waited for


def train(
    target: Target,
    options: TrainOptions,
    out: Path,
    report: Progress,
    cache: Path | None = None,
    view: TargetView | None = None,
) -> dict[str, Any]:
    """Train a drafter into folder `out`, or go on with a run that was killed there; return its record.

    `cache` keeps the target's view of dialogues for other runs on them; None: it goes with the run. `view` is
    what the target knows about the dialogues given, where a caller has it already (`see`).
    Raises InputError where `out` holds something else than this run, or the target cannot write dialogues.
    """
    check_library()  # its report has a picture
    config, trained = _plan_drafter(target.config, options)
    if not options.dialogues:
        check_writes(target)
    with _claimed(out, target, options) as work:
        if cache is not None:
            make_writable(cache, "choose another folder")
        keep_memory()
        sources = load_dialogues(target, options.dialogues or [_written(target, options, out, report)])
        dialogues = Dialogues.joined(sources)
        dialogues.check_split()
        device = training_device()
        decoder = target.load_decoder().to(device, matmul_dtype(device))
        if view is not None and view.features.shape[1] != config.feature_size:
            raise InputError(
                f"the view has {view.features.shape[1]} features a token, this drafter reads "
                f"{config.feature_size}: train it apart"
            )
        if view is None:
            # A GPU computes it again sooner than a disk, which may be smaller than it, would give it back.
            kept = work if cache is None and device.type == "cpu" else cache
            view = see(target, decoder, sources, config.taps, kept, report)
        # The first layer norms embeddings where taps are read: they stay as they are.
        spread = 1.0 if config.reads_taps else float(decoder.embed_tokens.float().std())
        drafter = _new_drafter(config, trained, decoder, dialogues, view, options.seed, spread)
        corpus = Corpus.of(decoder, dialogues, view, drafter.draft_ids.clone(), spread)
        trainer = Trainer(drafter, corpus, options, work)
        _run(trainer, out / LOG, report, lambda: _save_so_far(work, drafter, target, spread))
        _save_so_far(work, drafter, target, spread)  # the figures take time, in which a run may be ended
        held_out = judge(trainer, report)
        drafter.scale_embeddings(1 / spread)
        record = _record(target, options, trainer, held_out)
        write_whole(out / "training.json", json.dumps(record, indent=2) + "\n")
        plot_training(out / "training.png", record, list(read_log(out / LOG)))
        save_drafter(out, drafter, target.sha256, torch.bfloat16)
        shutil.rmtree(work)
    return record


def _save_so_far(work: Path, drafter: Drafter, target: Target, spread: float) -> None:
    """Write the drafter as it is, to be had where a run is cut off for good."""
    copy = deepcopy(drafter).cpu()
    copy.scale_embeddings(1 / spread)
    # The folder holds a whole drafter at any time: others read it, and a run may be ended at any time.
    folder, partial = work / "drafter", work / "drafter.partial"
    save_drafter(partial, copy, target.sha256, torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _record(
    target: Target, options: TrainOptions, trainer: Trainer, held_out: dict[str, Any]
) -> dict[str, Any]:
    """Return the run's report as plain JSON values."""
    dialogues, drafter = trainer.corpus.dialogues, trainer.drafter
    return {
        "target": target.name,
        "options": {**options.to_dict(), "start": options.start and Path(options.start).name},
        "stages": [asdict(stage) for stage in options.stages],
        "dialogues": len(dialogues),
        "answer_tokens": int(dialogues.answer_mask.sum()),
        "draft_vocabulary_coverage": round(coverage(dialogues, drafter.draft_ids.numpy()), 4),
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "row_steps": trainer.state.earlier_row_steps,
        "training_seconds": round(trainer.state.earlier_seconds),
        "held_out": held_out,
    }


@contextmanager
def _claimed(out: Path, target: Target, options: TrainOptions) -> Iterator[Path]:
    """Give the work folder of the run that `out` belongs to, made if it is new, to this process alone."""
    if (out / "config.json").exists():
        raise InputError(
            f"{str(out)!r} already holds a drafter; give another folder, or remove it to train anew"
        )
    work = out / ".training"
    run = {"target": target.sha256, "options": options.digest()}
    if out.is_dir() and not work.exists() and any(out.iterdir()):
        raise InputError(f"{str(out)!r} holds other files; give a new folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written ({error}); give another folder") from error
    with opened(work) as descriptor:
        if not lock(descriptor):
            raise InputError(
                f"another process is training into {str(out)!r}: wait for it, or give another folder"
            )
        _check_run(out, work / "run.json", run)
        yield work


def _check_run(out: Path, claim: Path, run: dict[str, Any]) -> None:
    """Write which run a folder belongs to; raise InputError where that is another one."""
    if claim.exists() and claim.read_bytes() != json.dumps(run).encode():
        raise InputError(
            f"{str(out)!r} holds an unfinished run with other options: repeat its command, or give "
            "another folder"
        )
    write_whole(claim, json.dumps(run))


def _written(target: Target, options: TrainOptions, out: Path, report: Progress) -> Path:
    """Let the target write dialogues into a folder of `out`; return it."""
    written = out / "dialogues"
    synthesise(target, written, SynthesisOptions(options.answer_tokens, seed=options.seed), report)
    return written


def _plan_drafter(target: TargetConfig, options: TrainOptions) -> tuple[DrafterConfig, Drafter | None]:
    """Return the drafter's facts and the drafter to start from; refuse what cannot be trained."""
    trained, size = None, options.draft_vocab_size
    if options.start is not None:
        trained = load_drafter(options.start).drafter
        pair(target, trained)
        if size not in (None, len(trained.draft_ids)) and trained.head is not None:
            raise InputError(
                f"draft_vocab_size is {size}, but {options.start} has a head of its own for "
                f"{len(trained.draft_ids)} ids: leave it out",
                options=("draft_vocab_size",),
            )
        size = size or len(trained.draft_ids)
    size = size or min(USUAL_SIZE, target.vocab_size)
    check_size(size, target.vocab_size)
    try:
        config = preset(options.preset).drafter_config(target, size, options.choices)
    except CheckpointError as error:  # its facts do not come from a checkpoint here
        raise InputError(str(error)) from error
    if config.own_embeddings:
        raise InputError("a drafter with own_embeddings cannot be trained here: it reads the target's table")
    if config.reads_taps and any(stage.feature_weight for stage in options.stages):
        raise InputError(
            "a drafter with fusion 'taps' feeds back states of its own, which nothing is compared with: "
            "feature_weight must be 0",
            options=("feature_weight",),
        )
    if trained is not None:
        start_from(Drafter(config), trained)  # raises where the two do not fit
    return config, trained


def _new_drafter(
    config: DrafterConfig,
    trained: Drafter | None,
    decoder: Decoder,
    dialogues: Dialogues,
    view: TargetView,
    seed: int,
    spread: float,
) -> Drafter:
    """Return the drafter to train: random, or grown from the trained one, with its ids if it has as many."""
    drafter = Drafter(config)
    feature_spread = float(view.features[:100_000].float().square().mean().sqrt())
    initialise(drafter, feature_spread, seed)
    if trained is not None and len(trained.draft_ids) == config.draft_vocab_size:
        drafter.draft_ids.copy_(trained.draft_ids)
    else:
        ids = choose_vocabulary(dialogues, config.vocab_size, config.draft_vocab_size)
        drafter.draft_ids.copy_(torch.from_numpy(ids))
    start_output(drafter, decoder)
    if trained is not None:
        trained.scale_embeddings(spread)
        start_from(drafter, trained)
    return drafter


def _run(trainer: Trainer, log: Path, report: Progress, saved: Callable[[], None]) -> None:
    logged = max((entry["share"] for entry in read_log(log)), default=-1.0)
    since: list[dict[str, Tensor]] = []  # losses of the batches since then
    minutes = trainer.options.minutes
    total = trainer.options.budget if minutes is None else round(60 * minutes)
    note = ""

    def step(state: RunState, losses: dict[str, Tensor]) -> None:
        nonlocal logged, note
        since.append(losses)
        share = trainer.done
        if state.step % LOOKS == 1:
            note = f"loss {float(losses['token_loss']):.3f}"
        report("training", int(share * total), total, note)
        if share - logged >= 1 / LOGGED or share == 1.0 > logged:
            logged = share
            acceptance = trainer.evaluate(DEPTH, most=16)
            means = {name: float(torch.stack([batch[name] for batch in since]).mean()) for name in losses}
            since.clear()
            done = state.earlier_row_steps + state.row_steps
            append_log(log, {"share": share, "done": done, **asdict(state), **means, **asdict(acceptance)})

    trainer.run(step, saved)
