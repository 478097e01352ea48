"""`verify` from Python: its checks, and why some are skipped."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.verify import verify
from poss_export.drafters.checkpoint import save_drafter
from poss_export.errors import BundleError, InputError
from poss_export.evaluation.checks import Check
from poss_export.prompts import as_prompts
from poss_export.targets.checkpoint import open_target

PROMPTS = as_prompts(["<5> <9>", "<7> <8> <9>"])
LAWS = {
    "next token = highest logit",
    "n tokens = n steps",
    "tree = its paths",
    "commit = fresh run",
    "draft rows at once = in parts",
}
PARITY = {"parity: target features", "parity: target logits", "parity: draft scores"}


def found(folder: Path, **options: Any) -> dict[str, Check]:
    made = verify(folder, prompts=PROMPTS, max_new_tokens=8, draws=200, threads=1, **options)
    return {check.name: check for check in made.checks}


def test_every_check_is_made_or_says_why_not(tiny_bundle: Path, tiny_folder: Callable[[str], Path]) -> None:
    told, made = list[str](), list[Check]()
    target = str(tiny_folder("llama"))
    checks = found(tiny_bundle, target=target, report=told.append, tell=made.append)
    assert made == [*checks.values()]
    equal = {f"{kind}: speculative = target-only" for kind in ("greedy", "sampled")}
    rounds = {"rounds: own tokens accepted", "rounds: drafts = afresh"}
    rest = {"files", "text", "tables", *equal, *rounds, "sampling: filters", "sampling: distribution"}
    assert set(checks) >= rest | LAWS | PARITY
    assert told[0] == "running PyTorch"
    assert "as the drafter" in checks["parity: draft scores"].detail  # there is no drafter called random
    assert {name for name, check in checks.items() if check.passed is not True} == {"parity: draft scores"}


def test_without_a_checkpoint_parity_is_skipped(tiny_bundle: Path) -> None:
    checks = found(tiny_bundle)
    assert {name for name, check in checks.items() if check.passed is None} == PARITY


def test_without_the_export_libraries_parity_is_skipped(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "poss_export.exporters.reference", None)
    parity = found(tiny_bundle)["parity"]
    assert parity.passed is None
    assert parity.detail.endswith("pip install 'poss-export[export]'")


def test_a_checkpoint_that_is_named_must_be_the_one(
    tiny_bundle: Path, tiny_folder: Callable[[str], Path], random_drafter: Any, tmp_path: Path
) -> None:
    target = str(tiny_folder("llama"))
    with pytest.raises(InputError, match="is not the checkpoint that this bundle was made from"):
        found(tiny_bundle, target=str(tiny_folder("qwen2")))
    import torch

    opened = open_target(target)
    save_drafter(tmp_path / "other", random_drafter(opened.config, 3), opened.sha256, torch.float32)
    with pytest.raises(InputError, match="is not the checkpoint that this bundle was made from"):
        found(tiny_bundle, target=target, drafter=str(tmp_path / "other"))


def test_what_changed_since_the_build_is_said(
    tiny_bundle: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The weights are the same ones, so their hash does not tell."""
    changed = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))
    values = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 1e-4}))
    told = r"another target configuration \(rms_norm_eps was 1e-06, is 0.0001\)"
    with pytest.raises(InputError, match=told):
        found(tiny_bundle, target=str(changed))
    (changed / "config.json").write_text(json.dumps({**values, "eos_token_id": 9}))
    text = found(tiny_bundle, target=str(changed))["text"]
    assert text.passed is False
    assert (
        text.detail
        == "'llama' has another text (stop_ids was (2,), is (2, 9)) than the bundle: build it again"
    )


def test_the_text_of_a_quantised_bundle_is_compared_too(
    changed: Callable[..., Path], tiny_folder: Callable[[str], Path]
) -> None:
    checks = found(changed(quantisation={"target": {"scheme": "w8a8"}}), target=str(tiny_folder("llama")))
    assert checks["text"].passed
    assert checks["parity"].passed is None


def test_something_must_be_asked(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no prompts; give at least one"):
        verify(tiny_bundle, prompts=())


def test_a_damaged_bundle_is_not_run(changed: Callable[..., Path]) -> None:
    folder = changed()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        verify(folder)
