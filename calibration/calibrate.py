"""Calibration from a request to files: recorded samples, and what the drafter's scores are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poss_export.acceptance import AcceptanceCurves
from poss_export.calibration.acceptance_fit import from_record
from poss_export.calibration.invented_prompts import invent_prompts
from poss_export.calibration.record import Record, save_record
from poss_export.calibration.recording import open_to_record, record_prompts
from poss_export.errors import InputError
from poss_export.files import check_file
from poss_export.plots import check_plot, plot_acceptance
from poss_export.progress import Progress, silent
from poss_export.prompts import Prompt, Refused, as_prompts, read_prompts

INVENTED = 32  # prompts, where none are given


@dataclass(frozen=True)
class CalibrateRequest:
    """What a bundle is asked, and where the results go.

    Attributes:
        bundle: a folder that `poss-export build` wrote.
        record: the file to write the samples to.
        prompts: what is asked; without these and without a file of them the target invents some.
        prompts_file: JSON Lines, asked behind `prompts`.
        num_prompts: ask so many; None takes all that are given, or `INVENTED`.
        max_new_tokens: the longest answer.
        seed: of invented prompts.
        threads: of ONNX Runtime; None leaves the number to it.
        acceptance: a JSON file for what the drafter's scores are worth.
        plot: a PNG file to draw that to.
        force: replace files that are there.
        argv: the command, noted in the record.
    """

    bundle: Path
    record: Path
    prompts: tuple[Prompt, ...] = ()
    prompts_file: Path | None = None
    num_prompts: int | None = None
    max_new_tokens: int = 64
    seed: int = 0
    threads: int | None = None
    acceptance: Path | None = None
    plot: Path | None = None
    force: bool = False
    argv: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether acceptance is fitted."""
        return self.acceptance is not None or self.plot is not None


@dataclass(frozen=True)
class Calibrated:
    """What was recorded, the fit where it was asked for, and prompts that could not be answered."""

    record: Record
    acceptance: AcceptanceCurves | None
    refused: Refused


def calibrate(request: CalibrateRequest, progress: Progress = silent) -> Calibrated:
    """Let a bundle answer prompts greedily on the CPU; write the record, and the fit where asked for.

    All is checked before the first answer, and nothing is written before the last.

    Raises:
        InputError: an output or a prompt cannot be used, or there are too few rounds for a fit.
        PossExportError: the bundle cannot be opened, as `open_bundle` says.
    """
    check_outputs(request)
    prompts = _read_prompts(request)
    with open_to_record(request.bundle, request.threads, with_drafter=request.fits) as bundle:
        if not prompts:
            invented = invent_prompts(bundle, request.num_prompts or INVENTED, request.seed, progress)
            prompts = as_prompts(invented)
        refused, longest = Refused(len(prompts)), request.max_new_tokens
        record = record_prompts(
            bundle, prompts, longest, refused=refused, argv=request.argv, progress=progress
        )
    curves = from_record(record) if request.fits else None
    save_record(record, request.record)
    if curves is not None and request.acceptance is not None:
        curves.save(request.acceptance)
    if curves is not None and request.plot is not None:
        plot_acceptance(curves, request.plot)
    return Calibrated(record, curves, refused)


def check_outputs(request: CalibrateRequest) -> None:
    """Raise InputError where an output cannot be written."""
    outputs = [path for path in (request.record, request.acceptance, request.plot) if path is not None]
    for number, path in enumerate(outputs):
        _check_output(path, request.force, outputs[:number])
    if request.plot is not None:
        check_plot(request.plot)


def _check_output(path: Path, force: bool, others: Sequence[Path]) -> None:
    """Raise InputError where no file can be written to `path`, or another output goes there too."""
    if path in others:
        raise InputError(f"{str(path)!r} is named for two outputs; name two files")
    check_file(path)
    if path.exists() and not force:
        raise InputError(f"{str(path)!r} exists: choose another file, or replace it", options=("force",))


def _read_prompts(request: CalibrateRequest) -> list[Prompt]:
    file = request.prompts_file
    return [*request.prompts, *(() if file is None else read_prompts(file))][: request.num_prompts]
