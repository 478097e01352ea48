"""Records: real rounds are noted, kept whole, and played again exactly; whatever else is refused."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from poss_export.calibration import record as module
from poss_export.calibration import recording
from poss_export.calibration import replay as replaying
from poss_export.calibration.invented_prompts import invent_prompts
from poss_export.calibration.record import Dialogue, Record, check_record, load_record, save_record
from poss_export.calibration.recording import open_to_record, record_prompts, record_rounds
from poss_export.calibration.replay import check_feeds, replay
from poss_export.errors import BackendError, InputError
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, read_manifest
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Stream
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtTargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.text import Text, user_says

PROMPT = [5, 17, 80, 3, 44, 9, 61]


def sessions(bundle: Bundle) -> tuple[OrtTargetSession, OrtDraftSession]:
    assert isinstance(bundle.target, OrtTargetSession)
    assert isinstance(bundle.drafter, OrtDraftSession)
    return bundle.target, bundle.drafter


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


def test_a_record_holds_the_answers(record: Record, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert manifest.drafter is not None
    assert (record.target_sha256, record.drafter_sha256) == (manifest.target.sha256, manifest.drafter.sha256)
    assert (record.tree, record.precision) == (manifest.drafter.tree, "fp32")
    assert record.versions.keys() == {"poss-export", "python", "onnxruntime", "numpy"}
    accepted = [item.path for item in record.rounds if len(item.path) > 1]
    assert (0, 2) in accepted  # or the tests below would never move a cache row
    with open_bundle(tiny_bundle, threads=1) as bundle:
        for dialogue in record.dialogues[:4]:
            prompt = " ".join(f"<{i}>" for i in dialogue.prompt)
            answer = bundle.generate(prompt, raw=True, target_only=True, max_new_tokens=99).token_ids
            emitted = [int(dialogue.rounds[0].tree.tokens[0])]
            for item, following in zip(dialogue.rounds, [*dialogue.rounds[1:], None], strict=True):
                emitted += item.tree.tokens[list(item.path[1:])].tolist()
                emitted += [int(following.tree.tokens[0])] if following else []
            assert emitted == list(answer[: len(emitted)])
            assert len(emitted) >= len(answer) - 1


def test_answers_end_at_their_length(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        made = record_rounds(bundle, [PROMPT, PROMPT], 6)
        assert [1 + sum(len(r.path) for r in d.rounds) for d in made.dialogues] == [6, 6]
        assert made.tokens == 12
        assert made.tau == pytest.approx(10 / len(made.rounds))
        assert record_rounds(bundle, [PROMPT], 1).tau == 0.0  # prefill gives the only token


def test_a_stop_token_ends_an_answer(record: Record, tiny_bundle: Path) -> None:
    stop = int(record.dialogues[0].rounds[3].tree.tokens[0])
    with open_bundle(tiny_bundle, threads=1) as bundle:
        text = replace(bundle.manifest.text, stop_ids=(stop,))
        bundle.text = Text(bundle.text.tokenizer_json, text)
        (dialogue,) = record_rounds(bundle, [record.dialogues[0].prompt.tolist()], 99).dialogues
    roots = [int(item.tree.tokens[0]) for item in record.dialogues[0].rounds]
    assert len(dialogue.rounds) == roots.index(stop)


def test_every_turn_is_a_dialogue(chat_bundle: Path) -> None:
    """Its prompt is all that was said before, answers and template included."""
    prompts = [Prompt("a", ("<5> <6>", "<7>")), Prompt("b", ("<9>",))]
    told = list[tuple[Any, ...]]()
    with open_bundle(chat_bundle, threads=1) as bundle:
        made = record_prompts(bundle, prompts, 6, progress=lambda *now: told.append(now[:3]))
        one, two = bundle.converse(prompts[0], max_new_tokens=6)
        behind = [user_says("<5> <6>"), {"role": "assistant", "content": one.text}, user_says("<7>")]
        expected = [bundle.encode("<5> <6>"), bundle.encode(behind), bundle.encode("<9>")]
    assert [dialogue.prompt.tolist() for dialogue in made.dialogues] == expected
    for dialogue, answer in zip(made.dialogues, (one, two), strict=False):
        emitted = [dialogue.rounds[0].tree.tokens[0], *np.concatenate([r.tokens for r in dialogue.rounds])]
        assert tuple(emitted[:6]) == answer.token_ids
    assert told == [("recording", 1, 2), ("recording", 2, 2)]


def test_without_a_drafter_trees_are_roots(changed: Callable[..., Path]) -> None:
    with open_bundle(changed(drafter=None), threads=1) as bundle:
        made = record_rounds(bundle, [PROMPT], 5)
        assert (made.drafter_name, made.drafter_sha256, made.tree) == (None, None, None)
        assert [(item.tree.tokens.size, item.path) for item in made.rounds] == [(1, (0,))] * 4
        assert isinstance(bundle.target, OrtTargetSession)
        feeds = [graph for graph, _ in replay(made, bundle.target, None)]
        assert feeds == ["target"] * 5


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


def test_a_record_is_kept_whole(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "samples"
    save_record(record, path)
    assert [file.name for file in tmp_path.iterdir()] == ["samples"]
    again = load_record(path)
    assert again.sha256 == record.sha256
    for name in ("target_name", "target_sha256", "drafter_name", "drafter_sha256", "tree", "precision"):
        assert getattr(again, name) == getattr(record, name)
    assert (again.created, again.argv, again.versions) == (record.created, record.argv, record.versions)
    for ours, theirs in zip(again.dialogues, record.dialogues, strict=True):
        np.testing.assert_array_equal(ours.prompt, theirs.prompt)
        for a, b in zip(ours.rounds, theirs.rounds, strict=True):
            assert (a.path, a.bonus) == (b.path, b.bonus)
            for name in ("tokens", "parents", "scores"):
                x, y = getattr(a.tree, name), getattr(b.tree, name)
                np.testing.assert_array_equal(x, y)
                assert x.dtype == y.dtype


def rewritten(source: Path, path: Path, **members: Any) -> Path:
    """Return a copy of a record with other members."""
    with np.load(source) as file:
        values = {name: file[name] for name in file.files}
    with path.open("wb") as file:
        np.savez_compressed(file, **{**values, **members})
    return path


def test_files_that_are_no_record_are_refused(record: Record, tmp_path: Path) -> None:
    good, path = tmp_path / "good.npz", tmp_path / "bad.npz"
    save_record(record, good)

    def message() -> str:
        with pytest.raises(InputError) as caught:
            load_record(path)
        assert str(path) in str(caught.value)
        assert "poss-export calibrate" in str(caught.value) or "record samples again" in str(caught.value)
        return str(caught.value)

    assert "no file of samples" in message()
    for content in (b"", b"hello", good.read_bytes()[:-200]):
        path.write_bytes(content)
        assert "is not a record of samples, or is cut short" in message()
    with path.open("wb") as file:
        np.savez(file, ids=np.arange(4))
    assert "is not a record of samples" in message()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", b"\x93NUMPY\x01\x00 nonsense")
    assert "is damaged" in message()
    with np.load(good) as file:
        header, tokens = json.loads(file["header"].tobytes()), file["tokens"]
    header["precision"] = "fp16"
    rewritten(good, path, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    assert "is damaged: its hash does not match" in message()
    rewritten(good, path, tokens=np.where(np.arange(len(tokens)) == 3, 1 - tokens, tokens))
    assert "is damaged: its hash does not match" in message()
    header["format_version"] = 1
    rewritten(good, path, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    assert "has format version 1, this release reads 2" in message()


@pytest.mark.parametrize("member", ["header", "sha256", "tokens", "paths"])
def test_a_changed_byte_is_found(member: str, record: Record, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    save_record(record, path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 60 + info.compress_size // 2] ^= 0x55  # behind the member's own header
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: its hash does not match"):
        load_record(path)


def test_empty_records_are_refused(record: Record, tmp_path: Path) -> None:
    empty, path = replace(record, dialogues=()), tmp_path / "empty.npz"
    with pytest.raises(InputError, match="the record has no dialogues"):
        save_record(empty, path)
    assert not list(tmp_path.iterdir())
    save_record(record, path)
    arrays = module._flatten(())
    digest = np.frombuffer(bytes.fromhex(empty.sha256), np.uint8)
    rewritten(path, path, **arrays, sha256=digest)
    with pytest.raises(InputError, match="is empty, expected at least one dialogue"):
        load_record(path)


def test_a_failed_write_keeps_what_was_there(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "samples.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        save_record(record, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["samples.npz"]


def checked(record: Record, **other: Any) -> None:
    facts = {"target_sha256": record.target_sha256, "drafter_sha256": record.drafter_sha256, "vocab_size": 96}
    check_record(record, **{**facts, **other})


def test_records_that_do_not_fit_are_refused(record: Record) -> None:
    checked(record)
    with pytest.raises(InputError, match=r"target '.*' with hash .*, expected abc: record them"):
        checked(record, target_sha256="abc")
    with pytest.raises(InputError, match="drafter 'random' with hash 000000000000, expected hash abc"):
        checked(record, drafter_sha256="abc")
    plain = replace(record, drafter_sha256=None, drafter_name=None, tree=None)
    with pytest.raises(InputError, match="without a drafter, expected hash abc"):
        checked(plain, drafter_sha256="abc")
    checked(record, drafter_sha256=None)  # the drafter is not quantised: any will do
    checked(plain, drafter_sha256=None)
    with pytest.raises(InputError, match=r"have 7 dialogues and .* rounds, expected at least 8"):
        checked(replace(record, dialogues=record.dialogues[:7]))
    short = tuple(replace(dialogue, rounds=dialogue.rounds[:3]) for dialogue in record.dialogues)
    with pytest.raises(InputError, match="have 19 dialogues and 57 rounds, expected at least 8 and 64"):
        checked(replace(record, dialogues=short))
    checked(replace(record, dialogues=short), min_rounds=57)
    highest = int(max(item.tree.tokens.max() for item in record.rounds))
    with pytest.raises(InputError, match=rf"to {highest}, the target has {highest} tokens"):
        checked(record, vocab_size=highest)


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


def test_what_cannot_be_recorded_is_refused(tiny_bundle: Path, changed: Callable[..., Path]) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        for prompts, length, message in (
            ([], 5, "no prompts to record"),
            ([PROMPT, []], 5, "the prompt is empty"),
            ([PROMPT, [1] * 49], 5, "the prompt has 49 tokens, the bundle's capacity is 48"),
            ([PROMPT], 0, "max_new_tokens is 0; it must be at least 1"),
        ):
            with pytest.raises(InputError, match=message):
                record_rounds(bundle, prompts, length)
        assert bundle.target.length() == 0  # all prompts are checked before the first is read
    with pytest.raises(BackendError, match="is in bf16, which ONNX Runtime does not run here"):
        open_to_record(changed(precision="bf16"))


def test_targets_invent_prompts(chat_bundle: Path) -> None:
    with open_bundle(chat_bundle, threads=1) as bundle:
        prompts = invent_prompts(bundle, 6, 0)
        assert prompts == invent_prompts(bundle, 6, 0) != invent_prompts(bundle, 6, 1)
        assert len(set(prompts)) == 6
        assert all(0 < len(bundle.encode(prompt)) <= 3 + 22 for prompt in prompts)  # half of 48 - 3
        assert bundle.text.encode_user_opening() == [1]


def test_prompts_are_invented_in_the_user_s_place(chat_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the opening of a user's turn, not of the assistant's answer."""
    with open_bundle(chat_bundle, threads=1) as bundle:
        target, _ = sessions(bundle)
        forward, seen = target.forward, list[list[int]]()

        def watch(tree: DraftTree, *others: Any, **named: Any) -> Any:
            seen.append(tree.tokens.tolist())
            return forward(tree, *others, **named)

        monkeypatch.setattr(target, "forward", watch)
        invent_prompts(bundle, 1, 0)
    assert seen[0] == [1]


def test_inventing_needs_a_chat_template(tiny_bundle: Path, changed: Callable[..., Path]) -> None:
    with (
        open_bundle(tiny_bundle, threads=1) as bundle,
        pytest.raises(InputError, match="has no chat template to invent prompts with: give prompts"),
    ):
        invent_prompts(bundle, 4, 0)
    text = replace(read_manifest(tiny_bundle).text, chat_template="<1> " * 47)
    with (
        open_bundle(changed(text=text), threads=1) as bundle,
        pytest.raises(InputError, match="changes what the user says; give prompts"),
    ):
        invent_prompts(bundle, 4, 0)
