"""`poss-export train`: from a target to a drafter folder, in steps that each resume.

OUT/.training/   turns.json, answers.jsonl, view-*.safetensors, state.pt: what a killed run goes on from
OUT/             training.jsonl (log), then config.json, model.safetensors and training.json
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from poss_export.config import TargetConfig
from poss_export.drafters.checkpoint import load_drafter, save_drafter
from poss_export.drafters.model import Drafter
from poss_export.errors import InputError
from poss_export.targets.checkpoint import Target
from poss_export.targets.decoder import Decoder
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import TargetView, view_dialogues
from poss_export.training.files import append_log, read_log, write_whole
from poss_export.training.initialise import initialise
from poss_export.training.presets import preset
from poss_export.training.synthesis import answer_prompts, chat_prompts, invent_turns, join_dialogues
from poss_export.training.trainer import Corpus, Progress, Trainer
from poss_export.training.vocabulary import choose_vocabulary, coverage

EVALUATED_DEPTH = 6
LOG_EVERY = 1000  # optimiser steps

# report(activity, done, total, note) after every piece of work.
Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class TrainOptions:
    """What a run depends on besides the target: equal options on equal hardware give an equal drafter."""

    preset: str
    dialogues: tuple[Path, ...] = ()  # ready .npz files; empty: the target invents `invent` dialogues
    prompts: tuple[str, ...] = ()  # user turns to answer instead of invented ones
    start: str | None = None  # a trained one-specialist drafter that replaces the first stage
    invent: int = 3000
    budget: int = 20_000_000  # row-steps: scored rows times unrolled steps
    draft_vocab_size: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained before any work is done."""
        preset(self.preset)
        for name in ("invent", "budget", "draft_vocab_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; files by their names, prompts by their number."""
        files = [path.name for path in self.dialogues]
        return {**asdict(self), "dialogues": files, "prompts": len(self.prompts)}


def train(target: Target, options: TrainOptions, out: Path, report: Report) -> dict[str, Any]:
    """Train a drafter into folder `out`, or go on with a run that was killed there; return its record.

    Raises InputError where `out` holds a finished drafter or a run with other options.
    """
    work = _claim(out, target, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = target.load_decoder().to(device, matmul_dtype(device))
    parts = _dialogues(target, decoder, options, work, report)
    dialogues = sum(parts[1:], start=parts[0])
    views = [_view(decoder, part, work, report) for part in parts]
    view = sum(views[1:], start=views[0])
    spread = float(decoder.embed_tokens.float().std())
    if options.start is None:
        drafter, stages = _new_drafter(target.config, dialogues, view, options), preset(options.preset).stages
    else:
        drafter, stages = _started_drafter(options, spread), preset(options.preset).later_stages
    draft_ids = drafter.draft_ids.clone()
    draft_index = torch.full((target.config.vocab_size,), -1)
    draft_index[draft_ids] = torch.arange(len(draft_ids))
    corpus = Corpus(
        dialogues=dialogues,
        view=view,
        embeddings=decoder.embed_tokens.float() / spread,
        head=decoder.lm_head[draft_ids.to(device)],
        draft_index=draft_index,
        device=device,
        dtype=matmul_dtype(device),
    )
    trainer = Trainer(drafter, corpus, stages, options.budget, options.seed, work)
    _run(trainer, options.budget, out / "training.jsonl", report)
    acceptance = trainer.evaluate(EVALUATED_DEPTH)
    _scale_embedding_rows(drafter.cpu(), 1 / spread)
    record = {
        "target": target.name,
        "options": options.to_dict(),
        "dialogues": len(dialogues),
        "answer_tokens": int(dialogues.answer_mask.sum()),
        "draft_vocabulary_coverage": round(coverage(dialogues, draft_ids.numpy()), 4),
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "training_seconds": round(trainer.progress.seconds),
        "held_out": {
            "alpha": [round(rate, 3) for rate in acceptance.alpha],
            "chain_tau": round(acceptance.chain_tau, 3),
        },
    }
    write_whole(out / "training.json", json.dumps(record, indent=2) + "\n")
    save_drafter(out, drafter, target.sha256, torch.bfloat16)
    return record


def _claim(out: Path, target: Target, options: TrainOptions) -> Path:
    """Return the work folder of the run that `out` belongs to, made if it is new."""
    if (out / "config.json").exists():
        raise InputError(
            f"{str(out)!r} already holds a drafter; give another folder, or remove it to train anew"
        )
    work = out / ".training"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written ({error}); give another folder") from error
    run = json.dumps({"target": target.sha256, **options.to_dict()})
    claim = work / "run.json"
    if claim.exists() and claim.read_text(encoding="utf-8") != run:
        raise InputError(
            f"{str(out)!r} holds an unfinished run with other options: repeat its command, or give "
            "another folder"
        )
    write_whole(claim, run)
    return work


def matmul_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _dialogues(
    target: Target, decoder: Decoder, options: TrainOptions, work: Path, report: Report
) -> list[Dialogues]:
    """Load the dialogues given, or let the target write them; what it has written survives a kill."""
    if options.dialogues:
        return [Dialogues.load(path) for path in options.dialogues]
    turns_file, answers_file = work / "turns.json", work / "answers.jsonl"
    if not turns_file.exists():
        report("inventing user turns", 0, options.invent, "")
        turns = list(options.prompts) or invent_turns(decoder, target.text, options.invent, options.seed)
        write_whole(turns_file, json.dumps(turns))
    prompts = chat_prompts(target.text, json.loads(turns_file.read_text(encoding="utf-8")))
    answers = {entry["prompt"]: entry["answer"] for entry in read_log(answers_file)}
    waiting = [i for i in range(len(prompts)) if i not in answers]
    asked = [prompts[i] for i in waiting]
    for index, answer in answer_prompts(decoder, asked, target.text.config.stop_ids):
        answers[waiting[index]] = answer
        append_log(answers_file, {"prompt": waiting[index], "answer": answer})
        report("answers", len(answers), len(prompts), "")
    return [join_dialogues(prompts, answers)]


def _view(decoder: Decoder, dialogues: Dialogues, work: Path, report: Report) -> TargetView:
    from safetensors.torch import load_file, save_file

    digest = hashlib.sha256(dialogues.ids.tobytes()).hexdigest()[:16]
    path = work / f"view-{digest}.safetensors"
    if not path.exists():
        done = 0

        def progress(tokens: int) -> None:
            nonlocal done
            done += tokens
            report("features", done, len(dialogues.ids), "tokens")

        view = view_dialogues(decoder, dialogues, progress=progress)
        save_file(vars(view), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return TargetView(**load_file(path))


def _new_drafter(
    config: TargetConfig, dialogues: Dialogues, view: TargetView, options: TrainOptions
) -> Drafter:
    """Return a drafter with random weights and a draft vocabulary chosen from the dialogues."""
    drafter = Drafter(preset(options.preset).drafter_config(config, options.draft_vocab_size))
    ids = choose_vocabulary(dialogues, config.vocab_size, options.draft_vocab_size)
    drafter.draft_ids.copy_(torch.from_numpy(ids))
    feature_spread = float(view.features[:100_000].float().square().mean().sqrt())
    initialise(drafter, feature_spread, options.seed)
    return drafter


def _started_drafter(options: TrainOptions, spread: float) -> Drafter:
    """Return the preset's drafter with every specialist a copy of the trained one (PosS)."""
    assert options.start is not None
    trained = load_drafter(options.start).drafter
    wanted = preset(options.preset)
    if trained.config.num_specialists != 1:
        raise InputError(
            f"{options.start} has {trained.config.num_specialists} specialists; training starts from a "
            "drafter with one: train it with --preset eagle"
        )
    drafter = Drafter(
        replace(
            trained.config,
            num_specialists=wanted.num_specialists,
            positions_per_specialist=wanted.positions_per_specialist,
        )
    )
    drafter.draft_ids.copy_(trained.draft_ids)
    drafter.fusion.load_state_dict(trained.fusion.state_dict())
    for specialist in drafter.specialists:
        specialist.load_state_dict(trained.specialists[0].state_dict())
    _scale_embedding_rows(drafter, spread)
    return drafter


def _run(trainer: Trainer, budget: int, log: Path, report: Report) -> None:
    def step(progress: Progress, losses: dict[str, float]) -> None:
        before = sum(stage.share for stage in trainer.stages[: progress.stage]) * budget
        done = min(budget, int(before + progress.row_steps))  # the last batch may go beyond it
        report("training", done, budget, f"loss {losses['token_loss']:.3f}")
        if progress.step % LOG_EVERY == 1:
            acceptance = trainer.evaluate(EVALUATED_DEPTH, most=100)
            append_log(log, {**asdict(progress), **losses, **asdict(acceptance)})

    trainer.run(step)


def _scale_embedding_rows(drafter: Drafter, factor: float) -> None:
    """Training reads embeddings at unit spread, the finished fusion reads the table as it is."""
    with torch.no_grad():
        drafter.fusion.fc.weight[: drafter.config.hidden_size] *= factor
