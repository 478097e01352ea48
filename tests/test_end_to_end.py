"""What `make demo` does, on the real thing: the embedded target with the shipped drafter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from poss_export.cli.main import main
from poss_export.evaluation.laws import append
from poss_export.runtime.bundle import open_bundle
from poss_export.targets.checkpoint import EMBEDDED_TARGET, open_target

DRAFTER = "poss-2"
PROMPTS = ["What is the capital of France?", "Explain why bread rises."]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    run("build", EMBEDDED_TARGET, "--drafter", DRAFTER, "-o", folder, "--capacity", 256)
    return folder


def test_the_embedded_model_speculates_losslessly(bundle: Path) -> None:
    def answers(*options: str) -> list[dict[str, Any]]:
        lines = run("generate", bundle, *PROMPTS, "--max-new-tokens", 40, "--json", *options).splitlines()
        return [json.loads(line) for line in lines]

    ours, plain = answers(), answers("--target-only")
    assert [answer["token_ids"] for answer in ours] == [answer["token_ids"] for answer in plain]
    assert "Paris" in ours[0]["text"]
    assert sum(answer["rounds"] for answer in ours) < 0.75 * sum(answer["rounds"] for answer in plain)
    assert run("inspect", bundle).startswith("bundle: bundle of smollm2-135m, drafter poss-2")


def test_its_target_equals_transformers(bundle: Path) -> None:
    """Which reads the GGUF file by itself."""
    target = open_target(EMBEDDED_TARGET)
    ids = target.text.encode_chat([{"role": "user", "content": "Why is the sky blue?"}])
    with open_bundle(bundle) as opened:
        parts = [append(opened.target, np.array(part)) for part in (ids[:20], ids[20:-1], ids[-1:])]

    # What from_pretrained(gguf_file=...) does, without the package it needs to spread weights over devices.
    (file,) = target.weight_files
    auto: Any = AutoModelForCausalLM  # its methods are half annotated
    reference = auto.from_config(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
    load: Any = load_gguf_checkpoint
    weights = load(str(file), return_tensors=True, model_to_load=reference)["tensors"]
    assert reference.eval().load_state_dict(weights, strict=False).missing_keys == ["lm_head.weight"]  # tied
    with torch.no_grad():
        expected = reference(torch.tensor([ids]), output_hidden_states=True)
    for name, theirs in (("logits", expected.logits), ("features", expected.hidden_states[-1])):
        ours, theirs = np.concatenate([getattr(part, name) for part in parts]), theirs[0].numpy()
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
