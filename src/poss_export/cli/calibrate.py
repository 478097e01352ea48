"""`poss-export calibrate`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poss_export.cli import options
from poss_export.cli.printing import print_json
from poss_export.cli.progress import show_progress
from poss_export.errors import InputError

if TYPE_CHECKING:
    from poss_export.calibration.acceptance import AcceptanceCurves
    from poss_export.calibration.record import Record

_FITS = ("before", "after")  # of an acceptance calibration

_ANSWERS = (
    options.prompts("the target invents some"),
    click.option(
        "--num-prompts",
        type=click.IntRange(1),
        show_default="32 invented ones, or all given ones",
        help="Record so many answers.",
    ),
    click.option("--max-new-tokens", type=click.IntRange(1), default=64, help="Longest answer, in tokens."),
    click.option("--seed", type=click.IntRange(0), default=0, help="Of invented prompts."),
    options.THREADS,
)
_OUTPUT = (
    click.option("-o", "--output", "record", metavar="RECORD", type=options.FILE, required=True),
    click.option(
        "--acceptance",
        metavar="FILE.json",
        type=options.FILE,
        help="Write what the drafter's scores are worth, as docs/acceptance-calibration.md defines it.",
    ),
    options.plot("Draw it: reliability by depth."),
    options.FORCE,
    options.json_flag(),
)


@options.headed({"Answers": _ANSWERS, "Output": _OUTPUT})
@click.command(cls=options.HeadedCommand, short_help="Record real rounds of a bundle, to quantise by.")
@options.BUNDLE
@click.argument("prompt", nargs=-1)
@click.pass_context
def calibrate(
    ctx: click.Context,
    bundle: Path,
    prompt: tuple[str, ...],
    prompts: Path | None,
    num_prompts: int | None,
    max_new_tokens: int,
    seed: int,
    threads: int | None,
    record: Path,
    acceptance: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Record in RECORD what draft/verify rounds of BUNDLE feed its graphs: samples for calibration.

    The bundle answers the prompts greedily on the CPU. Without prompts the target invents some.
    """
    from poss_export.calibration.acceptance import from_record, save_acceptance
    from poss_export.calibration.prompts import invent_prompts
    from poss_export.calibration.record import check_output, open_to_record, record_rounds, save_record
    from poss_export.plots import check_plot, plot_acceptance
    from poss_export.prompts import read_prompts

    outputs = [path for path in (record, acceptance, plot) if path is not None]
    for path in outputs:
        check_output(path, force, [other for other in outputs if other is not path])
    if plot is not None:
        check_plot(plot)
    asked = [*prompt, *(read_prompts(prompts) if prompts else ())][:num_prompts]
    if prompts is not None and not asked:
        raise InputError(f"{str(prompts)!r} is empty; write prompts into it, or leave it out to invent some")
    opened = open_to_record(bundle, threads, with_drafter=acceptance is not None or plot is not None)
    with opened as engines, show_progress() as progress:
        asked = asked or invent_prompts(engines, num_prompts or 32, seed, progress)
        ids = [engines.encode(text, raw=engines.manifest.text.chat_template is None) for text in asked]
        made = record_rounds(engines, ids, max_new_tokens, argv=ctx.meta["argv"], progress=progress)
    fitted = from_record(made) if acceptance is not None or plot is not None else None
    save_record(made, record)
    if fitted is not None and acceptance is not None:
        save_acceptance(fitted, acceptance)
    if fitted is not None and plot is not None:
        plot_acceptance(fitted.to_dict(), plot)
    _print_record(record, made, fitted, as_json)


def _print_record(path: Path, record: "Record", acceptance: "AcceptanceCurves | None", as_json: bool) -> None:
    facts: dict[str, Any] = {
        "record": str(path),
        "sha256": record.sha256,
        "dialogues": len(record.dialogues),
        "rounds": len(record.rounds),
        "tokens": record.tokens,
        "tau": record.tau,
    }
    errors = None if acceptance is None else {name: asdict(getattr(acceptance, name)) for name in _FITS}
    if as_json:
        print_json({**facts, "acceptance": errors})
        return
    click.echo(
        f"{path}: {facts['dialogues']} dialogues, {facts['rounds']} rounds, {facts['tokens']} tokens, "
        f"tau {record.tau:.2f}, sha256 {record.sha256}"
    )
    if errors is not None:
        ece, brier = ([errors[fit][figure] for fit in _FITS] for figure in ("ece", "brier"))
        click.echo(
            f"acceptance: expected calibration error {ece[0]:.4f}, fitted {ece[1]:.4f}; "
            f"Brier score {brier[0]:.4f}, fitted {brier[1]:.4f}"
        )
