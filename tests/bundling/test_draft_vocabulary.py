"""A drafter that can propose every token, cut when it is built: what is drafted, said, kept and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from poss_export.bundling import draft_vocabulary
from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import Plan, plan_build
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.bundling.request import BuildRequest, plan
from poss_export.bundling.verify import verify
from poss_export.calibration.record import Dialogue, Record
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import load_drafter
from poss_export.errors import InputError
from poss_export.manifest import read_manifest
from poss_export.prompts import as_prompts
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.round import Round
from poss_export.runtime.tree import DraftTree
from poss_export.targets.checkpoint import open_target
from tests.cli.command import done
from tests.fixtures.graphs import CAPACITY
from tests.fixtures.public_checkpoints import Sizes, eagle, write

SIZES = Sizes(hidden=64, inner=80, heads=4, kv_heads=2, vocab=96)  # for the tiny targets
TREE = TreeShape(4, 3, 8)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EAGLE release: it proposes every token."""
    layout = eagle(SIZES)
    tensors = layout.random()
    del tensors["embed_tokens.weight"]
    return write(tmp_path_factory.mktemp("released") / "eagle", layout.config, tensors)


@pytest.fixture
def planned(tiny_folder: Any, released: Path) -> Any:
    """Return planned(size, target="llama3", **changes)."""

    def make(size: int | None, target: str = "llama3", **changes: Any) -> Plan:
        values = {"tree": TREE, "capacity": CAPACITY, "precision": "fp32", "cache_form": "shared", **changes}
        opened = open_target(str(tiny_folder(target)))
        return plan_build(opened, load_drafter(str(released)), draft_vocab_size=size, **values)

    return make


def record_of(target_sha256: str, tokens: list[int]) -> Record:
    """Return eight dialogues whose answers say some tokens again and again."""
    rounds = tuple(Round(DraftTree.with_root(1), (0,), token) for token in (tokens * 100)[:40])
    dialogues = tuple(Dialogue(np.array([1, 5]), rounds) for _ in range(8))
    return Record("tiny", target_sha256, None, None, None, "fp32", "2026", (), {}, dialogues)


@pytest.mark.parametrize("target", ["llama3", "llama"])  # with a head of its own, and with tied tables
def test_a_drafter_is_cut(
    target: str, planned: Any, tiny_folder: Any, released: Path, tmp_path: Path
) -> None:
    """Its graph has rows of the draft vocabulary alone, computes what PyTorch does, and costs no token."""
    whole, cut = planned(None, target), planned(40, target)
    sizes = [made.to_dict()["files"]["draft.onnx.data"] for made in (whole, cut)]
    tables = 1 if target == "llama" else 2
    assert sizes[0] - sizes[1] == tables * (96 - 40) * 64 * 4
    said = "40 of 96 tokens can be drafted: the most frequent by the tokenizer's order"
    assert cut.to_dict()["drafter"]["vocabulary"] == said
    folder = tmp_path / "bundle"
    build_bundle(cut, folder)
    manifest = read_manifest(folder)
    assert manifest.drafter is not None
    assert manifest.drafter.config.draft_vocab_size == 40
    assert manifest.drafter.vocabulary is not None
    assert manifest.drafter.vocabulary.ids == "0-39"
    assert manifest.parity["draft_scores"] < 1e-4
    assert build_bundle(planned(40, target), folder) == manifest  # nothing to build
    with pytest.raises(InputError, match=r"another draft vocabulary \(ids was '0-39', is '0-38'\)"):
        build_bundle(planned(39, target), folder)
    with open_bundle(folder, threads=1) as bundle:
        ours, plain = (
            bundle.generate("<5> <9> <77>", raw=True, max_new_tokens=30, target_only=only)
            for only in (False, True)
        )
    assert ours.token_ids == plain.token_ids
    places: dict[str, Any] = {"target": str(tiny_folder(target)), "drafter": str(released)}
    made = verify(folder, prompts=as_prompts(["<5> <9>"]), max_new_tokens=8, draws=200, threads=1, **places)
    assert {check.name: check.detail for check in made.checks if not check.passed} == {}
    assert said in " ".join(done("inspect", folder).stdout.split())


def test_samples_decide_where_there_are_some(planned: Any, tiny_folder: Any) -> None:
    sha256 = open_target(str(tiny_folder("llama3"))).sha256
    samples = record_of(sha256, [95, 93, 80, 62])
    cut = planned(30, quantise=QuantiseRequest({}, samples=samples))
    assert cut.drafter.vocabulary.chosen_by == "samples"
    ids = cut.drafter.vocabulary.to_array()
    assert {1, 5, 62, 80, 93, 95} <= set(ids.tolist())
    assert len(ids) == 30
    assert cut.to_dict()["drafter"]["vocabulary"].endswith("by the tokenizer's order")


def test_a_head_of_its_own_is_cut_too(random_drafter: Any, tiny_folder: Any) -> None:
    config = open_target(str(tiny_folder("llama3"))).config
    drafter = random_drafter(config, 1, fusion="taps", taps=(0, 1), own_head=True, own_embeddings=True)
    head = drafter.head.clone()
    drafter.propose_only(torch.tensor([2, 7, 30]))
    assert torch.equal(drafter.head, head[[2, 7, 30]])
    assert drafter.config.draft_vocab_size == 3


def test_what_cannot_be_cut_is_refused(planned: Any, tiny_folder: Any, released: Path) -> None:
    for size in (0, 96, 1000):
        with pytest.raises(InputError, match=f"draft vocabulary of {size} ids: expected 1 to 95") as caught:
            planned(size)
        assert caught.value.options == ("draft_vocab_size",)
    with pytest.raises(InputError, match="top-k is 3, but the drafter knows 2 words"):
        planned(2)
    with pytest.raises(InputError, match="a draft vocabulary needs a drafter"):
        plan(BuildRequest(str(tiny_folder("llama3")), draft_vocab_size=40))
    with pytest.raises(InputError, match="drafter 'eagle' has a draft vocabulary already, 12288 of 49152"):
        plan(BuildRequest("smollm2-135m", drafter="eagle", draft_vocab_size=40))


def test_a_plan_tells_what_a_whole_vocabulary_costs(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(None).warnings == ()  # 96 tokens are no large vocabulary
    monkeypatch.setattr(draft_vocabulary, "USUAL_SIZE", 50)
    (warning,) = planned(None).warnings
    assert "can propose all 96 tokens: a round reads its head 4 times" in warning
    assert planned(60).warnings == ()  # more than that, but cut
