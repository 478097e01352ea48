"""The engines that are compared, each as a function from a prompt's ids to a timed greedy answer.

Those of `ENGINES` whose quality is "fp32" compute in float32 with the same weights. All decode one sequence,
and stop at the same tokens. Prompts come as ids; ours decodes its answer to text as it goes, the others do
not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.answers import Answer, Engine
from benchmarks.peer_engines import (
    GENAI_NGRAMS,
    dejavuu,
    llama_cpp,
    onnxruntime_genai,
    openvino_genai,
    transformers,
)
from benchmarks.peers import Peers
from benchmarks.workers import Setup
from poss_export.errors import InputError
from poss_export.runtime.planning.planner import ADAPTIVE, Planning


def target_only(setup: Setup) -> Engine:
    """Our bundle, decoding with its target alone."""
    return _ours(setup, target_only=True)


def speculative(setup: Setup) -> Engine:
    """Our bundle, through draft and verify, each round planned."""
    return _ours(setup, target_only=False)


def fixed_tree(setup: Setup) -> Engine:
    """Our bundle, verifying the drafter's whole tree every round."""
    return _ours(setup, target_only=False, planning=None)


def _ours(setup: Setup, target_only: bool, planning: Planning | None = ADAPTIVE) -> Engine:
    from poss_export.evaluation.answers import answer
    from poss_export.runtime.bundle import open_bundle

    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends

    def ours(ids: list[int], max_new_tokens: int) -> Answer:
        made = answer(bundle, ids, max_new_tokens, target_only=target_only, planning=planning)
        times = made.prefill_seconds, made.seconds
        return Answer(
            list(made.token_ids), *times, made.rounds, made.target_seconds, made.draft_seconds, made.chains
        )

    return ours


@dataclass(frozen=True)
class Kind:
    """An engine to compare: whose it is, what it needs, how it opens, its files, and what it computes in.

    `files` and `quality` are None where the bundle says both. `plain`: which engine it is without its own
    speculation.
    """

    maker: str
    module: str
    open: Callable[[Setup], Engine]
    files: Callable[[Peers], Path] | None = None
    quality: str | None = None  # one of the values of `QUALITY`: engines are compared with those of their own
    plain: str | None = None


FULL, HALF, EIGHT, FOUR = "fp32", "16 bits", "8 bits", "4 bits"
QUALITY: dict[str, str] = {  # of what a graph computes in, `Manifest.label`
    "fp32": FULL,
    "fp16": HALF,
    "bf16": HALF,
    "w8a8": EIGHT,
    "w8a16": EIGHT,
    "w8a24": EIGHT,
    "w8a32": EIGHT,
    "int8": EIGHT,
    "fp8": EIGHT,
    "int4": FOUR,
}
OURS = "poss-export"
BASELINE = "target-only"  # ratios and equality are against it


def _transformers() -> Iterator[tuple[str, Kind]]:
    name, of = "transformers", ("transformers", "transformers")
    yield name, Kind(*of, transformers, Peers.hugging_face, FULL)
    drafting = partial(transformers, lookup=True)
    yield f"{name} lookup", Kind(*of, drafting, Peers.hugging_face, FULL, name)


def _genai() -> Iterator[tuple[str, Kind]]:
    of = "onnxruntime-genai", "onnxruntime_genai"
    for precision in ("fp32", "int8", "int4"):
        files = partial(Peers.genai, precision=precision)
        name, quality = f"onnxruntime-genai {precision}", QUALITY[precision]
        yield name, Kind(*of, onnxruntime_genai, files, quality)
        drafting = partial(onnxruntime_genai, speculation=GENAI_NGRAMS)
        yield f"{name} n-gram", Kind(*of, drafting, files, quality, name)


def _llama() -> Iterator[tuple[str, Kind]]:
    of = "llama.cpp", "llama_cpp"
    for name, float32_cache, files, quality in (
        ("llama.cpp fp32", True, Peers.gguf, FULL),
        ("llama.cpp Q8_0", False, partial(Peers.quantised_gguf, kind="Q8_0"), EIGHT),
    ):
        plain = partial(llama_cpp, float32_cache=float32_cache)
        yield name, Kind(*of, plain, files, quality)
        yield f"{name} lookup", Kind(*of, partial(plain, lookup=True), files, quality, name)


def _openvino() -> Iterator[tuple[str, Kind]]:
    of = "OpenVINO", "openvino_genai"
    for name, float32, weights, quality in (
        ("OpenVINO fp32", True, "fp32", FULL),
        ("OpenVINO default", False, "fp32", HALF),
        ("OpenVINO int8", False, "int8", EIGHT),
    ):
        plain = partial(openvino_genai, float32=float32)
        files = partial(Peers.openvino, weights=weights)
        yield name, Kind(*of, plain, files, quality)
        yield f"{name} lookup", Kind(*of, partial(plain, lookup=True), files, quality, name)


def _dejavuu() -> Iterator[tuple[str, Kind]]:
    of = "dejavuu", "dejavuu"
    for variant, quality in (("fp32", FULL), ("int8", EIGHT), ("q4", FOUR)):
        name, plain = f"dejavuu {variant}", partial(dejavuu, variant=variant)
        yield name, Kind(*of, plain, Peers.dejavuu, quality)
        yield f"{name} lookup", Kind(*of, partial(plain, lookup=True), Peers.dejavuu, quality, name)


ENGINES = {
    BASELINE: Kind(OURS, "onnxruntime", target_only),
    "speculative": Kind(OURS, "onnxruntime", speculative, plain=BASELINE),
    "fixed tree": Kind(OURS, "onnxruntime", fixed_tree, plain=BASELINE),
    **dict(_transformers()),
    **dict(_genai()),
    **dict(_llama()),
    **dict(_openvino()),
    **dict(_dejavuu()),
}


@dataclass(frozen=True)
class Contestant:
    """An engine in a comparison; `bundle` is ours, None for a peer. `plain` names another contestant."""

    kind: Kind
    bundle: Path | None
    quality: str
    plain: str | None


def line_up(bundles: Mapping[Path, str], only: Sequence[str]) -> dict[str, Contestant]:
    """Return the contestants by name: engines of `ENGINES`, or those of them in `only`.

    bundles: what the target of each computes in, `Manifest.label`. Where there are several, ours are in the
    comparison with each, and named after it.

    Raises:
        InputError: two bundles compute in the same.
    """
    if len({*bundles.values()}) < len(bundles):
        raise InputError(f"the bundles compute in {', '.join(bundles.values())}: name one of each precision")
    found = {}
    for name in only or ENGINES:
        kind = ENGINES[name]
        if kind.quality is not None:
            found[name] = Contestant(kind, None, kind.quality, kind.plain)
            continue
        for bundle, label in bundles.items():
            end = f" {label}" if len(bundles) > 1 else ""
            plain = kind.plain and f"{kind.plain}{end}"
            found[f"{name}{end}"] = Contestant(kind, bundle, QUALITY[label], plain)
    return found


def is_baseline(name: str) -> bool:
    """Whether a contestant of this name is what ratios and equality are against."""
    return name == BASELINE or name.startswith(f"{BASELINE} ")
