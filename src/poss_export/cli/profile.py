"""`poss-export profile`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli import options
from poss_export.cli.printing import log, print_json, print_rich
from poss_export.engine_spec import Backend

if TYPE_CHECKING:
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
    plot: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how long the calls of BUNDLE take: prefill, verification by width, drafting, whole rounds."""
    from poss_export.evaluation.latency import engine_facts, profile_bundle
    from poss_export.plots import check_plot, plot_profile
    from poss_export.runtime.bundle import open_bundle

    if plot is not None:
        check_plot(plot)
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend) as engines:
        values = profile_bundle(
            engines, widths=widths or None, contexts=contexts or None, repeats=repeats, report=log
        )
    values["engine"] = engine_facts(backend, provider, threads)
    if plot is not None:
        plot_profile(values, plot)
    if as_json:
        print_json(values)
        return
    from poss_export.cli.tables import profile_table

    print_rich(profile_table(values))
