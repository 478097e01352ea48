"""Folders in the making: they appear whole or not at all, and leave nothing."""

from pathlib import Path

import pytest

from poss_export.bundling.staging import check_output, link_or_copy, publish, unfinished
from poss_export.errors import InputError


def test_a_finished_folder_replaces_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with unfinished(out) as made:
        (made / "new").touch()
        publish(made, out)
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_what_killed_builds_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-dead").mkdir()
    with unfinished(tmp_path / "out") as made:
        assert list(tmp_path.iterdir()) == [made]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_says_that_nothing_was_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No space left; nothing was kept"), unfinished(tmp_path / "out"):
        raise OSError("No space left")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to .*choose another output folder"):
        unfinished(tmp_path / "file" / "out").__enter__()


def test_only_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    check_output(tmp_path / "none")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        check_output(tmp_path)


def test_a_copy_stands_in_for_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("content")
    link_or_copy(tmp_path / "file", tmp_path / "link")
    assert (tmp_path / "link").samefile(tmp_path / "file")

    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    link_or_copy(tmp_path / "file", tmp_path / "copy")
    assert not (tmp_path / "copy").samefile(tmp_path / "file")
    assert (tmp_path / "copy").read_text() == "content"
