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
    fspad,
    griffin,
    parallelspec,
    poss,
    speculators,
    vllm,
)

HIDDEN, VOCAB = TINY.hidden, TINY.vocab


def shapes(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def norms(*names: str) -> Shapes:
    return {f"{name}.weight": (HIDDEN,) for name in names}


def eagle3(layer: str = "midlayer", **config: Any) -> Layout:
    """EAGLE-3 as released, with a draft vocabulary of 20."""
    tensors = shapes(
        TINY.fc(bias=False, reads=3),
        TINY.layer(layer, reads=2),
        norms(f"{layer}.hidden_norm", f"{layer}.input_layernorm", "norm"),
        {"lm_head.weight": (20, HIDDEN), "d2t": (20,), "t2d": (VOCAB,)},
    )
    return Layout({**TINY.config, **config}, tensors)


def deep(prefix: str, count: int, *extra: str) -> Layout:
    """`count` layers with an input norm and the norms `extra`, behind an fc that reads three vectors."""
    layers = [TINY.layer(f"{prefix}.{i}", reads=2) for i in range(count)]
    names = [f"{prefix}.{i}.{name}" for i in range(count) for name in ("input_layernorm", *extra)]
    return Layout(TINY.config, shapes(TINY.fc(bias=False, reads=3), *layers, norms(*names, "norm")))


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
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_supported_dialects(layout: Layout, name: str, reason: str) -> None:
    release = read_release(Path("drafter"), layout.config, layout.meta(), 3 if name == "PosS" else None)
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
    "speculators eagle3": (
        eagle3("layers.0", speculators_model_type="eagle3"),
        "another speculators drafter .config.json has speculators_model_type 'eagle3'.",
    ),
    "speculators peagle": (
        with_(eagle3("layers.0", speculators_model_type="peagle"), {"mask_hidden": (1, 3 * HIDDEN)}),
        "another speculators drafter .config.json has speculators_model_type 'peagle'.",
    ),
    "DFlash": (
        with_(eagle3(), dflash_config={"mask_token_id": 5}),
        r"DFlash \(config.json has dflash_config\)",
    ),
    "DSpark": (
        with_(LANGUAGE_MODEL, architectures=["DSparkDraftModel"]),
        r"DFlash \(config.json has architecture 'DSparkDraftModel'\)",
    ),
    "P-EAGLE": (
        with_(deep("layers", 4), {"mask_hidden": (1, 1, 3 * HIDDEN)}),
        r"P-EAGLE \(there is mask_hidden\)",
    ),
    "P-EAGLE, says the architecture": (
        with_(deep("layers", 4), architectures=["PEagleDraftModel"]),
        r"P-EAGLE \(config.json has architecture 'PEagleDraftModel'\)",
    ),
    "P-EAGLE, says a flag": (
        with_(eagle3(), parallel_drafting=True),
        r"P-EAGLE \(config.json has parallel_drafting\)",
    ),
    "PosS-E3": (
        deep("layers", 3, "hidden_norm"),
        r"PosS-E3 \(each of its 3 layers has hidden_norm and reads two vectors\)",
    ),
    "PosS-E3 of older revisions": (
        deep("midlayers", 3, "hidden_norm"),
        r"PosS-E3 \(each of its 3 layers has hidden_norm and reads two vectors\)",
    ),
    "Model-Optimizer": (
        with_(eagle3("layers.0"), eagle_config={}, draft_vocab_size=20),
        r"Model-Optimizer EAGLE-3 \(config.json has eagle_config, and there is layers.0.hidden_norm.weight\)",
    ),
    "EAGLE-3, by draft_vocab_size": (
        eagle3(draft_vocab_size=20),
        r"EAGLE-3 \(config.json has draft_vocab_size\)",
    ),
    "EAGLE-3, by names": (eagle3(), r"EAGLE-3 \(tensors are named midlayer.*\)"),
    "EAGLE-3, by fc": (eagle3("layers.0"), r"EAGLE-3 \(fc.weight reads 3 vectors\)"),
    "EAGLE-3, by an fc of another width": (
        with_(eagle3("layers.0"), {"fc.weight": (HIDDEN, 3 * 48)}, target_hidden_size=48),
        r"EAGLE-3 \(fc.weight reads 3 vectors\)",
    ),
    "EAGLE-3, by architecture": (
        with_(
            eagle3("layers.0"), {"fc.weight": (HIDDEN, 4 * HIDDEN)}, architectures=["LlamaForCausalLMEagle3"]
        ),
        r"EAGLE-3 \(config.json has architecture 'LlamaForCausalLMEagle3'\)",
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
