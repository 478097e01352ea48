"""Which dialect a checkpoint is taken for, and the one clear message for those that are not supported."""

from pathlib import Path
from typing import Any

import pytest

from poss_export.drafters.checkpoint import load_drafter, shipped_drafters
from poss_export.drafters.dialects import recognise
from poss_export.drafters.releases import read_release
from poss_export.errors import CheckpointError
from tests.fixtures.public_checkpoints import (
    TINY,
    Layout,
    Shapes,
    eagle,
    eagle3,
    fspad,
    griffin,
    parallelspec,
    poss,
    poss_e3,
    speculators,
    speculators_eagle3,
    vllm,
)

HIDDEN = TINY.hidden
TABLE: Shapes = {"embed_tokens.weight": TINY.table}
MASK: Shapes = {"mask_hidden": (1, 1, 3 * HIDDEN), **TABLE}


def shapes(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def norms(*names: str) -> Shapes:
    return {f"{name}.weight": (HIDDEN,) for name in names}


def with_(layout: Layout, tensors: Shapes | None = None, **config: Any) -> Layout:
    return Layout({**layout.config, **config}, {**layout.shapes, **(tensors or {})})


LANGUAGE_MODEL = Layout(
    TINY.config,
    shapes(
        TINY.layer("layers.0"), norms("layers.0.input_layernorm", "norm"), {"embed_tokens.weight": TINY.table}
    ),
)


@pytest.mark.parametrize(
    ("layout", "name", "reason"),
    [
        (speculators(), "speculators EAGLE", "config.json has speculators_model_type 'eagle'"),
        (vllm(), "vLLM EAGLE", "config.json has model_type 'eagle' and a model inside"),
        (parallelspec(), "ParallelSpec-style", "config.json has num_masks"),
        (fspad(), "FSPAD", "there is fc.fc.weight and fc.mlp.gate_proj.weight"),
        (griffin(), "GRIFFIN", "there is fc.fc.weight and fc.mlp.input_layernorm.weight"),
        (poss(), "PosS", "fc.weight reads 2 vectors, and none of its 3 layers has input_layernorm"),
        (eagle(), "EAGLE", "fc.weight reads 2 vectors, and there is one layer"),
        (eagle3(), "EAGLE-3", "config.json has draft_vocab_size"),
        (eagle3(vocab=False), "EAGLE-3", "tensors are named midlayer.*"),
        (eagle3("layers.0", vocab=False), "EAGLE-3", "fc.weight reads 3 vectors"),
        (
            eagle3(
                "layers.0",
                vocab=False,
                read=3 * 48,
                extra={"embed_tokens.weight": TINY.table},
                target_hidden_size=48,
            ),
            "EAGLE-3",
            "fc.weight reads 3 vectors",
        ),
        (
            eagle3("layers.0", vocab=False, read=HIDDEN, eagle_aux_hidden_state_layer_ids=[4]),
            "EAGLE-3",
            "config.json has architecture 'LlamaForCausalLMEagle3'",
        ),
        (speculators_eagle3(), "speculators EAGLE-3", "config.json has speculators_model_type 'eagle3'"),
        (
            speculators_eagle3("peagle", extra=MASK, mask_token_id=1),
            "speculators P-EAGLE",
            "config.json has speculators_model_type 'peagle'",
        ),
        (
            Layout({"model_type": "eagle", "model": eagle3().config}, eagle3().shapes),
            "vLLM EAGLE-3",
            "config.json has model_type 'eagle' and a model inside, and there is midlayer.hidden_norm.weight",
        ),
        (
            eagle3("layers.0", eagle_config={}),
            "Model-Optimizer EAGLE-3",
            "config.json has eagle_config, and there is layers.0.hidden_norm.weight",
        ),
        (eagle3("layers.0", layers=4, extra=MASK, ptd_token_id=1), "P-EAGLE", "there is mask_hidden"),
        (
            eagle3(extra=MASK, parallel_drafting=True, dflash_config={"mask_token_id": 1}),
            "P-EAGLE",
            "config.json has parallel_drafting",
        ),
        (poss_e3(), "PosS-E3", "each of its 3 layers has hidden_norm and reads two vectors"),
        (poss_e3("midlayers"), "PosS-E3", "each of its 3 layers has hidden_norm and reads two vectors"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_supported_dialects(layout: Layout, name: str, reason: str) -> None:
    release = read_release(Path("drafter"), layout.config, layout.meta(), 3 if "PosS" in name else None)
    assert (release.dialect.name, release.dialect.reason, release.dialect.refusal) == (name, reason, None)


@pytest.mark.parametrize("name", shipped_drafters())
def test_shipped_drafters_are_in_our_own_format(name: str) -> None:
    dialect = load_drafter(name).dialect
    assert (dialect.name, dialect.reason) == ("poss-export", "config.json has positions_per_specialist")


REFUSED = {
    "speculators with norms": (
        with_(speculators(), layernorms=True),
        r"speculators EAGLE with extra norms \(config.json has layernorms: true\)",
    ),
    "speculators with norms, says the file": (
        with_(speculators(), norms("embedding_layernorm")),
        r"speculators EAGLE with extra norms \(there is embedding_layernorm.weight\)",
    ),
    "speculators, of another kind": (
        speculators_eagle3("mtp"),
        "another speculators drafter .config.json has speculators_model_type 'mtp'.",
    ),
    "EAGLE-4": (
        eagle3(architectures=["LlamaForCausalLMEagle4"]),
        r"EAGLE-4 \(config.json has architecture 'LlamaForCausalLMEagle4'\)",
    ),
    "DFlash": (
        with_(LANGUAGE_MODEL, dflash_config={"mask_token_id": 5}),
        r"DFlash \(config.json has dflash_config\)",
    ),
    "DSpark": (
        with_(LANGUAGE_MODEL, architectures=["DSparkDraftModel"]),
        r"DSpark \(config.json has architecture 'DSparkDraftModel'\)",
    ),
    "DSpark, by its rank": (
        with_(LANGUAGE_MODEL, markov_rank=256, dflash_config={}),
        r"DSpark \(config.json has markov_rank\)",
    ),
    "Domino": (
        with_(LANGUAGE_MODEL, dflash_config={"projector_type": "domino"}),
        r"Domino \(config.json has projector_type 'domino'\)",
    ),
    "JetSpec": (
        with_(LANGUAGE_MODEL, architectures=["JetSpecDraftModel"], dflash_config={}),
        r"JetSpec \(config.json has architecture 'JetSpecDraftModel'\)",
    ),
    "EAGLE of several layers": (
        with_(poss(), norms("layers.1.input_layernorm", "layers.2.input_layernorm")),
        r"EAGLE of several layers \(of its 3 layers, some have input_layernorm\)",
    ),
    "PARD": (
        with_(LANGUAGE_MODEL, pard_token=47),
        r"PARD \(config.json has pard_token, and the tensors are a whole language model's\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_recognised_and_refused(name: str) -> None:
    layout, reason = REFUSED[name]
    with pytest.raises(
        CheckpointError, match=f"^drafter: this drafter is {reason}, which is not supported: .+"
    ):
        read_release(Path("drafter"), layout.config, layout.meta())


def test_what_nobody_knows_is_listed() -> None:
    layout = Layout({"model_type": "medusa", "medusa_num_heads": 4}, {"0.0.linear.weight": (2, 2)})
    message = (
        "^drafter: not a drafter of a known dialect; its config.json has medusa_num_heads, model_type; its "
        r"tensors are \*\.\*\.linear\.weight; docs/checkpoints\.md lists what is known$"
    )
    with pytest.raises(CheckpointError, match=message):
        read_release(Path("drafter"), layout.config, layout.meta())


def test_a_target_is_no_drafter() -> None:
    assert recognise(LANGUAGE_MODEL.config, LANGUAGE_MODEL.meta()) is None
