"""EAGLE-3's releases, in each project's layout, draft what a plain restatement says of their tensors."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from poss_export.config import RopeConfig, TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.errors import CheckpointError, InputError
from tests.fixtures.draft_rounds import CAPACITY, ONE_BATCH, check_rounds
from tests.fixtures.public_checkpoints import (
    DRAFT_IDS,
    TINY,
    Layout,
    Shapes,
    eagle3,
    poss_e3,
    speculators_eagle3,
    write,
)
from tests.fixtures.reference_eagle3 import Eagle3Reference

TREE = TreeShape(4, 3, 10)
HIDDEN = TINY.hidden
TABLE: Shapes = {"embed_tokens.weight": TINY.table}
FC_NORM: Shapes = {f"fc_norm.{i}.weight": (HIDDEN,) for i in range(3)}
HEAD_NORMS: Shapes = {f"layers.0.self_attn.{x}_norm.weight": (HIDDEN // TINY.heads,) for x in "qk"}


def random(seed: int) -> Tensor:
    return torch.randn(TINY.table, generator=torch.Generator().manual_seed(seed)) * 0.3


EMBED, HEAD = random(1), random(2)  # the target's


def without(layout: Layout, *names: str) -> Layout:
    return Layout(layout.config, {name: shape for name, shape in layout.shapes.items() if name not in names})


def vllm(layout: Layout) -> Layout:
    return Layout({"model_type": "eagle", "method": "eagle3", "model": layout.config}, layout.shapes)


# Layout, and what is special about it: of the reference, and the table that is the drafter's own.
RELEASES: dict[str, tuple[Layout, dict[str, Any]]] = {
    "EAGLE-3": (eagle3(), {"layers": ["midlayer"]}),
    "EAGLE-3, as AngelSlim keeps it": (eagle3(extra=TABLE), {"layers": ["midlayer"]}),
    "EAGLE-3, of a whole vocabulary": (eagle3(vocab=False), {"layers": ["midlayer"]}),
    "EAGLE-3, of SpecForge": (
        eagle3(target_hidden_size=HIDDEN, eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 5, 9]}),
        {"layers": ["midlayer"]},
    ),
    "EAGLE-3, with a table that its code reads": (
        eagle3(extra=TABLE, target_hidden_size=HIDDEN),
        {"layers": ["midlayer"], "own": True},
    ),
    "EAGLE-3, of a wider target": (
        eagle3(read=3 * 48, extra=TABLE, target_hidden_size=48),
        {"layers": ["midlayer"], "own": True, "feature_size": 144},
    ),
    "speculators EAGLE-3": (speculators_eagle3(), {}),
    "speculators EAGLE-3, first norm": (
        speculators_eagle3(norm_before_residual=True),
        {"norm_before_residual": True},
    ),
    "speculators EAGLE-3, 3.1": (
        speculators_eagle3(
            extra=FC_NORM, fc_norm=True, norm_output=True, eagle_aux_hidden_state_layer_ids=[2, 6, 8]
        ),
        {"feed_back_normed": True},
    ),
    "speculators EAGLE-3, joint norm": (
        speculators_eagle3(extra={"input_norm.weight": (3 * HIDDEN,)}, norm_before_fc=True),
        {},
    ),
    "speculators EAGLE-3, of Qwen3, own table": (
        speculators_eagle3(extra=HEAD_NORMS, embed_requires_grad=True),
        {"own": True},
    ),
    "speculators EAGLE-3, two layers": (speculators_eagle3(layers=2), {"layers": ["layers.0", "layers.1"]}),
    "vLLM EAGLE-3": (vllm(eagle3()), {"layers": ["midlayer"]}),
    "Model-Optimizer EAGLE-3": (without(eagle3("layers.0", eagle_config={}), "t2d"), {}),
    "Model-Optimizer EAGLE-3, the target's head": (
        without(eagle3("layers.0", vocab=False, eagle_config={}), "lm_head.weight"),
        {},
    ),
    "speculators P-EAGLE": (
        speculators_eagle3("peagle", layers=2, extra={"mask_hidden": (1, 1, 3 * HIDDEN)}, mask_token_id=7),
        {"layers": ["layers.0", "layers.1"], "own": True, "drafting": "parallel", "mask": 7},
    ),
    "P-EAGLE": (
        eagle3(
            "layers.0",
            layers=3,
            extra={"mask_hidden": (1, 3 * HIDDEN), **TABLE},
            pard_token=9,
            norm_before_residual=True,
        ),
        {
            "layers": ["layers.0", "layers.1", "layers.2"],
            "norm_before_residual": True,
            "own": True,
            "drafting": "parallel",
            "mask": 9,
        },
    ),
    "PosS-E3": (poss_e3(), {"layers": ["layers.0", "layers.1", "layers.2"], "positions": 2}),
    "PosS-E3, of older revisions": (
        poss_e3("midlayers"),
        {"layers": ["midlayers.0", "midlayers.1", "midlayers.2"], "positions": 1},
    ),
}


def load(folder: Path, layout: Layout, tensors: dict[str, Tensor], **options: Any) -> DrafterCheckpoint:
    return load_drafter(str(write(folder, layout.config, tensors)), **options)


def drafted(checkpoint: DrafterCheckpoint) -> Callable[..., Any]:
    ids = checkpoint.drafter.draft_ids
    draft_round = make_round(checkpoint.drafter, TREE, EMBED[ids], HEAD[ids])
    graph = DraftGraph(draft_round, "shared", CAPACITY)
    return lambda *inputs: [t.detach().numpy() for t in graph(*(torch.from_numpy(x) for x in inputs))]


def reference(layout: Layout, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Eagle3Reference:
    facts = {"layers": ["layers.0"], **facts}
    config = SimpleNamespace(
        hidden_size=HIDDEN,
        feature_size=facts.pop("feature_size", 3 * HIDDEN),
        num_heads=TINY.heads,
        num_kv_heads=TINY.kv_heads,
        head_dim=HIDDEN // TINY.heads,
        rms_norm_eps=1e-5,
        rope=RopeConfig(500.0),
        drafting=facts.pop("drafting", "tree"),
        num_caches=lambda depth: 1 if facts.get("positions") else len(facts["layers"]),
    )
    if (mask := facts.pop("mask", None)) is not None:
        tensors = {**tensors, "mask_embed.weight": tensors["embed_tokens.weight"][mask : mask + 1]}
    facts.pop("own", None)
    ids = torch.tensor(DRAFT_IDS) if "d2t" in layout.shapes else torch.arange(TINY.vocab)
    return Eagle3Reference(tensors, config, ids, **facts)


def check(folder: Path, layout: Layout, facts: dict[str, Any]) -> DrafterCheckpoint:
    tensors = layout.random()
    own = facts.get("own", False)
    options = {"positions_per_specialist": facts["positions"]} if "positions" in facts else {}
    checkpoint = load(folder, layout, tensors, **options)
    plain = reference(layout, tensors, facts)
    table = tensors["embed_tokens.weight"] if own else EMBED
    head = tensors.get("lm_head.weight", HEAD[plain.draft_ids])
    check_rounds(
        drafted(checkpoint),
        plain,
        TREE,
        table[plain.draft_ids],
        head,
        ONE_BATCH[:4],
        table=table if own else None,
    )
    return checkpoint


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_drafts_as_its_method_says(name: str, tmp_path: Path) -> None:
    layout, facts = RELEASES[name]
    checkpoint = check(tmp_path / "drafter", layout, facts)
    assert checkpoint.dialect.name == name.partition(",")[0]
    assert ("embed_tokens.weight" in checkpoint.copies) == (
        "embed_tokens.weight" in layout.shapes and "own" not in facts
    )


def scores(folder: Path, layout: Layout, **facts: Any) -> np.ndarray:
    checkpoint = load(folder, Layout({**layout.config, **facts}, layout.shapes), layout.random())
    random = torch.Generator().manual_seed(3)
    rows = [torch.randn(1, 9, n, generator=random).numpy() for n in (HIDDEN, 3 * HIDDEN)]
    caches = [np.zeros((1, TINY.kv_heads, CAPACITY, 8), np.float32) for _ in range(2)]
    noise = np.zeros((1, TREE.depth, checkpoint.drafter.config.draft_vocab_size), np.float32)
    found: np.ndarray = drafted(checkpoint)(*rows, np.array([9]), np.array([0]), noise, *caches)[2]
    return found


@pytest.mark.parametrize(
    ("layout", "facts"),
    [
        (speculators_eagle3(), {"norm_before_residual": True}),
        (speculators_eagle3(), {"norm_output": True}),
        (eagle3(), {"rms_norm_eps": 1e-2}),
        (eagle3(), {"rope_theta": 50.0}),
    ],
)
def test_a_flag_that_is_changed_shows(layout: Layout, facts: dict[str, Any], tmp_path: Path) -> None:
    """They change no shape, so that only what is drafted tells."""
    right, changed = scores(tmp_path / "right", layout), scores(tmp_path / "changed", layout, **facts)
    assert np.abs(right - changed).max() > 1e-3


def test_d2t_in_any_order_takes_the_head_along(tmp_path: Path) -> None:
    layout = eagle3()
    tensors = layout.random()
    order = torch.randperm(len(DRAFT_IDS), generator=torch.Generator().manual_seed(0))
    shuffled = {**tensors, "lm_head.weight": tensors["lm_head.weight"][order]}
    shuffled["d2t"] = torch.tensor(DRAFT_IDS)[order] - torch.arange(len(order))
    one, two = (
        load(tmp_path / "one", layout, tensors).drafter,
        load(tmp_path / "two", layout, shuffled).drafter,
    )
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            eagle3(eagle_aux_hidden_state_layer_ids=[1, 2]),
            r"fc.weight reads 96 values, but layers \[1, 2\] of a target of hidden size 32 give 64",
        ),
        (eagle3(read=2 * HIDDEN), "fc.weight reads 64 values, but the usual 3 layers of a target"),
        (
            eagle3(eagle_aux_hidden_state_layer_ids=[5, 2, 7]),
            r"taps are \[5, 2, 7\]; expected ascending layers",
        ),
        (eagle3(eagle_aux_hidden_state_layer_ids="all"), "is 'all'; expected a list of layers"),
        (eagle3(target_hidden_size=16, read=48), "missing: embed_tokens.weight"),
        (eagle3(norm_output=False), "norm_output is false"),
        (speculators_eagle3(norm_before_fc=True), "missing: input_norm.weight"),
        (speculators_eagle3(fc_norm=True), r"missing: fc_norm.0.weight, fc_norm.1.weight, fc_norm.2.weight"),
        (
            speculators_eagle3(extra={**FC_NORM, "input_norm.weight": (3 * HIDDEN,)}),
            "unknown: input_norm.weight",
        ),
        (eagle3(logit_scale=0.5), "logit_scale is 0.5; this version knows 1.0 only"),
        (without(eagle3(), "d2t", "t2d"), "missing: d2t"),
        (
            speculators_eagle3("peagle", extra={"mask_hidden": (1, 1, 3 * HIDDEN)}),
            "mask_token_id, the token that mask rows stand for, is None; expected one of 48 tokens",
        ),
        (speculators_eagle3("peagle", mask_token_id=7), "missing: mask_hidden"),
    ],
)
def test_what_cannot_be(layout: Layout, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "drafter", layout, layout.random())


def test_positions_of_poss_e3(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is PosS with 3 specialists, its files do not say how many"):
        load(tmp_path / "mine", poss_e3(), poss_e3().random())
    config = load(tmp_path / "PosS3-E3-Llama3.1-8B-Instruct", poss_e3(), poss_e3().random()).drafter.config
    assert (config.num_specialists, config.positions_per_specialist) == (3, 3)
