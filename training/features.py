"""What the target knows about its dialogues: features, and its likeliest next tokens.

Computed once, one teacher-forced pass over every dialogue, and kept in memory by the trainer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from poss_export.progress import Progress, silent
from poss_export.targets.decoder import Decoder, causal_attend
from poss_export.training.dialogues import Dialogues
from poss_export.training.hardware import rounded

BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}  # padding included, by device
ROWS = {"cpu": 256, "cuda": 4096}  # of logits at a time
TOP_TARGETS = 64  # of the target's next-token distribution; they keep about 98 % of the mass


@dataclass(frozen=True)
class TargetView:
    """Per token i of the dialogues, in their order.

    features: what the drafter reads, bfloat16 `[tokens, feature_size]`; top_ids: int32 `[tokens,
    TOP_TARGETS]`, the likeliest next tokens where token i is of an answer, else 0; top_probabilities:
    bfloat16, same shape.
    """

    features: Tensor
    top_ids: Tensor
    top_probabilities: Tensor

    @classmethod
    def joined(cls, views: "Sequence[TargetView]") -> "TargetView":
        """Return the view of the dialogues of several, one after the other."""
        return cls(*map(torch.cat, zip(*map(_tensors, views), strict=True)))

    def kept(self, tokens: Tensor) -> "TargetView":
        """Return the view of the tokens that are marked: bool `[tokens]`."""
        return TargetView(*(tensor[tokens] for tensor in _tensors(self)))

    def to(self, device: torch.device) -> "TargetView":
        """Return the view on a device."""
        return TargetView(*(tensor.to(device) for tensor in _tensors(self)))


def _tensors(view: TargetView) -> list[Tensor]:
    return list(vars(view).values())


def batches_by_length(lengths: np.ndarray, order: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yield indices of `lengths` whose padded batch holds at most `tokens` tokens (or one index alone).

    They are taken in `order`, sorted by length within windows, so that little is padding.
    """
    window = 256
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batch: list[int] = []
        for index in part:
            if batch and (len(batch) + 1) * lengths[index] > tokens:
                yield np.array(batch)
                batch = []
            batch.append(int(index))
        yield np.array(batch)


def padded(dialogues: Dialogues, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (flat token indices `[batch, seq]`, validity `[batch, seq]`) of right-padded dialogues."""
    lengths = torch.from_numpy(dialogues.lengths[batch])
    columns = torch.arange(rounded(int(lengths.max())))
    valid = columns < lengths[:, None]
    indices = torch.from_numpy(dialogues.offsets[batch])[:, None] + columns * valid
    return indices, valid


@torch.inference_mode()
def view_dialogues(
    decoder: Decoder,
    dialogues: Dialogues,
    taps: tuple[int, ...] = (),
    *,
    progress: Progress = silent,
) -> TargetView:
    """Run the target over all dialogues; return what it says of each token, and what enters layers `taps`."""
    count, config = len(dialogues.ids), decoder.config
    device, dtype = decoder.embed_tokens.device, decoder.embed_tokens.dtype
    top = min(TOP_TARGETS, config.vocab_size)
    view = TargetView(
        features=torch.empty(count, config.hidden_size * max(len(taps), 1), dtype=torch.bfloat16),
        top_ids=torch.zeros(count, top, dtype=torch.int32),
        top_probabilities=torch.zeros(count, top, dtype=torch.bfloat16),
    ).to(device)
    ids, answers = torch.from_numpy(dialogues.ids), torch.from_numpy(dialogues.answer_mask)
    done = 0
    for batch in batches_by_length(dialogues.lengths, np.arange(len(dialogues)), BATCH_TOKENS[device.type]):
        indices, valid = padded(dialogues, batch)
        attend = causal_attend(config, indices.shape[1], dtype, device)
        hidden, read = decoder.hidden_and_read(ids[indices].to(device), attend, taps)
        flat, answered = indices[valid].to(device), (valid & answers[indices]).to(device)
        view.features[flat] = read[valid.to(device)].bfloat16()
        split = (x[answered].split(ROWS[device.type]) for x in (indices.to(device), hidden))
        for rows, part in zip(*split, strict=True):
            probabilities, top_ids = decoder.head(part[None])[0].float().softmax(-1).topk(top)
            view.top_ids[rows] = top_ids.int()
            view.top_probabilities[rows] = probabilities.bfloat16()
        done += len(flat)
        progress("features", done, count, "tokens")
    return view
