"""Tables for people; whoever wants to parse something asks for JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from poss_export.evaluation.checks import Check

_LONG = 200  # characters of a fact; a table shows no more
_RESULTS = {True: "passed", False: "FAILED", None: "skipped"}


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Return a row for every value in nested facts."""
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(facts):
        table.add_row(name, escape(value))
    return table


def profile_table(profile: Mapping[str, Any]) -> Table:
    """Return a row for every latency in a report of `poss-export profile`."""
    table = Table("call", "context", "size", box=box.SIMPLE)
    for heading in ("median ms", "10 to 90 %", "tokens/s"):
        table.add_column(heading, justify="right")
    for call, size in (("prefill", "tokens"), ("verify", "width"), ("draft", "rows"), ("round", "width")):
        for row in profile[call]:
            table.add_row(
                call,
                f"{row['context']}",
                f"{row[size]} {size}",
                f"{row['median_ms']:.2f}",
                f"{row['p10_ms']:.2f} to {row['p90_ms']:.2f}",
                f"{row['tokens_per_second']:.0f}" if call in ("prefill", "verify") else "",
            )
    return table


def engines_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for every call that was measured by itself and in its session."""
    table = Table("call", "graph", box=box.SIMPLE, title="milliseconds")
    for heading in ("rows", "Polygraphy", "engine", "session", "loop adds"):
        table.add_column(heading, justify="right")
    for row in rows:
        times = (row["polygraphy_ms"], row["engine_ms"], row["session_ms"])
        added = row["session_ms"] - row["engine_ms"]
        table.add_row(
            row["call"], row["graph"], f"{row['rows']}", *(f"{time:.2f}" for time in times), f"{added:.2f}"
        )
    return table


def layers_table(calls: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for every kind of node, the times of each call in a column."""
    table = Table("node", box=box.SIMPLE, title="milliseconds")
    for call in calls:
        table.add_column(f"{call['call']}, {call['rows']} rows", justify="right")
    kinds = sorted(
        {kind for call in calls for kind in call["kinds"]},
        key=lambda kind: -max(call["kinds"].get(kind, 0.0) for call in calls),
    )
    for kind in kinds:
        table.add_row(
            kind, *(f"{call['kinds'][kind]:.2f}" if kind in call["kinds"] else "" for call in calls)
        )
    table.add_row("all nodes", *(f"{call['milliseconds']:.2f}" for call in calls))
    return table


def heaviest_table(call: Mapping[str, Any]) -> Table:
    """Return a row for each of the nodes of a call that take most."""
    table = Table(
        "node", "kind", box=box.SIMPLE, title=f"heaviest nodes: {call['call']}, {call['rows']} rows"
    )
    for heading in ("ms", "weights MB", "GB/s"):
        table.add_column(heading, justify="right")
    for node in call["heaviest"]:
        weights, speed = node["weight_bytes"] / 1e6, node["bytes_per_second"] / 1e9
        shown = (f"{weights:.1f}", f"{speed:.1f}") if node["weight_bytes"] else ("", "")
        table.add_row(escape(node["node"]), node["kind"], f"{node['milliseconds']:.3f}", *shown)
    return table


def bench_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a row for every category of questions, and one for all."""
    table = Table(box=box.SIMPLE)
    table.add_column("category", no_wrap=True)
    for heading in ("tau", "its mean", "tokens/s", "decoding", "equal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in figures.items():
        by_answer = row["tau_by_answer"]
        table.add_row(
            escape(name),
            f"{row['tau']:.2f}",
            "" if by_answer is None else f"{by_answer:.2f}",
            f"{row['tokens_per_second']:.1f} ({row['speedup']:.2f})",
            f"{row['decode_speed']:.1f} ({row['decode_speedup']:.2f})",
            f"{row['equal']} of {row['questions']}",
        )
    return table


def checks_table(checks: Sequence["Check"]) -> Table:
    """Return a row for every check."""
    table = Table("check", "result", "detail", box=box.SIMPLE)
    for check in checks:
        table.add_row(check.name, _RESULTS[check.passed], escape(check.detail))
    return table


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested facts as ("target.config.vocab_size", "49,152")."""
    for name, value in facts.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and not _is_long_list(value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = f"{value:,}" if type(value) is int else str(value)
            yield f"{prefix}{name}", text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _is_long_list(facts: Mapping[str, Any]) -> bool:
    """Whether facts are better shown as one, as the tensors that share memory in an engine."""
    return len(facts) > 10 and all(isinstance(value, str) for value in facts.values())
