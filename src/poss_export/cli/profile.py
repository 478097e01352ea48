"""`poss-export profile`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import log, print_json, print_rich
from poss_export.cli.progress import show_progress
from poss_export.engine_spec import Backend
from poss_export.errors import InputError

if TYPE_CHECKING:
    from poss_export.runtime.bundle import Bundle
    from poss_export.runtime.sessions.ort import Provider

_CALLS = (
    click.option(
        "--width",
        "widths",
        type=click.IntRange(1),
        multiple=True,
        show_default="1, 2, 4, ... 32 and the tree",
        help="Tokens of a target call; repeatable.",
    ),
    click.option(
        "--context",
        "contexts",
        type=click.IntRange(1),
        multiple=True,
        show_default="128 and 1024",
        help="Tokens in the cache before a call; repeatable.",
    ),
    click.option("--repeats", type=click.IntRange(1), default=20, help="Calls of each kind."),
)
_OUTPUT = (
    click.option(
        "--engine-only",
        is_flag=True,
        help="Run the graphs of an answer's first calls under Polygraphy, too, and tell what the loop adds.",
    ),
    click.option(
        "--layers", is_flag=True, help="Measure kinds of node and the heaviest nodes of calls on the CPU."
    ),
    click.option(
        "--save",
        is_flag=True,
        help="Measure rounds too, and keep what they cost for `generate` to plan by, in place of its own "
        "quick measurement.",
    ),
    options.plot("Draw latency by width."),
    options.json_flag("Print a JSON object, defined in docs/engines.md."),
)


@options.headed({"Calls": _CALLS, "Engine": options.ENGINE, "Output": _OUTPUT})
@click.command(cls=options.HeadedCommand, short_help="Measure how long the calls of a bundle take.")
@options.BUNDLE
def profile(
    bundle: Path,
    widths: tuple[int, ...],
    contexts: tuple[int, ...],
    repeats: int,
    engine_only: bool,
    layers: bool,
    save: bool,
    plot: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how long the calls of BUNDLE take: prefill, verification by width, drafting, whole rounds."""
    from poss_export.costs import check_kept
    from poss_export.evaluation.latency import profile_bundle
    from poss_export.plots import check_plot, plot_profile
    from poss_export.runtime.bundle import open_bundle
    from poss_export.runtime.sessions.facts import engine_facts

    if plot is not None:
        check_plot(plot)
    if save:
        check_kept()
    if (layers or engine_only) and (save or (backend, provider) != ("onnxruntime", "cpu")):
        raise InputError(
            "graphs by themselves are measured in ONNX Runtime on the CPU, and nothing of it is kept: leave "
            "backend, provider and save as they are",
            options=("backend", "provider", "save"),
        )
    if layers:
        _profile_layers(bundle, threads, repeats, plot, as_json)
        return
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend) as engines:
        if engine_only:
            _profile_engines(engines, threads, repeats, as_json)
            return
        values = profile_bundle(
            engines, widths=widths or None, contexts=contexts or None, repeats=repeats, report=log
        )
        if save:
            _save_costs(engines)
    values["engine"] = engine_facts(backend, provider, threads)
    if plot is not None:
        plot_profile(values, plot)
    if as_json:
        print_json(values)
        return
    from poss_export.cli.tables import profile_table

    print_rich(profile_table(values))


def _profile_layers(
    bundle: Path, threads: int | None, repeats: int, plot: Path | None, as_json: bool
) -> None:
    """Measure nodes, and print and draw that."""
    from poss_export.cli.tables import heaviest_table, layers_table
    from poss_export.evaluation.layers import profile_layers
    from poss_export.plots import plot_layers

    calls = profile_layers(bundle, repeats, threads)
    if plot is not None:
        plot_layers(calls, plot)
    if as_json:
        print_json({"calls": calls})
        return
    print_rich(layers_table(calls))
    for call in calls:
        print_rich(heaviest_table(call))


def _profile_engines(engines: "Bundle", threads: int | None, repeats: int, as_json: bool) -> None:
    """Measure the graphs by themselves, and print that."""
    from poss_export.cli.tables import engines_table
    from poss_export.evaluation.engine_only import engine_times
    from poss_export.runtime.sessions.ort import OrtOptions

    ids = engines.encode(options.PROMPT, raw=not engines.chats)
    rows = engine_times(engines, ids, OrtOptions(threads=threads), repeats)
    if as_json:
        print_json({"calls": rows})
        return
    print_rich(engines_table(rows))


def _save_costs(engines: "Bundle") -> None:
    """Measure what rounds cost with care, and keep it."""
    from poss_export.costs import cached_costs, keep
    from poss_export.runtime.planning.measure import CAREFUL

    with show_progress() as progress:
        costs = engines.planners.measure(CAREFUL, progress)
    if (path := keep(costs)) is None:
        raise InputError(f"cannot write {str(cached_costs(costs.fingerprint))!r}: set XDG_CACHE_HOME")
    plain, *wider = costs.rounds[0]
    rows = ", ".join(f"{w} rows {ms / plain:.2f}" for w, ms in zip(costs.widths[1:], wider, strict=True))
    draft = f", a draft call {costs.draft(1) / plain:.2f}" if costs.rows else ""
    log(f"a plain step takes {plain:.1f} ms; in plain steps {rows}{draft}; kept in {path}")
