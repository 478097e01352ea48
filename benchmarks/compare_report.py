"""What `benchmarks/compare.py` prints."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

Figures = Mapping[str, Any]  # of an engine, from `summary`
Kinds = Mapping[str, Mapping[str, Any]]  # from `by_kind`
ABREAST = 8  # kinds in one table: more would not fit
TABLE_WIDTH = 140  # characters

BY_KIND: dict[str, Callable[[Figures, int], str]] = {
    "tokens/s": lambda row, _: f"{row['tokens_per_second']:.1f}",
    "decode ratio": lambda row, _: f"{row['decode_ratio']:.2f}",
    "tau": lambda row, _: f"{row['tau']:.2f}",
    "equal": lambda row, prompts: f"{row['equal_answers']}/{prompts}",
}


def print_results(results: Mapping[str, Any]) -> None:
    """Print a table by precision, everybody's best, what each kind of text gave, and what differs."""
    kinds, qualities, prompts = results["kinds"], results["qualities"], len(results["prompts"])
    console = Console(width=TABLE_WIDTH)
    for quality, figures in results["precisions"].items():
        missing = [name for name in results["not_installed"] if qualities[name] == quality]
        console.print(whole(figures, quality, missing, prompts))
        console.print()
    if rest := [name for name in results["not_installed"] if qualities[name] not in results["precisions"]]:
        console.print(f"not installed: {', '.join(rest)}\n")
    if len(results["best"]) > 1:
        console.print(best_table(results["best"], qualities))
    names = list(kinds)
    for title, cell in BY_KIND.items() if len(names) > 1 else ():
        for start in range(0, len(names), ABREAST):
            shown = {name: kinds[name] for name in names[start : start + ABREAST]}
            console.print(f"\n{title} by kind of text")
            console.print(part(shown, qualities, cell))
    print_differences(results)


def print_differences(results: Mapping[str, Any]) -> None:
    """Print where answers part from the baseline's: of engines of its quality, the others part by nature."""
    baseline, qualities = results["baseline"], results["qualities"]
    places = [prompt["place"] for prompt in results["prompts"]]
    for row in results["figures"]:
        if row["first_differences"] and qualities[row["engine"]] == qualities[baseline]:
            found = (f"{places[prompt]}, token {token}" for prompt, token in row["first_differences"])
            click.echo(f"{row['engine']} differs from {baseline} in {'; '.join(found)}")


def whole(figures: Sequence[Figures], quality: str, missing: Sequence[str], prompts: int) -> Table:
    """Return figures of one quality as a table; engines that are not installed have a row too.

    Ratios and *equal* are to its target-only; *own*: answers that are the engine's without speculation.
    """
    headings = ["tokens/s", "range", "ratio", "prefill", "decode", "decode ratio", "tau", "equal", "own"]
    result = _table(headings)
    for row in figures:
        speeds, own = row["tokens_per_second_by_repeat"], row["equal_to_plain"]
        result.add_row(
            row["engine"],
            quality,
            f"{row['tokens_per_second']:.1f}",
            f"{min(speeds):.1f}-{max(speeds):.1f}",
            f"{row['ratio']:.2f}",
            f"{row['prefill_tokens_per_second']:.0f}",
            f"{row['decode_tokens_per_second']:.1f}",
            f"{row['decode_ratio']:.2f}",
            f"{row['tau']:.2f}",
            f"{row['equal_answers']}/{prompts}",
            "" if own is None else f"{own}/{prompts}",
        )
    for name in missing:
        result.add_row(name, quality, "not installed")
    return result


def best_table(rows: Sequence[Figures], qualities: Mapping[str, str]) -> Table:
    """Return everybody's fastest row; ratios are to ours."""
    result = _table(["tokens/s", "ratio", "decode", "tau"])
    for row in rows:
        result.add_row(
            row["engine"] if row["engine"].startswith(row["maker"]) else f"{row['maker']}, {row['engine']}",
            qualities[row["engine"]],
            f"{row['tokens_per_second']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['decode_tokens_per_second']:.1f}",
            f"{row['tau']:.2f}",
        )
    return result


def part(kinds: Kinds, qualities: Mapping[str, str], cell: Callable[[Figures, int], str]) -> Table:
    """Return one figure of every engine, a column for each kind."""
    result = _table(list(kinds))
    for rows in zip(*(kind["figures"] for kind in kinds.values()), strict=True):
        name = rows[0]["engine"]
        cells = (cell(row, kind["prompts"]) for row, kind in zip(rows, kinds.values(), strict=True))
        result.add_row(name, qualities[name], *cells)
    return result


def _table(headings: Iterable[str]) -> Table:
    result = Table(box=None, pad_edge=False, collapse_padding=True)
    result.add_column("engine", no_wrap=True)
    result.add_column("quality", no_wrap=True)
    for heading in headings:
        result.add_column(heading, no_wrap=True, justify="right")
    return result
