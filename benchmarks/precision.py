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
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks import environment, questions
from benchmarks.compare import Row, measure, open_peers, summary
from benchmarks.contestants import (
    BASELINE,
    Engine,
    llama_cpp_by_default,
    onnxruntime_genai,
    speculative,
    target_only,
)
from benchmarks.peers import Peers, genai_builder
from benchmarks.precision_report import count_mismatches, plot_rows, print_rows
from benchmarks.quality import (
    Floats,
    Scorer,
    bundle_logits,
    genai_logits,
    judge,
    llama_logits,
    predictions,
    windows,
)
from benchmarks.questions import Question
from benchmarks.widths import WIDTHS, measure_widths
from benchmarks.workers import Setup, Worker
from poss_export.errors import InputError
from poss_export.evaluation.checks import Divergence, find_divergence
from poss_export.evaluation.quality import HELD_OUT
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, TOKENIZER, Manifest, read_manifest
from poss_export.plots import check_plot
from poss_export.runtime.bundle import open_bundle
from poss_export.text import Text

MODES: dict[str, Callable[[Setup], Engine]] = {BASELINE: target_only, "speculative": speculative}


@dataclass(frozen=True)
class Peer:
    """A peer in one precision."""

    module: str  # that it needs
    files: Callable[[Peers], Path]
    open: Callable[[Setup], Engine]
    logits: Callable[[Setup], Scorer]
    made_by: str  # for people: what wrote its files


def _genai(precision: str) -> Peer:
    files = partial(Peers.genai, precision=precision)
    made_by = " ".join(["python", *genai_builder(precision), "-i FOLDER -o FOLDER"])
    return Peer("onnxruntime_genai", files, onnxruntime_genai, genai_logits, made_by)


def _llama(gguf: str) -> Peer:
    files = partial(Peers.quantised_gguf, kind=gguf)
    made_by = f"llama_model_quantize to ftype {gguf}, unless the target's own file is of it"
    return Peer("llama_cpp", files, llama_cpp_by_default, llama_logits, made_by)


PEERS = {
    **{f"onnxruntime-genai {precision}": _genai(precision) for precision in ("fp32", "int8", "int4")},
    **{f"llama.cpp {gguf}": _llama(gguf) for gguf in ("Q8_0", "Q4_1", "Q4_K_M")},
}


@dataclass(frozen=True)
class Ours:
    """A bundle that is measured; `name` tells it from the others of the run."""

    name: str
    manifest: Manifest
    setup: Setup

    def engine(self, mode: str) -> str:
        """Return the name of its row in one of `MODES`."""
        return f"{self.name}, {mode}"

    def megabytes(self) -> dict[str, float]:
        """Return the size of each graph with its weights."""
        table = self.manifest.target.embedding.file
        sizes = {name: entry.size / 1e6 for name, entry in self.manifest.files.items()}
        target = sum(size for name, size in sizes.items() if name.startswith(TARGET_GRAPH) or name == table)
        draft = sum(size for name, size in sizes.items() if name.startswith(DRAFT_GRAPH))
        return {"target": target, "draft": draft}


@dataclass(frozen=True)
class Task:
    """What all are measured with."""

    asked: list[Question]
    tokens: int  # an answer has at most
    repeats: int  # of all answers
    texts: list[list[int]]  # windows of the held-out text
    past: int  # tokens behind which widths are timed
    calls: int  # of each width


def label(manifest: Manifest) -> str:
    """Return the precisions of a bundle's target and drafter, as people read them."""
    return f"{manifest.label('target')} / {manifest.label('draft')}"


def open_bundles(folders: Sequence[Path], threads: int) -> list[Ours]:
    """Read what is measured; a bundle is named by its precisions, and by its folder where two have the same.

    Raises:
        InputError: the bundles are not of one target, one has no drafter, or the first is not in fp32.
        BundleError: a bundle is damaged.
    """
    manifests = {folder: read_manifest(folder) for folder in folders}
    first, reference = next(iter(manifests.items()))
    labels = [label(manifest) for manifest in manifests.values()]
    if not labels[0].startswith("fp32"):
        raise InputError(
            f"quality is against the first bundle, which must be in fp32: {str(first)!r} is in {labels[0]}"
        )
    for folder, manifest in manifests.items():
        if manifest.target.sha256 != reference.target.sha256:
            raise InputError(
                f"{str(folder)!r} has the target {manifest.target.name!r}, which is another than that of "
                f"{str(first)!r}: bundles of one target are compared"
            )
        if manifest.drafter is None:
            raise InputError(f"{str(folder)!r} has no drafter to measure; build it with --drafter")
    found = []
    for (folder, manifest), name in zip(manifests.items(), labels, strict=True):
        setup = Setup(folder, manifest.text.stop_ids, manifest.capacity, threads)
        found.append(Ours(name if labels.count(name) == 1 else f"{name}, {folder}", manifest, setup))
    return found


def check_fit(bundles: Sequence[Ours], window: int, past: int) -> None:
    """Raise InputError where the windows, or calls behind `past` tokens, do not fit a bundle."""
    needed = max(window, past + max(WIDTHS))
    for ours in bundles:
        if needed > (capacity := ours.manifest.capacity):
            raise InputError(
                f"windows of {window} tokens and calls of {max(WIDTHS)} behind {past} need a capacity of "
                f"{needed}, {str(ours.setup.model)!r} has {capacity}: use a smaller --window or --past"
            )


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
            answers = (row.answers[0][prompt].tokens for row in (drafted, plain))
            divergence = find(asked[prompt].ids, *answers)
            assert divergence is not None
            found[asked[prompt].source] = asdict(divergence)
    return found


def prompt_tokens(asked: Sequence[Question]) -> int:
    """Return the tokens of all prompts."""
    return sum(len(question.ids) for question in asked)


def draft_milliseconds(drafted: Row) -> float:
    """Return the drafter's time of a mean round; the median of the repeats."""
    return 1000 * statistics.median(
        sum(a.draft_seconds for a in run) / max(sum(a.rounds for a in run), 1) for run in drafted.answers
    )


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
    cost = measure_widths({ours.name: ours.setup for ours in bundles}, task.past, task.calls)
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
    sys.exit(bool(count_mismatches(rows["bundles"])))


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


def peer_setups(names: Sequence[str], reference: Ours, target: str | None, cache: Path) -> dict[str, Setup]:
    """Return what each peer is opened with; their files are made where they are not there yet."""
    if not names:
        return {}
    made = open_peers(reference.manifest, target, cache)
    return {name: replace(reference.setup, model=PEERS[name].files(made)) for name in names}


if __name__ == "__main__":
    environment.run(main)
