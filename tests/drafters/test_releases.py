"""Public checkpoints draft what their methods say, computed here from their own tensors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from poss_export.config import RopeConfig, TreeShape
from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.exporters.drafter import export_drafter
from tests.fixtures.draft_rounds import CAPACITY, ONE_BATCH, check_rounds
from tests.fixtures.public_checkpoints import (
    TINY,
    Layout,
    eagle,
    fspad,
    griffin,
    parallelspec,
    poss,
    speculators,
    vllm,
    write,
)
from tests.fixtures.reference_release import ReleasedDrafter, eagle_fusion, fspad_fusion, griffin_fusion

TREE = TreeShape(5, 3, 12)
ONE_LAYER = ["layers.0"]


def table(seed: int) -> Tensor:
    return torch.randn(TINY.table, generator=torch.Generator().manual_seed(seed)) * 0.3


EMBED, HEAD = table(1), table(2)


def loaded(folder: Path, layout: Layout, form: str = "safetensors", **options: Any) -> DrafterCheckpoint:
    write(folder, layout.config, layout.random(), form)
    return load_drafter(str(folder), **options)


def drafted(checkpoint: DrafterCheckpoint) -> Callable[..., Any]:
    graph = DraftGraph(make_round(checkpoint.drafter, TREE, EMBED, HEAD), "shared", CAPACITY)
    return lambda *inputs: [t.numpy() for t in graph(*(torch.from_numpy(x) for x in inputs))]


def exported(checkpoint: DrafterCheckpoint, path: Path) -> Callable[..., Any]:
    draft_round = make_round(checkpoint.drafter, TREE, EMBED, HEAD)
    export_drafter(draft_round, path, cache_form="shared", precision="fp32", capacity=CAPACITY)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def check(run: Callable[..., Any], reference: Any, rounds: int = 7) -> None:
    check_rounds(run, reference, TREE, EMBED, HEAD, ONE_BATCH[:rounds])


RELEASES = {
    "EAGLE": (eagle(), eagle_fusion, ONE_LAYER),
    "EAGLE without a bias": (eagle(bias=False), eagle_fusion, ONE_LAYER),
    "EAGLE with biases of q, k and v": (eagle(qkv_bias=True), eagle_fusion, ONE_LAYER),
    "vLLM": (vllm(), eagle_fusion, ONE_LAYER),
    "vLLM without a bias": (vllm(bias=False), eagle_fusion, ONE_LAYER),
    "speculators": (speculators(), partial(eagle_fusion, name="fusion_fc"), ["transformer"]),
    "speculators with a bias": (
        speculators(bias=True),
        partial(eagle_fusion, name="fusion_fc"),
        ["transformer"],
    ),
    "FSPAD": (fspad(), fspad_fusion, ONE_LAYER),
    "GRIFFIN": (griffin(), griffin_fusion, ONE_LAYER),
}


@pytest.mark.parametrize("form", ["safetensors", "bin-shards"])
@pytest.mark.parametrize("name", RELEASES)
def test_a_release_drafts_as_its_method_says(name: str, form: str, tmp_path: Path) -> None:
    layout, fusion, prefixes = RELEASES[name]
    checkpoint = loaded(tmp_path / "drafter", layout, form)
    assert name.startswith(checkpoint.dialect.name.split()[0])
    check(drafted(checkpoint), ReleasedDrafter(layout.random(), fusion, prefixes))


# Five positions: with three specialists of one, the last one goes on.
@pytest.mark.parametrize("positions", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_poss(bias: bool, positions: int, tmp_path: Path) -> None:
    layout = poss(bias=bias)
    checkpoint = loaded(tmp_path / "drafter", layout, "bin", positions_per_specialist=positions)
    prefixes = ["layers.0", "layers.1", "layers.2"]
    check(drafted(checkpoint), ReleasedDrafter(layout.random(), eagle_fusion, prefixes, positions=positions))


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"shared": True},
        {"feature": "repeat_last"},
        {"feature": "zeros"},
        {"feature": "none", "layers": 2},
    ],
)
def test_parallelspec_style(choices: dict[str, Any], tmp_path: Path) -> None:
    layout = parallelspec(**choices)
    checkpoint = loaded(tmp_path / "drafter", layout, "safetensors-shards")
    prefixes = [f"layers.{i}" for i in range(choices.get("layers", 1))]
    masks = {name: layout.config[name] for name in ("shared_mask", "mask_feature")}
    check(drafted(checkpoint), ReleasedDrafter(layout.random(), eagle_fusion, prefixes, masks=masks))


def test_the_exported_graph_of_fspad(tmp_path: Path) -> None:
    run = exported(loaded(tmp_path / "drafter", fspad()), tmp_path / "draft.onnx")
    check(run, ReleasedDrafter(fspad().random(), fspad_fusion, ONE_LAYER))


def test_the_exported_graph_of_poss(tmp_path: Path) -> None:
    layout = poss()
    checkpoint = loaded(tmp_path / "drafter", layout, positions_per_specialist=2)
    prefixes = ["layers.0", "layers.1", "layers.2"]
    run = exported(checkpoint, tmp_path / "draft.onnx")
    check(run, ReleasedDrafter(layout.random(), eagle_fusion, prefixes, positions=2))


@pytest.mark.parametrize("layout", [fspad(), griffin()], ids=["FSPAD", "GRIFFIN"])
def test_predict_and_regress_are_not_each_other(layout: Layout, tmp_path: Path) -> None:
    """Swapped halves load without an error: only the drafted scores tell."""
    tensors, name = layout.random(), "layers.0.mlp.down_proj.weight"
    swapped = {**tensors, name: tensors[name].roll(TINY.hidden, 0)}
    results = []
    for folder, weights in ((tmp_path / "right", tensors), (tmp_path / "swapped", swapped)):
        run = drafted(load_drafter(str(write(folder, layout.config, weights))))
        rows = torch.randn(2, 1, 9, TINY.hidden, generator=torch.Generator().manual_seed(3)).numpy()
        caches = [np.zeros((1, TINY.kv_heads, CAPACITY, 8), np.float32) for _ in range(2)]
        noise = np.zeros((1, TREE.depth, len(HEAD)), np.float32)
        results.append(run(*rows, np.array([9]), np.array([0]), noise, *caches)[2])
    assert np.abs(results[0] - results[1]).max() > 0.1


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    layout = eagle()
    tensors = layout.random(torch.float16)
    checkpoint = load_drafter(str(write(tmp_path / "drafter", layout.config, tensors)))
    assert {weight.dtype for weight in checkpoint.drafter.parameters()} == {torch.float32}
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    check(drafted(checkpoint), ReleasedDrafter(weights, eagle_fusion, ONE_LAYER))


def test_names_behind_model_are_the_same(tmp_path: Path) -> None:
    layout = eagle()
    tensors = {f"model.{name}": tensor for name, tensor in layout.random().items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old files have it
    checkpoint = load_drafter(str(write(tmp_path / "drafter", layout.config, tensors)))
    check(drafted(checkpoint), ReleasedDrafter(layout.random(), eagle_fusion, ONE_LAYER))


@pytest.mark.parametrize(
    ("facts", "rope"),
    [
        ({"rope_theta": None}, RopeConfig(10000.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, RopeConfig(500.0, "linear", 4.0)),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, RopeConfig(500.0)),
    ],
)
def test_the_drafters_own_rotary_embedding(facts: dict[str, Any], rope: RopeConfig, tmp_path: Path) -> None:
    layout = eagle()
    folder = write(tmp_path / "drafter", {**layout.config, **facts}, layout.random())
    check(
        drafted(load_drafter(str(folder))),
        ReleasedDrafter(layout.random(), eagle_fusion, ONE_LAYER, rope=rope),
    )


def test_d2t_names_the_words_in_any_order(tmp_path: Path) -> None:
    layout = parallelspec()
    ids = torch.tensor([30, 3, 9, 4, 40])
    mask = torch.zeros(TINY.vocab, dtype=torch.bool)
    mask[ids] = True
    tensors = {**layout.random(), "d2t": ids - torch.arange(5), "t2d": mask}
    checkpoint = load_drafter(str(write(tmp_path / "drafter", layout.config, tensors)))
    assert checkpoint.drafter.draft_ids.tolist() == [3, 4, 9, 30, 40]
    assert checkpoint.drafter.config.draft_vocab_size == 5


def test_what_config_and_tensors_say_together(tmp_path: Path) -> None:
    """Widths, biases and layers are the tensors'; heads and the rest are the configuration's."""
    layout = eagle(bias=True)
    wrong = {"hidden_size": 64, "intermediate_size": 99, "bias": False, "qkv_bias": True, "head_dim": 8}
    folder = write(tmp_path / "drafter", {**layout.config, **wrong}, layout.random())
    assert load_drafter(str(folder)).drafter.config == DrafterConfig(
        hidden_size=32,
        intermediate_size=40,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        vocab_size=48,
        draft_vocab_size=48,
        rope=RopeConfig(500.0),
        fusion_bias=True,
    )
