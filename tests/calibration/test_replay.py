"""A dialogue in one call shows a target every row that its rounds showed it, and feeds are looked at."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from poss_export.calibration.record import Dialogue, Record
from poss_export.calibration.replay import check_feeds, dialogue_feeds, dialogue_tree
from poss_export.errors import InputError
from poss_export.manifest import TARGET_GRAPH
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.tree import DraftTree
from tests.fixtures.sessions import sessions


def test_one_tree_has_every_row_of_the_rounds(tiny_bundle: Path, record: Record) -> None:
    """Features of a recorded dialogue, call by call, are those of the one tree."""
    dialogue = next(d for d in record.dialogues if any(done.path == (0, 2) for done in d.rounds))
    dialogue = Dialogue(dialogue.prompt, dialogue.rounds[:4])
    session = onnxruntime.InferenceSession(tiny_bundle / TARGET_GRAPH)
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, _ = sessions(bundle)
        chain = DraftTree.chain(dialogue.prompt)
        expected = [target.forward(chain).features.copy()]
        target.commit(range(len(chain)))
        for done in dialogue.rounds:
            expected.append(target.forward(done.tree).features.copy())
            target.commit(done.path)
        found = []
        for feed in dialogue_feeds(target, dialogue):
            assert feed.keys() == {spec.name for spec in session.get_inputs()}
            found.append(session.run(["features"], dict(feed))[0][0])
    assert len(found) == 2
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=1e-4, atol=1e-4)


def test_a_tree_ends_with_a_whole_round(record: Record) -> None:
    dialogue = record.dialogues[0]
    width = len(dialogue.rounds[0].tree)
    for most, nodes in ((3, 3), (5, 5), (5 + width, 5 + width), (4 + 2 * width, 5 + width)):
        assert len(dialogue_tree(dialogue, most)) == nodes


def test_feeds_are_looked_at() -> None:
    good = {"features": np.ones((1, 2, 4)), "row_count": np.array([2])}
    assert list(check_feeds([good, good])) == [good, good]
    with pytest.raises(InputError, match=r"no samples: .* an iterator can be read only once"):
        list(check_feeds(iter([])))
    feeds = check_feeds([good, {**good, "features": np.array([1.0, np.inf])}])
    assert next(feeds) is good
    with pytest.raises(InputError, match="sample 2: features holds NaN or infinity"):
        next(feeds)


def test_feeds_may_hold_anything_behind_the_committed_rows() -> None:
    cache = np.zeros((1, 2, 8, 4), np.float16)
    cache[..., 5:, :] = np.nan
    feed = {"past_length": np.array([5]), "past_key_values.0.key": cache}
    assert list(check_feeds([feed])) == [feed]
    with pytest.raises(InputError, match=r"sample 1: past_key_values.0.key holds NaN"):
        list(check_feeds([{**feed, "past_length": np.array([6])}]))
