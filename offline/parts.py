"""Files in parts that say themselves where they belong; needs nothing but Python.

A part NAME.000, NAME.001, ... is one line of JSON, then its share of the bytes. So parts can travel one by
one, in any order, and whoever has them all can tell.

    python -m offline.parts split FILE -o FOLDER --megabytes 55
    python -m offline.parts collect FOLDER STAGE        # copy what has arrived, say what is missing
    python -m offline.parts join FOLDER -o FOLDER
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MEGABYTE = 1_000_000
_LONGEST_HEADER = 1000  # bytes
_BLOCK = 1 << 20


class PartsError(Exception):
    """Parts are missing, damaged, or of different files."""


@dataclass(frozen=True)
class Part:
    """The first line of a part: part `number` of `count` of file `name`, whose hash is `whole`."""

    name: str
    number: int
    count: int
    sha256: str  # of this part's bytes
    whole: str

    @property
    def file(self) -> str:
        """The part's own file name."""
        return f"{self.name}.{self.number:03}"


def split(file: Path, folder: Path, most: int) -> list[Path]:
    """Write `file` as parts of at most `most` bytes into `folder`, in place of older parts of its name."""
    room = most - _LONGEST_HEADER
    if room < 1:
        raise PartsError(f"parts of {most} bytes have no room; give at least {_LONGEST_HEADER + 1}")
    count = max(1, -(-file.stat().st_size // room))
    whole, written = _hash(file), []
    for old in folder.glob(f"{file.name}.[0-9][0-9][0-9]"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source:
        for number in range(count):
            body = source.read(room)
            part = Part(file.name, number, count, hashlib.sha256(body).hexdigest(), whole)
            written.append(folder / part.file)
            _write(written[-1], json.dumps(asdict(part)).encode() + b"\n" + body)
    return written


def read_part(path: Path) -> tuple[Part, bytes]:
    """Return a part's header and its bytes.

    Raises PartsError where it is no part, or its bytes are not those that were written.
    """
    with path.open("rb") as file:
        line, body = file.readline(_LONGEST_HEADER), file.read()
    try:
        part = Part(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise PartsError(f"{path} is no part of a file; give the folder that `split` wrote") from error
    if hashlib.sha256(body).hexdigest() != part.sha256:
        raise PartsError(f"{path} is damaged: its bytes are not those that were written; send it again")
    return part, body


def parts_in(folder: Path) -> dict[str, list[Path]]:
    """Return the files of `folder` that are named like parts, by the name of the whole, in order."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix[1:].isdecimal() and len(path.suffix) == 4:
            found.setdefault(path.stem, []).append(path)
    return found


def missing(paths: Sequence[Path]) -> list[int]:
    """Return the numbers of the parts that are not among `paths`, which belong to one file."""
    headers = [read_part(path)[0] for path in paths]
    return sorted(set(range(headers[0].count)) - {header.number for header in headers})


def join(folder: Path, out: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write the whole files of the parts in `folder`, or those of `names`, into `out`; return them.

    Raises PartsError where a part is missing or damaged; files that are whole are not written then either.
    """
    found = parts_in(folder)
    if unknown := set(names) - found.keys() or (set() if found else {"any file"}):
        raise PartsError(f"{folder} holds no parts of {', '.join(sorted(unknown))}")
    chosen = {name: found[name] for name in names or found}
    for name, paths in chosen.items():
        if numbers := missing(paths):
            raise PartsError(f"{folder} lacks parts {', '.join(map(str, numbers))} of {name}: send them")
    out.mkdir(parents=True, exist_ok=True)
    return [_join_one(paths, out / name) for name, paths in chosen.items()]


def _join_one(paths: Sequence[Path], target: Path) -> Path:
    partial, digest, wholes = target.with_name(target.name + ".partial"), hashlib.sha256(), set()
    with partial.open("wb") as file:
        for part, body in map(read_part, paths):
            file.write(body)
            digest.update(body)
            wholes.add(part.whole)
    if wholes != {digest.hexdigest()}:
        partial.unlink()
        raise PartsError(f"the parts of {target.name} belong to different files: send all of one packing")
    partial.replace(target)
    return target


def collect(folder: Path, stage: Path) -> Iterator[str]:
    """Copy the parts in `folder` to `stage`; yield a line on each file that has parts there."""
    stage.mkdir(parents=True, exist_ok=True)
    for paths in parts_in(folder).values():
        for path in paths:
            shutil.copy2(path, stage)
    for name, paths in parts_in(stage).items():
        numbers = missing(paths)
        lacking = f"lacks {', '.join(map(str, numbers))}" if numbers else "complete"
        yield f"{name}: {len(paths)} parts, {lacking}"


def _hash(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all: parts are fetched while others are written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m offline.parts", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split", help="write a file as parts")
    splitting.add_argument("file", type=Path)
    splitting.add_argument("--megabytes", type=float, default=55)
    collecting = commands.add_parser("collect", help="copy the parts that have arrived")
    collecting.add_argument("folder", type=Path)
    collecting.add_argument("stage", type=Path)
    joining = commands.add_parser("join", help="write the whole files of parts")
    joining.add_argument("folder", type=Path)
    for command in (splitting, joining):
        command.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        for line in _run(given):
            print(line)
    except (PartsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> Iterator[str]:
    if given.command == "collect":
        yield from collect(given.folder, given.stage)
        return
    if given.command == "split":
        written = split(given.file, given.output, int(given.megabytes * MEGABYTE))
    else:
        written = join(given.folder, given.output)
    for path in written:
        yield f"{path} {path.stat().st_size / MEGABYTE:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
