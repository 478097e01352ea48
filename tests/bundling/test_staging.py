"""Folders in the making: they appear whole or not at all, and leave nothing."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poss_export.bundling import staging
from poss_export.bundling.staging import check_output, link_or_copy, publish, real_folder, unfinished
from poss_export.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from poss_export.bundling.staging import unfinished
with unfinished(Path(sys.argv[1])) as made:
    (made / "large").touch()
    print("made", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_finished_folder_replaces_a_bundle(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").touch()
    with unfinished(out) as made:
        (made / "new").touch()
        publish(made, out)
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    check_output(out)
    with unfinished(out) as made:
        (made / "new").touch()
        publish(made, out)
    assert [path.name for path in out.iterdir()] == ["new"]


def test_what_killed_builds_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-dead").mkdir()
    with unfinished(tmp_path / "out") as made:
        assert list(tmp_path.iterdir()) == [made]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out[1]", "*", "?", "out", " "])
def test_only_what_builds_of_this_name_left_goes(name: str, tmp_path: Path) -> None:
    others = [tmp_path / f".{other}.partial-1-x" for other in ("out1", "outer", "a", "out.partial")]
    for path in (*others, tmp_path / f".{name}.partial-1-dead"):
        path.mkdir()
    with unfinished(tmp_path / name):
        pass
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_build_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        message = rf"process {other.pid} is building .*out'.*wait for it, or choose another"
        with pytest.raises(InputError, match=message), unfinished(tmp_path / "out"):
            pass
        (left,) = tmp_path.iterdir()
        assert (left / "large").exists()
        other.send_signal(signal.SIGKILL)
    with unfinished(tmp_path / "out") as made:
        assert list(tmp_path.iterdir()) == [made]


def test_a_bundle_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """Where folders cannot be exchanged, a build may be killed between two renames."""
    aside = tmp_path / ".out.partial-1-x-replaced"
    aside.mkdir()
    (aside / "manifest.json").touch()
    with unfinished(tmp_path / "out"):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_links_stay(tmp_path: Path) -> None:
    for name in ("place", "nowhere"):
        (tmp_path / f"to-{name}").symlink_to(tmp_path / name)
        out = real_folder(tmp_path / f"to-{name}")
        for _ in range(2):
            check_output(tmp_path / f"to-{name}")
            with unfinished(out) as made:
                (made / "manifest.json").touch()
                publish(made, out)
        assert (tmp_path / f"to-{name}").is_symlink()
        assert (tmp_path / name / "manifest.json").exists()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(InputError, match="leads nowhere"):
        check_output(tmp_path / "circle")


def test_a_failed_write_says_that_nothing_was_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No space left; nothing was kept"), unfinished(tmp_path / "out"):
        raise OSError("No space left")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to .*choose another output folder"):
        unfinished(tmp_path / "file" / "out").__enter__()


def test_only_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    check_output(tmp_path / "none" / "yet")
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="exists and is not a bundle"):
            check_output(place)
    with pytest.raises(InputError, match=r"cannot write to .*file"):
        check_output(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="mount point"):
        check_output(Path("/dev/shm"))


def test_other_files_in_a_bundle_are_not_lost(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    check_output(folder)
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds 'notes.txt', which is no part of the bundle: move it"):
        check_output(folder)


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
