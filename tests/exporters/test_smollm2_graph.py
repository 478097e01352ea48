"""The embedded target, exported: ONNX Runtime against transformers, which reads the GGUF file by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from poss_export.exporters.target import export_target
from poss_export.targets.checkpoint import EMBEDDED_TARGET, open_target


@pytest.mark.slow
def test_smollm2_graph_equals_transformers(tmp_path: Path, cached_target: Any) -> None:
    target = open_target(EMBEDDED_TARGET)
    (file,) = target.weight_files
    export_target(
        target.load_decoder(), tmp_path / "t.onnx", cache_form="shared", precision="fp32", capacity=48
    )
    graph = cached_target(tmp_path / "t.onnx")
    ids = target.text.encode_chat([{"role": "user", "content": "Why is the sky blue?"}])
    parts = [graph(part) for part in (ids[:20], ids[20:-1], ids[-1:])]

    # What from_pretrained(gguf_file=...) does, without the package it needs to spread weights over devices.
    auto: Any = AutoModelForCausalLM  # its methods are half annotated
    reference = auto.from_config(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
    load: Any = load_gguf_checkpoint
    weights = load(str(file), return_tensors=True, model_to_load=reference)["tensors"]
    assert reference.eval().load_state_dict(weights, strict=False).missing_keys == ["lm_head.weight"]  # tied
    with torch.no_grad():
        expected = reference(torch.tensor([ids]), output_hidden_states=True)
    for name, theirs in (("logits", expected.logits), ("features", expected.hidden_states[-1])):
        ours, theirs = np.concatenate([part[name] for part in parts], axis=1), theirs.numpy()
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
