"""What a build hears of a target and times of its drafters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from poss_export.bundling.build import build_bundle
from poss_export.bundling.learning import hear, tell, time_rounds
from poss_export.bundling.request import BuildRequest, plan
from poss_export.calibration.record import Record
from poss_export.calibration.short_prompts import SHORT_PROMPTS
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import save_drafter
from poss_export.evaluation.held_out import PROMPTS
from poss_export.manifest import ACCEPTANCE
from poss_export.progress import silent
from poss_export.runtime.bundle import open_bundle
from poss_export.targets.checkpoint import open_target
from tests.fixtures.sessions import sessions


def test_own_prompts_are_not_those_of_the_judgement() -> None:
    assert not {*SHORT_PROMPTS} & {turn for prompt in PROMPTS for turn in prompt.turns}


def test_passages_are_of_our_prompts_or_of_samples(tiny_bundle: Path, record: Record) -> None:
    told = list[tuple[int, int]]()
    with open_bundle(tiny_bundle, threads=1) as bundle:
        own = hear(bundle, None, False, lambda _, done, total, __: told.append((done, total)))
        read, again = (hear(bundle, record, anew, silent) for anew in (False, True))
    assert len(own) == len(told) == told[-1][1] == len(SHORT_PROMPTS)
    for dialogue, passage, other in zip(record.dialogues, read, again, strict=True):
        assert dialogue.prompt.tolist() == passage.tokens[: passage.prompt].tolist()
        said = min(len(passage.tokens), len(other.tokens))
        assert passage.tokens[:said].tolist() == other.tokens[:said].tolist()  # it is the same target


def test_drafters_are_timed_in_turns(tiny_bundle: Path, record: Record) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, drafter = sessions(bundle)
        passage = hear(bundle, None, False, silent)[0]
        taken = time_rounds(target, {"one": drafter, "same": drafter}, passage)
        told = tell(bundle.manifest, [passage], drafter)
    assert taken.keys() == {"one", "same"}
    assert min(taken.values()) > 0
    assert told.tau >= 1


@pytest.mark.parametrize("acceptance", [True, False])
def test_no_rounds_are_run_where_acceptance_is_left_out(
    tiny_folder: Callable[[str], Path], random_drafter: Callable[..., Any], tmp_path: Path, acceptance: bool
) -> None:
    folder = tiny_folder("llama")
    target = open_target(str(folder))
    save_drafter(tmp_path / "drafter", random_drafter(target.config, 2), target.sha256, torch.float32)
    asked: Any = {"drafter": str(tmp_path / "drafter"), "tree": TreeShape(2, 2, 4), "capacity": 48}
    manifest = build_bundle(plan(BuildRequest(str(folder), acceptance=acceptance, **asked)), tmp_path / "out")
    assert (ACCEPTANCE in manifest.files, manifest.calibration is not None) == (acceptance, acceptance)
    with open_bundle(tmp_path / "out", threads=1) as bundle:
        answer = bundle.generate("<5> <9>", raw=True, max_new_tokens=8)
    assert answer.tokens == 8
