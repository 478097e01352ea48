"""What training reads: dialogues, what the target knows about them, and the target's tables."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.drafters.model import Drafter
from poss_export.targets.decoder import Decoder
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import TargetView, padded
from poss_export.training.hardware import matmul_dtype
from poss_export.training.unroll import Batch

# Of a batch, padding included, by device. A GPU takes as long for few rows as for many: an H200 needs 28 ms
# for a step of HASS with 8,192 tokens, 32 with these, 35 with 32,768; so many let five drafters fill it.
BATCH_TOKENS = {"cpu": 768, "cuda": 16_384}


@dataclass(frozen=True)
class Corpus:
    """Everything that training reads: dialogues, the target's view of them, and the target's tables.

    embeddings: `[vocab, hidden]`, scaled; head: `[draft_vocab, hidden]`, for a drafter that has none of its
    own; draft_index: int64 `[vocab]`, a token's draft id, or -1 where the drafter cannot propose it. All of
    them are on `device`.
    """

    dialogues: Dialogues
    view: TargetView
    embeddings: Tensor
    head: Tensor
    draft_index: Tensor
    device: torch.device
    dtype: torch.dtype  # of matmuls: bfloat16 where the hardware multiplies it fast

    @classmethod
    def of(
        cls, decoder: Decoder, dialogues: Dialogues, view: TargetView, draft_ids: Tensor, spread: float
    ) -> "Corpus":
        """Return what a drafter of these draft ids reads; embeddings are divided by `spread`."""
        device, vocab_size = decoder.embed_tokens.device, decoder.config.vocab_size
        draft_index = torch.full((vocab_size,), -1)
        draft_index[draft_ids] = torch.arange(len(draft_ids))
        return cls(
            dialogues=dialogues,
            view=view.to(device),
            embeddings=decoder.embed_tokens.float() / spread,
            head=decoder.lm_head[draft_ids.to(device)],
            draft_index=draft_index.to(device),
            device=device,
            dtype=matmul_dtype(device),
        )

    def load(self, batch: np.ndarray) -> tuple[Batch, Tensor]:
        """Return a batch and the flat indices of tokens c + 1 for its scored rows c."""
        indices, valid = padded(self.dialogues, batch)
        answers = torch.from_numpy(self.dialogues.answer_mask)[indices] & valid
        following = F.pad(indices, (0, 1))[:, 1:]
        rows = F.pad(answers, (0, 2))[:, 2:]
        tokens = torch.from_numpy(self.dialogues.ids)[following]
        loaded = Batch(
            embeddings=F.embedding(tokens.to(self.device), self.embeddings),
            features=self.view.features[indices.to(self.device)].float(),
            rows=rows.to(self.device),
        )
        return loaded, following[rows].to(self.device)

    def targets(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return draft ids and probabilities of the target's likeliest next tokens after tokens `outputs`."""
        draft_ids = self.draft_index[self.view.top_ids[outputs].long()]
        probabilities = self.view.top_probabilities[outputs] * (draft_ids >= 0)
        return draft_ids.clamp(min=0), probabilities

    def head_of(self, drafter: Drafter) -> Tensor:
        """Return the LM head `[draft_vocab, hidden]` that a drafter's logits come from."""
        return self.head if drafter.head is None else drafter.head

    def autocast(self) -> torch.autocast:
        """Return the context in which matmuls take `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
