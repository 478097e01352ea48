"""`poss-export calibrate`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poss_export.cli import options
from poss_export.cli.printing import print_json
from poss_export.cli.progress import show_progress

if TYPE_CHECKING:
    from poss_export.acceptance import AcceptanceCurves
    from poss_export.calibration.record import Record

_FITS = ("before", "after")  # of an acceptance calibration

_ANSWERS = (
    options.prompts(default="the target invents some"),
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
    from poss_export.calibration.calibrate import CalibrateRequest
    from poss_export.calibration.calibrate import calibrate as run
    from poss_export.prompts import as_prompts

    request = CalibrateRequest(
        bundle=bundle,
        record=record,
        prompts=tuple(as_prompts(prompt)),
        prompts_file=prompts,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        seed=seed,
        threads=threads,
        acceptance=acceptance,
        plot=plot,
        force=force,
        argv=tuple(ctx.meta["argv"]),
    )
    with show_progress() as progress:
        made = run(request, progress)
    _print_record(record, made.record, made.acceptance, as_json)
    made.refused.check()


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
