"""What a precision costs and brings: size, cost by width, quality, speed and tau of bundles and peers.

    python -m benchmarks.precision FP32_BUNDLE BUNDLE ... --peers --json TABLE.json --plot TABLE.png

The bundles are of one target; quality is against the first, which is in fp32. Exits with 1 on a mismatch of
speculative with target-only tokens (benchmarks/lossless.py).
"""

import hashlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks import environment, questions
from benchmarks.answers import Engine
from benchmarks.call_costs import measure_calls
from benchmarks.compare import Row, measure, prompt_tokens, summary
from benchmarks.contestants import BASELINE, speculative, target_only
from benchmarks.divergences import count, judged
from benchmarks.precision_report import plot_rows, print_rows
from benchmarks.precision_subjects import PEERS, Ours, check_fit, label, open_bundles, peer_setups
from benchmarks.questions import Question
from benchmarks.scorers import Scorer, bundle_logits, predictions, windows
from benchmarks.workers import Setup, Worker
from poss_export.errors import InputError
from poss_export.evaluation.equality import Divergence, find_divergence
from poss_export.evaluation.held_out import HELD_OUT
from poss_export.evaluation.metrics import round_parts
from poss_export.evaluation.text_quality import Floats, judge
from poss_export.manifest import TOKENIZER
from poss_export.plots import check_plot
from poss_export.runtime.bundle import open_bundle
from poss_export.text import Text

MODES: dict[str, Callable[[Setup], Engine]] = {BASELINE: target_only, "speculative": speculative}


@dataclass(frozen=True)
class Task:
    """What all are measured with."""

    asked: list[Question]
    tokens: int  # an answer has at most
    repeats: int  # of all answers
    texts: list[list[int]]  # windows of the held-out text
    past: int  # tokens behind which widths are timed
    calls: int  # of each width


def measure_quality(
    openers: Mapping[str, tuple[Callable[[Setup], Scorer], Setup]], texts: list[list[int]]
) -> dict[str, dict[str, float]]:
    """Return the quality of each engine, one open at a time; the first one is the reference."""
    found: dict[str, dict[str, float]] = {}
    reference: list[Floats] = []
    for name, (opener, setup) in openers.items():
        with Worker(opener, setup) as scorer:
            reference = reference or list(predictions(scorer, texts))
            predicted = predictions(scorer, texts) if found else reference
            found[name] = asdict(judge(texts, reference, predicted))
    return found


def measure_speed(bundles: Sequence[Ours], peers: Mapping[str, Setup], task: Task) -> dict[str, Row]:
    """Return the answers of each bundle in each of `MODES` and of each peer, all made in turns."""
    openers = {ours.engine(mode): (MODES[mode], ours.setup) for ours in bundles for mode in MODES}
    openers |= {name: (PEERS[name].open, setup) for name, setup in peers.items()}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(opener, setup)) for name, (opener, setup) in openers.items()
        }
        rows = measure(workers, [question.ids for question in task.asked], task.tokens, task.repeats)
    return {row.name: row for row in rows}


def gaps(setup: Setup) -> Callable[..., Divergence | None]:
    """Return the function that finds where two answers of this bundle part, and by how little."""
    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends
    return partial(find_divergence, bundle.target)


def divergences(ours: Ours, plain: Row, drafted: Row, asked: Sequence[Question]) -> dict[str, Any]:
    """Return where speculative answers part from target-only, by question, as JSON values."""
    parted = [prompt for prompt, _ in drafted.differences(plain)]
    if not parted:
        return {}
    found = {}
    with Worker(gaps, ours.setup) as find:
        for prompt in parted:
            mine, other = (row.answers[0][prompt] for row in (drafted, plain))
            divergence = find(asked[prompt].ids, mine.token_ids, other.token_ids)
            assert divergence is not None
            found[asked[prompt].place] = judged(divergence, ours.manifest.exactness, mine.chains)
    return found


def draft_milliseconds(drafted: Row) -> float:
    """Return the drafter's time of a mean round; the median of the repeats."""
    return statistics.median(round_parts(run)["draft"] for run in drafted.answers)


def bundle_figures(
    ours: Ours, plain: Row, drafted: Row, reference: Row, asked: Sequence[Question]
) -> dict[str, Any]:
    """Return the figures of a bundle that come from its answers; ratios are to its own target-only."""
    alone, speculating = summary([plain, drafted], prompt_tokens(asked))
    speed = statistics.median(reference.speeds())
    for figures in (alone, speculating):
        figures["to_reference"] = figures["tokens_per_second"] / speed
    return {
        "name": ours.name,
        "folder": str(ours.setup.model),
        "precisions": label(ours.manifest),
        "megabytes": ours.megabytes(),
        "draft_milliseconds": draft_milliseconds(drafted),
        "target_only": alone,
        "speculative": speculating,
        "divergences": divergences(ours, plain, drafted, asked),
    }


def peer_figures(
    name: str, setup: Setup, row: Row, reference: Row, asked: Sequence[Question]
) -> dict[str, Any]:
    """Return the figures of a peer that come from its answers and its files."""
    _, figures = summary([reference, row], prompt_tokens(asked))
    files = [setup.model] if setup.model.is_file() else sorted(setup.model.glob("*.onnx*"))
    return {
        "name": name,
        "made_by": PEERS[name].made_by,
        "files": [str(file) for file in files],
        "megabytes": sum(file.stat().st_size for file in files) / 1e6,
        "to_reference": figures["ratio"],
        "target_only": figures,
    }


def measure_all(bundles: Sequence[Ours], peers: Mapping[str, Setup], task: Task) -> dict[str, Any]:
    """Return the rows of bundles and of peers, as JSON values."""
    cost = measure_calls({ours.name: (ours.manifest, ours.setup) for ours in bundles}, task.past, task.calls)
    scorers: dict[str, tuple[Callable[[Setup], Scorer], Setup]]
    scorers = {ours.name: (bundle_logits, ours.setup) for ours in bundles}
    scorers |= {name: (PEERS[name].logits, setup) for name, setup in peers.items()}
    quality = measure_quality(scorers, task.texts)
    answers = measure_speed(bundles, peers, task)
    reference = answers[bundles[0].engine(BASELINE)]
    own, others = [], []
    for ours in bundles:
        plain, drafted = (answers[ours.engine(mode)] for mode in MODES)
        figures = bundle_figures(ours, plain, drafted, reference, task.asked)
        own.append({**figures, **cost[ours.name], "quality": quality[ours.name]})
    for name, setup in peers.items():
        figures = peer_figures(name, setup, answers[name], reference, task.asked)
        others.append({**figures, "quality": quality[name]})
    return {"bundles": own, "peers": others}


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--peers", is_flag=True, help="Measure onnxruntime-genai and llama.cpp too.")
@click.option("--target", help="Checkpoint of the bundles' target, for the peers.  [default: as recorded]")
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of all answers.")
@click.option(
    "--text",
    "held_out",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=HELD_OUT,
    show_default="our own",
    help="Plain text that quality is measured on.",
)
@click.option("--window", type=click.IntRange(2), default=256, show_default=True, help="Tokens read at once.")
@click.option(
    "--past", type=click.IntRange(1), default=128, show_default=True, help="Tokens before timed calls."
)
@click.option("--calls", type=click.IntRange(1), default=20, show_default=True, help="Timed, of each width.")
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--cache", default="out/peers", type=click.Path(path_type=Path), help="Where peers' models go.")
@click.option("--json", "report", type=environment.REPORT, help="Write every figure here.")
@click.option("--plot", type=environment.REPORT, help="Draw quality against speed here, as PNG.")
def main(
    bundles: tuple[Path, ...],
    peers: bool,
    target: str | None,
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    repeats: int,
    held_out: Path,
    window: int,
    past: int,
    calls: int,
    threads: int,
    cache: Path,
    report: Path | None,
    plot: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    if plot is not None:
        check_plot(plot)
    ours = open_bundles(bundles, threads)
    check_fit(ours, window, past)
    reference = ours[0]
    text = Text((reference.setup.model / TOKENIZER).read_text(encoding="utf-8"), reference.manifest.text)
    ids = read_held_out(text, held_out)
    asked = questions.load(text, prompts, limit)
    task = Task(asked, max_new_tokens, repeats, windows(ids, window), past, calls)
    wanted = PEERS if peers else {}
    missing = [name for name, peer in wanted.items() if find_spec(peer.module) is None]
    setups = peer_setups([n for n in wanted if n not in missing], reference, target, cache)
    rows = measure_all(ours, setups, task)
    print_rows(rows, missing, len(asked))
    click.echo(
        f"{len(asked)} prompts, at most {max_new_tokens} new tokens, {repeats} repeats; "
        f"quality on {len(ids)} tokens of {held_out.name} in windows of {window}, against {reference.name}; "
        f"{calls} calls of each width behind {past} tokens; {threads} threads, {machine['processor']}; "
        f"load average before {machine['load_average']}"
    )
    if report is not None:
        told = {"tokens": len(ids), "sha256": hashlib.sha256(held_out.read_bytes()).hexdigest()}
        environment.write(report, machine, {"text": told, "not_installed": missing, **rows})
    if plot is not None:
        plot_rows(plot, rows)
    sys.exit(bool(count((row["divergences"] for row in rows["bundles"]), "mismatch")))


def read_held_out(text: Text, path: Path) -> list[int]:
    """Return the ids of the text in a file.

    Raises:
        InputError: the file is no text, or too short to predict a token of.
    """
    try:
        ids = text.encode(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no text ({error}); quality needs plain text in UTF-8") from error
    if len(ids) < 2:
        raise InputError(f"{str(path)!r} has {len(ids)} tokens; quality needs a text of at least 2")
    return ids


if __name__ == "__main__":
    environment.run(main)
