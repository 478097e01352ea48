"""The training run: stages of unrolled steps, resumable at any point, the same for the same seed."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from poss_export.drafters.model import Drafter
from poss_export.files import whole
from poss_export.training.chain_acceptance import ChainAcceptance, count_chains
from poss_export.training.corpus import BATCH_TOKENS, Corpus
from poss_export.training.features import batches_by_length
from poss_export.training.initialise import copy_first_specialist
from poss_export.training.losses import feature_loss, token_loss
from poss_export.training.options import TrainOptions
from poss_export.training.presets import Stage
from poss_export.training.unroll import unroll

RATE = {"cpu": 1.0, "cuda": 2.0}  # times that of the stage: a GPU's large batches bear a higher one
FEATURE_NOISE = 0.1  # uniform half-width added to the target's features; their spread is near 2
WARMUP, FINAL_RATE = 0.02, 0.05  # share of a stage; share of its learning rate at the end
CLIP_NORM = 1.0
TOP = 10  # likeliest tokens of the target that the restricted token loss looks at (HASS)
SAVE_EVERY_SECONDS = 60.0


@dataclass
class RunState:
    """How far a run is; saved with the weights, so that a killed run goes on from there."""

    stage: int = 0
    step: int = 0  # optimiser steps of this stage
    row_steps: int = 0  # of this stage
    seconds: float = 0.0  # of this stage, over all sessions
    earlier_row_steps: int = 0  # of the stages before it
    earlier_seconds: float = 0.0


class Trainer:
    """Trains one drafter on one corpus: so many row-steps in all, or so many minutes."""

    def __init__(self, drafter: Drafter, corpus: Corpus, options: TrainOptions, work: Path) -> None:
        """Resume from `work` if a saved state is there."""
        self.drafter, self.corpus, self.stages = drafter.to(corpus.device), corpus, options.stages
        self.options, self.work = options, work
        self.state = RunState()
        self.optimizer = torch.optim.AdamW(
            drafter.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self._saved = time.monotonic()
        if self._state_file.exists():
            saved = torch.load(self._state_file, map_location=corpus.device, weights_only=True)
            self.state = RunState(**saved["state"])
            drafter.load_state_dict(saved["drafter"])
            self.optimizer.load_state_dict(saved["optimizer"])

    @property
    def _state_file(self) -> Path:
        return self.work / "state.pt"

    def run(self, report: Callable[[RunState, dict[str, Tensor]], None], saved: Callable[[], None]) -> None:
        """Train to the end of the last stage; `report` gets each step's losses, `saved` is told of saves."""
        while self.state.stage < len(self.stages):
            stage, mark = self.stages[self.state.stage], time.monotonic()
            for batch in self._batches():
                if self.stage_done >= 1:
                    break
                report(self.state, self._step(stage, batch))
                if time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
                    self.save()
                    saved()
                self.state.seconds += time.monotonic() - mark  # a device may still be at work on this step
                mark = time.monotonic()
            if stage.steps == 1:
                copy_first_specialist(self.drafter)  # as PosS starts
            state = self.state
            self.state = RunState(
                stage=state.stage + 1,
                earlier_row_steps=state.earlier_row_steps + state.row_steps,
                earlier_seconds=state.earlier_seconds + state.seconds,
            )
            self.optimizer.state.clear()
            self.save()

    @property
    def stage_done(self) -> float:
        """The share of the stage that is done; the last batch may go beyond it."""
        share = self.stages[self.state.stage].share
        if self.options.minutes is not None:
            return self.state.seconds / (share * 60 * self.options.minutes)
        return self.state.row_steps / (share * self.options.budget)

    @property
    def done(self) -> float:
        """The share of the run that is done, at most 1."""
        before = sum(stage.share for stage in self.stages[: self.state.stage])
        if self.state.stage == len(self.stages):
            return 1.0
        return min(1.0, before + self.stages[self.state.stage].share * self.stage_done)

    def save(self) -> None:
        """Write the run's state, whole or not at all."""
        weights = {"drafter": self.drafter.state_dict(), "optimizer": self.optimizer.state_dict()}
        with whole(self._state_file) as partial:
            torch.save({**weights, "state": asdict(self.state)}, partial)
        self._saved = time.monotonic()

    def _batches(self) -> Iterator[np.ndarray]:
        """Yield batches for ever, from where this stage stands; their order depends on the seed only."""
        training = np.flatnonzero(~self.corpus.dialogues.validation)
        tokens = BATCH_TOKENS[self.corpus.device.type]
        step, epoch = 0, 0
        while True:
            random = np.random.default_rng((self.options.seed, self.state.stage, epoch))
            batches = list(
                batches_by_length(self.corpus.dialogues.lengths, random.permutation(training), tokens)
            )
            for index in random.permutation(len(batches)):
                if step >= self.state.step:
                    yield batches[index]
                step += 1
            epoch += 1

    def _step(self, stage: Stage, indices: np.ndarray) -> dict[str, Tensor]:
        """One optimiser step on one batch, losses averaged over the unrolled steps."""
        corpus, state = self.corpus, self.state
        for group in self.optimizer.param_groups:
            group["lr"] = RATE[corpus.device.type] * stage.learning_rate * _schedule(self.stage_done)
        batch, outputs = corpus.load(indices)
        if not self.drafter.config.reads_taps:  # taps have no common spread
            batch = replace(batch, features=batch.features + FEATURE_NOISE * self._jitter(batch.features))
        top_ids, probabilities = corpus.targets(outputs)
        wanted = corpus.view.features[outputs]
        weights = stage.token_weight * probabilities.float()
        weights[:, :TOP] += stage.top_weight * probabilities[:, :TOP]
        token = feature = torch.zeros((), device=corpus.device)
        head = corpus.head_of(self.drafter)
        with corpus.autocast():
            for step, (predict, feedback) in enumerate(unroll(self.drafter, batch, stage.steps)):
                weight = stage.step_weights[step]
                token = token + weight * token_loss(predict, head, top_ids, weights)
                # What a mask row hands on is fed to nobody; states of drafters that read taps are their own.
                if (step == 0 or self.drafter.masks is None) and not self.drafter.config.reads_taps:
                    feature = feature + weight * feature_loss(feedback, wanted)
        loss = token + stage.feature_weight * feature
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), CLIP_NORM)
        self.optimizer.step()
        state.step += 1
        state.row_steps += len(outputs) * stage.steps
        nats = token.detach() / max(stage.token_weight + stage.top_weight, 1e-9)
        return {"token_loss": nats, "feature_loss": feature.detach()}

    def _jitter(self, like: Tensor) -> Tensor:
        """Return noise between -1 and 1 that depends on the seed and the step only."""
        key = np.random.SeedSequence((self.options.seed, self.state.stage, self.state.step))
        generator = torch.Generator(like.device).manual_seed(int(key.generate_state(1)[0]))
        return torch.empty_like(like).uniform_(-1, 1, generator=generator)

    def evaluate(self, steps: int, most: int | None = None) -> ChainAcceptance:
        """Return acceptance by depth on held-out dialogues, at most so many."""
        return count_chains(self.drafter, self.corpus, steps, most).acceptance()


def _schedule(done: float) -> float:
    """Return the learning-rate factor after a share `done` of the stage: linear warm-up, then cosine."""
    if done < WARMUP:
        return max(done, 1e-3) / WARMUP
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
