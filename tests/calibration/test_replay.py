"""A record is played again exactly, and what it feeds to graphs is complete and looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from poss_export.calibration import recording
from poss_export.calibration import replay as replaying
from poss_export.calibration.record import Dialogue, Record
from poss_export.calibration.recording import record_rounds
from poss_export.calibration.replay import check_feeds, replay
from poss_export.errors import InputError
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Stream
from poss_export.runtime.round import Round
from poss_export.runtime.tree import DraftTree
from tests.fixtures.sessions import sessions

PROMPT = [5, 17, 80, 3, 44, 9, 61]


@contextmanager
def watched(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Yield a list that gets (graph, copies of what went in and came out) for every call of a session."""
    target, drafter = sessions(bundle)
    forward, propose = target.forward, drafter.propose
    calls: list[tuple[str, Any]] = []

    def watch_forward(tree: DraftTree, rows: Any = None, slot: int = 0) -> Any:
        output = forward(tree, rows, slot)
        fed = [target.length(), tree.tokens, tree.depths, tree.mask]
        calls.append(("target", [np.copy(x) for x in (*fed, *output_of(output))]))
        return output

    def watch_propose(next_tokens: Any, features: Any, slot: int = 0) -> Any:
        fed = [np.copy(x) for x in (drafter.length(), next_tokens, features)]
        tree = propose(next_tokens, features, slot)
        calls.append(("draft", [*fed, tree.tokens, tree.parents, tree.scores]))
        return tree

    with monkeypatch.context() as patch:
        patch.setattr(target, "forward", watch_forward)
        patch.setattr(drafter, "propose", watch_propose)
        yield calls


def output_of(output: Any) -> tuple[Any, Any]:
    return output.next_tokens, output.features


@pytest.mark.parametrize("chunk", [3, 256])
def test_replay_repeats_every_call(chunk: int, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, masks, rows, features and caches: every call is the loop's own, to the last bit."""
    monkeypatch.setattr(replaying, "PREFILL_CHUNK", chunk)
    monkeypatch.setattr(recording, "Stream", partial(Stream, prefill_chunk=chunk))
    with open_bundle(tiny_bundle, threads=1) as bundle:
        with watched(bundle, monkeypatch) as original:
            made = record_rounds(bundle, [[i, 3, 7, 2 * i, 1, 30, 4] for i in range(1, 9)], 99)
        assert any(len(item.path) > 1 for item in made.rounds)
        with watched(bundle, monkeypatch) as repeated:
            graphs = [graph for graph, _ in replay(made, *sessions(bundle))]
    assert graphs == [graph for graph, _ in repeated] == [graph for graph, _ in original]
    for (_, ours), (_, theirs) in zip(repeated, original, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_replay_takes_the_recorded_path_against_the_target(tiny_bundle: Path, record: Record) -> None:
    """Another precision may choose other tokens: the record decides, and the drafter reads what it says."""
    tokens, parents = np.array([7, 11, 22, 33]), np.array([0, 0, 1, 1])
    trees = [DraftTree(tokens + i, parents, np.zeros(4, np.float32)) for i in range(3)]
    rounds = [Round(tree, (0, 1, 3), bonus=8 + i) for i, tree in enumerate(trees)]
    forced = replace(record, dialogues=(Dialogue(np.array(PROMPT), tuple(rounds)),))
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, drafter = sessions(bundle)
        feeds = [(graph, {k: v.copy() for k, v in feed.items()}) for graph, feed in
                 replay(forced, target, drafter)]  # fmt: skip
        assert target.length() == len(PROMPT) + 9
        target.reset()
        output = target.forward(DraftTree.chain([*PROMPT, 7, 11, 33, 8, 12, 34]))
        embeddings = bundle.manifest.target.embedding.open(bundle.folder)
        third = [feed for graph, feed in feeds if graph == "draft"][2]
        np.testing.assert_allclose(third["features"][0], output.features[-3:], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(third["next_token_embeddings"][0], embeddings[[12, 34, 9]])
        assert [feed["past_length"].tolist() for graph, feed in feeds if graph == "draft"] == [[0], [7], [10]]


def test_feeds_are_complete(tiny_bundle: Path, record: Record) -> None:
    """A fresh session that gets nothing else says the same tokens and draws the same tree."""
    fresh = {
        "target": onnxruntime.InferenceSession(tiny_bundle / TARGET_GRAPH),
        "draft": onnxruntime.InferenceSession(tiny_bundle / DRAFT_GRAPH),
    }
    results = {"target": ("next_tokens", "features"), "draft": ("tree_tokens", "tree_parents", "tree_scores")}
    seen = {"target": 0, "draft": 0}
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, drafter = sessions(bundle)
        for graph, feed in replay(record, target, drafter, limit=3):
            call = (target if graph == "target" else drafter)._last
            assert call is not None
            assert feed.keys() == {spec.name for spec in fresh[graph].get_inputs()}
            outputs = fresh[graph].run(list(results[graph]), dict(feed))
            for name, values in zip(results[graph], outputs, strict=True):
                np.testing.assert_allclose(values, call.arrays[name], rtol=1e-4, atol=1e-5)
            seen[graph] += 1
    rounds = sum(len(dialogue.rounds) for dialogue in record.dialogues[:3])
    assert seen == {"target": rounds + 3, "draft": rounds}


def test_replay_needs_the_capacity(record: Record, tiny_bundle: Path) -> None:
    assert max(dialogue.rows for dialogue in record.dialogues) == 48  # these answers fill their caches
    with open_bundle(tiny_bundle, threads=1) as bundle:
        target, drafter = sessions(bundle)
        target.capacity = 47
        with pytest.raises(InputError, match="need a capacity of 48 tokens, the bundle's is 47"):
            next(replay(record, target, drafter))


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
