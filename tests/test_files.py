"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from poss_export.errors import InputError
from poss_export.files import check_file, whole, write_whole
from poss_export.machine import versions


def test_writes_text_and_bytes_and_replaces(tmp_path: Path) -> None:
    """Text is UTF-8, and a second write takes the place of the first."""
    file = tmp_path / "file.bin"
    write_whole(file, "ä")
    assert file.read_bytes() == b"\xc3\xa4"
    write_whole(file, b"\0")
    assert file.read_bytes() == b"\0"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """Whatever goes wrong on the way, the old file stays and nothing lies beside it."""
    file = tmp_path / "file.txt"
    write_whole(file, "old")

    def write_half() -> None:
        with whole(file) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    """The message names the file and what to do."""
    with pytest.raises(InputError, match=r"cannot write .*choose another output file"):
        write_whole(tmp_path / "missing" / "file.txt", "")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        write_whole(tmp_path / "file" / "file.txt", "")


def test_versions_are_those_that_are_installed() -> None:
    """A library that is missing has none; this package and Python are always there."""
    assert list(versions("numpy", "no-such-library")) == ["poss-export", "python", "numpy"]


def test_links_and_devices_stay(tmp_path: Path) -> None:
    """A link's file is replaced and not the link; a device is refused before and at the write."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "a"
    os.mkfifo(tmp_path / "pipe")
    for refuse in (check_file, lambda path: write_whole(path, "a")):
        with pytest.raises(InputError, match=r"pipe' is (no file|a device or a pipe)"):
            refuse(tmp_path / "pipe")
    with pytest.raises(InputError, match="make it first"):
        check_file(tmp_path / "no" / "file")
