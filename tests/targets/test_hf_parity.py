"""The decoder computes what transformers computes, for every supported architecture."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend

ARCHITECTURES = (
    *("llama", "llama3", "biased", "mistral", "qwen2", "qwen3"),
    *("windows", "phi4", "granite", "gemma", "gemma2", "gemma3", "mixtral", "qwen3_moe"),
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoder_equals_transformers(tiny_folder: Callable[[str], Path], name: str) -> None:
    ids = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))
    decoder = open_target(str(tiny_folder(name))).load_decoder()
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(name), dtype=torch.float32)
    with torch.no_grad():
        expected = reference(ids, output_hidden_states=True)
        features = decoder.hidden(ids, causal_attend(decoder.config, ids.shape[1], torch.float32))
        torch.testing.assert_close(features, expected.hidden_states[-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(decoder.head(features), expected.logits, rtol=1e-4, atol=1e-4)
