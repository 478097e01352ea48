"""Files that travel in parts come out as they were, or not at all."""

import json
from pathlib import Path

import pytest

from offline.parts import PartsError, collect, join, main, missing, parts_in, split

MOST = 1500  # bytes of a part; 1,000 are kept for its header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pack.tar.xz"
    path.write_bytes(bytes(range(256)) * 5)
    return path


def test_a_file_comes_out_as_it_was(file: Path, tmp_path: Path) -> None:
    parts = split(file, tmp_path / "parts", MOST)
    assert [part.name for part in parts] == [f"pack.tar.xz.{number:03}" for number in range(3)]
    assert max(part.stat().st_size for part in parts) <= MOST
    (joined,) = join(tmp_path / "parts", tmp_path / "out")
    assert joined.read_bytes() == file.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [file.name]


def test_an_empty_file_has_a_part(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    split(tmp_path / "empty", tmp_path / "parts", MOST)
    assert join(tmp_path / "parts", tmp_path / "out")[0].read_bytes() == b""


def test_parts_arrive_in_any_order(file: Path, tmp_path: Path) -> None:
    parts, stage = split(file, tmp_path / "parts", MOST), tmp_path / "stage"
    for number, lacking in ((2, "lacks 0, 1"), (0, "lacks 1"), (1, "complete")):
        sent = tmp_path / f"call-{number}"
        sent.mkdir()
        (sent / parts[number].name).write_bytes(parts[number].read_bytes())
        (line,) = collect(sent, stage)
        assert line.endswith(lacking)
    assert join(stage, tmp_path / "out")[0].read_bytes() == file.read_bytes()


def test_shorter_files_leave_no_part_of_the_longer(file: Path, tmp_path: Path) -> None:
    split(file, tmp_path / "parts", MOST)
    file.write_bytes(b"short")
    split(file, tmp_path / "parts", MOST)
    assert len(list((tmp_path / "parts").iterdir())) == 1


@pytest.mark.parametrize("what", ["lost", "changed", "another packing", "no part", "none"])
def test_what_is_not_whole_is_refused(what: str, file: Path, tmp_path: Path) -> None:
    parts = split(file, tmp_path / "parts", MOST)
    expected = {
        "lost": r"lacks parts 1 of pack.tar.xz: send them",
        "changed": r"pack.tar.xz.001 is damaged: .* send it again",
        "another packing": r"belong to different files: send all of one packing",
        "no part": r"pack.tar.xz.001 is no part of a file",
        "none": r"holds no parts of any file",
    }
    if what == "lost":
        parts[1].unlink()
    elif what == "changed":
        parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"!")
    elif what == "another packing":
        file.write_bytes(b"x" * 1280)
        (other,) = split(file, tmp_path / "other", MOST)[1:2]
        parts[1].write_bytes(other.read_bytes())
    elif what == "no part":
        parts[1].write_bytes(json.dumps({"name": "pack"}).encode())
    else:
        for part in parts:
            part.unlink()
    with pytest.raises(PartsError, match=expected[what]):
        join(tmp_path / "parts", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_only_named_files_are_joined(file: Path, tmp_path: Path) -> None:
    split(file, tmp_path / "parts", MOST)
    split(file.rename(tmp_path / "log"), tmp_path / "parts", MOST)
    (tmp_path / "parts" / "log.000").unlink()
    assert [path.name for path in join(tmp_path / "parts", tmp_path / "out", ["pack.tar.xz"])] == [file.name]
    with pytest.raises(PartsError, match=r"no parts of other"):
        join(tmp_path / "parts", tmp_path / "out", ["other"])
    assert missing(parts_in(tmp_path / "parts")["log"]) == [0]


def test_the_command_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, out = str(tmp_path / "parts"), tmp_path / "out"
    assert main(["split", str(file), "-o", parts, "--megabytes", "0.0015"]) == 0
    assert main(["collect", parts, str(tmp_path / "stage")]) == 0
    assert "pack.tar.xz: 3 parts, complete" in capsys.readouterr().out
    assert main(["join", str(tmp_path / "stage"), "-o", str(out)]) == 0
    assert (out / file.name).read_bytes() == file.read_bytes()
    next((tmp_path / "stage").iterdir()).unlink()
    assert main(["join", str(tmp_path / "stage"), "-o", str(out)]) == 1
    assert "error: " in capsys.readouterr().err
