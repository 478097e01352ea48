"""Dialogues of several sources, and what the target knows about them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from poss_export.progress import silent
from poss_export.targets.checkpoint import Target, open_target
from poss_export.training.dialogues import Dialogues
from poss_export.training.views import load_dialogues, see


@pytest.fixture(scope="module")
def target(tiny_folder: Callable[[str], Path]) -> Target:
    return open_target(str(tiny_folder("llama")))


def test_what_two_sources_tell_is_seen_once_with_files_and_without(target: Target, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pairs = [torch.randint(3, 90, (2, 12), generator=random).tolist() for _ in range(6)]
    paths = [tmp_path / "first.npz", tmp_path / "second.npz"]
    Dialogues.from_answers([(a, b) for a, b in pairs[:4]], holdout=0.5).save(paths[0])
    Dialogues.from_answers([(a, b) for a, b in pairs[2:]], holdout=0.5).save(paths[1])
    sources, decoder = load_dialogues(target, paths), target.load_decoder()
    joined = Dialogues.joined(sources)
    assert len(joined) == 6
    assert joined.validation.tolist() == [False, True, False, True, False, True]
    computed, *kept = (
        see(target, decoder, sources, (), cache, silent) for cache in (None, tmp_path, tmp_path)
    )
    assert len(computed.features) == len(joined.ids)
    for view in kept:
        assert torch.equal(view.top_ids, computed.top_ids)
        torch.testing.assert_close(view.features, computed.features)
