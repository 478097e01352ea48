"""A bundle of each kind of target: its answers are those of transformers, its checks pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from poss_export.bundling import comparing
from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import plan_build
from poss_export.bundling.verify import verify
from poss_export.config import CacheForm, TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter, save_drafter
from poss_export.prompts import as_prompts
from poss_export.runtime.bundle import open_bundle
from poss_export.targets.checkpoint import open_target
from tests.fixtures.graphs import CAPACITY

PROMPT = [5, 9, 77, 30, 12, 41, 8]
SLOW = pytest.mark.slow


def built(folder: Path, drafter: Any, place: Path, form: CacheForm) -> Path:
    target = open_target(str(folder))
    made = drafter(target.config, 1)
    save_drafter(place / "drafter", made, target.sha256, made.fusion.fc.weight.dtype)
    checkpoint: DrafterCheckpoint = load_drafter(str(place / "drafter"))
    choices: dict[str, Any] = {"capacity": CAPACITY, "precision": "fp32", "cache_form": form}
    build_bundle(plan_build(target, checkpoint, tree=TreeShape(4, 3, 8), **choices), place / "bundle")
    return place / "bundle"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param("windows", "shared", marks=SLOW),
        pytest.param("phi4", "shared", marks=SLOW),
        pytest.param("mixtral", "static", marks=SLOW),
        pytest.param("qwen3_moe", "static", marks=SLOW),
        pytest.param("qwen3_moe", "shared", marks=SLOW),
        pytest.param("granite", "shared", marks=SLOW),
        pytest.param("granite", "static", marks=SLOW),
        pytest.param("gemma", "shared", marks=SLOW),
        ("gemma2", "static"),
        pytest.param("gemma2", "shared", marks=SLOW),
        ("gemma3", "shared"),
        pytest.param("gemma3", "static", marks=SLOW),
    ],
)
def test_answers_are_those_of_transformers(
    name: str,
    form: CacheForm,
    tiny_folder: Any,
    random_drafter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "shared":
        monkeypatch.setattr(comparing, "LOADED", 0)  # compare as targets are that are too large to be loaded
    folder = built(tiny_folder(name), random_drafter, tmp_path, form)
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(name), dtype=torch.float32)
    prompt = " ".join(f"<{token}>" for token in PROMPT)
    with open_bundle(folder, threads=1) as bundle:
        plain, ours = (
            bundle.generate(prompt, raw=True, max_new_tokens=30, target_only=only).token_ids
            for only in (True, False)
        )
    assert plain == ours
    assert len(ours) > 10  # beyond the windows
    with torch.no_grad():
        likeliest = reference(torch.tensor([[*PROMPT, *ours]])).logits[0].argmax(-1)
    assert likeliest[len(PROMPT) - 1 : -1].tolist() == list(ours)
    places: dict[str, Any] = {"target": str(tiny_folder(name)), "drafter": str(tmp_path / "drafter")}
    made = verify(folder, prompts=as_prompts([prompt]), max_new_tokens=8, draws=200, threads=1, **places)
    assert {check.name: check.detail for check in made.checks if not check.passed} == {}
