"""Records are kept whole; files that are none, or do not fit, are refused."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.calibration import record as module
from poss_export.calibration.record import Record, check_record, load_record, save_record
from poss_export.errors import InputError


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
    highest = int(max(item.tree.tokens.max() for item in record.rounds))
    with pytest.raises(InputError, match=rf"to {highest}, the target has {highest} tokens"):
        checked(record, vocab_size=highest)
