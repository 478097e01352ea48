"""What is stored of the target: its tokens are its own, also behind stored taps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import view_dialogues

LENGTHS = (9, 14)


def test_stored_taps_lead_to_the_targets_own_tokens(tiny_folder: Callable[[str], Path]) -> None:
    decoder = open_target(str(tiny_folder("llama"))).load_decoder()
    random = np.random.default_rng(0)
    pairs = [(random.integers(3, 90, 4).tolist(), random.integers(3, 90, n - 4).tolist()) for n in LENGTHS]
    dialogues = Dialogues.from_answers(pairs, holdout=0.5)
    plain, tapped = view_dialogues(decoder, dialogues), view_dialogues(decoder, dialogues, (0, 1))
    assert torch.equal(tapped.top_ids, plain.top_ids)
    assert torch.equal(tapped.top_probabilities, plain.top_probabilities)
    hidden = decoder.config.hidden_size
    assert tapped.features.shape == (sum(LENGTHS), 2 * hidden)
    ids = torch.from_numpy(dialogues.ids)
    with torch.inference_mode():
        torch.testing.assert_close(tapped.features[:, :hidden], decoder.embed_tokens[ids].bfloat16())
        for start, end in zip(dialogues.offsets, dialogues.offsets[1:], strict=False):
            attend = causal_attend(decoder.config, end - start, torch.float32)
            last = decoder.layers[1](tapped.features[None, start:end, hidden:].float(), 1, attend)
            likeliest = decoder.head(decoder.norm(last))[0].argmax(-1)
            said, answers = tapped.top_ids[start:end, 0], torch.from_numpy(dialogues.answer_mask[start:end])
            assert (likeliest == said)[answers].float().mean() > 0.85  # taps are rounded
            assert not said[~answers].any()  # nobody predicts what users say
