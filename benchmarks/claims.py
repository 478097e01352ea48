"""Where every figure of README.md's tables comes from: one page, made from the result files of benchmarks.

    python -m benchmarks.claims > docs/report.md
    python -m benchmarks.claims --keep out/compare.json

`claims.toml` says of each table which file holds its figures, and where. A figure that the file does not say,
or a table that nobody accounts for, is refused.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import click

from benchmarks import environment
from poss_export.errors import InputError
from poss_export.files import parse_json, write_whole

ROOT = Path(__file__).parents[1]
README, CLAIMS, RESULTS = ROOT / "README.md", ROOT / "benchmarks/claims.toml", ROOT / "benchmarks/results"
NOT_KEPT = "measured before results were kept"

_SECTION = re.compile(r"^## Figures$(.*?)^## ", re.M | re.S)
_TABLE = re.compile(r"(?:^\|.*\|$\n)+", re.M)
_HEAD = """# Where the figures of the README come from

Made by `make report` from `benchmarks/claims.toml` and the files in `benchmarks/results`; where a file is
named, the README says what it says. "{not_kept}" is a figure that one has to take
on trust, or measure again with its command.

| table | row | column | figure | file | measured | command |
| --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Figure:
    """A figure in a table of the README."""

    table: str  # its headings
    row: str  # its label
    column: str
    text: str


def figures(readme: str) -> list[Figure]:
    """Return all cells with digits in the tables of the section on figures, but for labels."""
    section = _SECTION.search(readme)
    if section is None:
        raise InputError("the README has no section 'Figures'")
    found = []
    for block in _TABLE.findall(section[1]):
        headings, _, *rows = (_cells(line) for line in block.splitlines())
        for label, *cells in rows:
            for column, text in zip(headings[1:], cells, strict=True):
                if re.search(r"\d", text):
                    found.append(Figure(" / ".join(headings), label, column, text))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("**", "") for cell in line.strip("|").split("|")]


def report(readme: str, claims: Sequence[Mapping[str, Any]], results: Path) -> str:
    """Return the page.

    Raises:
        InputError: a figure has no claim, its file lacks it or says otherwise, or a claim has no table.
    """
    unused = {claim["table"] for claim in claims}
    lines = []
    for figure in figures(readme):
        claim = next((claim for claim in claims if claim["table"] == figure.table), None)
        if claim is None:
            raise InputError(
                f"no claim accounts for the table {figure.table!r} of the README; see {CLAIMS.name}"
            )
        unused.discard(figure.table)
        file, measured = _source(figure, claim, results)
        cells = (
            figure.table,
            figure.row,
            figure.column,
            figure.text,
            file,
            measured,
            f"`{claim['command']}`",
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    if unused:
        raise InputError(f"the README has no table {sorted(unused)[0]!r}; take its claim away")
    return _HEAD.format(not_kept=NOT_KEPT.capitalize()) + "".join(lines)


def _source(figure: Figure, claim: Mapping[str, Any], results: Path) -> tuple[str, str]:
    """Return the file of a figure, and when and on what it was measured."""
    if "file" not in claim:
        return NOT_KEPT, f"{claim['measured']}"
    values = parse_json((results / claim["file"]).read_bytes())
    where = f"row {figure.row!r}, column {figure.column!r} of the table {figure.table!r}"
    try:
        place = claim["rows"][figure.row]
        row = reduce(_step, place[figure.column] if isinstance(place, Mapping) else place, values)
        said = claim["columns"][figure.column].format_map(row)
    except (KeyError, StopIteration, TypeError, AttributeError) as error:
        raise InputError(f"{claim['file']} has nothing for {where}: {error!r}") from error
    if said != figure.text:
        raise InputError(f"the README says {figure.text!r}, {claim['file']} {said!r}: {where}")
    machine = values["environment"]
    return claim["file"], f"{machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores"


def _step(values: Any, step: str) -> Any:
    """Return what stands at a key, or the entry of a list where `name=value`."""
    if isinstance(values, list):
        name, _, wanted = step.partition("=")
        return next(entry for entry in values if str(entry[name]) == wanted)
    return values[step]


def keep(result: Path, results: Path = RESULTS) -> Path:
    """Keep a result file, without its answers and the machine's paths; return where."""
    values = parse_json(result.read_bytes())
    values.pop("answers", None)
    settings = values.get("settings", {})
    values["settings"] = {name: _without_folders(text) for name, text in settings.items()}
    write_whole(path := results / result.name, json.dumps(values, indent=1) + "\n")
    return path


def _without_folders(text: str) -> str:
    return re.sub(r"(?:[^\s/'\"(),]*/){2,}", "", text)  # out/bundle stays


def read_claims() -> Sequence[Mapping[str, Any]]:
    """Return the claims of `claims.toml`."""
    claims: Sequence[Mapping[str, Any]] = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["claim"]
    return claims


@click.command(help=__doc__.partition("\n")[0])
@click.option("--keep", "result", type=click.Path(exists=True, path_type=Path), help="Keep a result file.")
def main(result: Path | None) -> None:
    """Print the page, or keep a file."""
    if result is not None:
        click.echo(f"kept as {keep(result).relative_to(ROOT)}")
        return
    click.echo(report(README.read_text(encoding="utf-8"), read_claims(), RESULTS), nl=False)


if __name__ == "__main__":
    environment.run(main)
