"""The engines that are compared, each as a function from a prompt's ids to a timed greedy answer.

Those of `ENGINES` whose quality is "fp32" compute in float32 with the same weights. All decode one sequence,
and stop at the same tokens. Prompts come as ids; ours decodes its answer to text as it goes, the others do
not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.answers import Answer, Engine
from benchmarks.peer_engines import GENAI_NGRAMS, llama_cpp, onnxruntime_genai, openvino_genai, transformers
from benchmarks.peers import Peers
from benchmarks.workers import Setup
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
    """An engine to compare: what it needs, how it opens, which files it reads, and what it computes in.

    `files` and `quality` are None where the bundle says both.
    """

    module: str
    open: Callable[[Setup], Engine]
    files: Callable[[Peers], Path] | None = None
    quality: str | None = None  # one of the values of `QUALITY`: engines are compared with those of their own


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


def _genai() -> Iterator[tuple[str, Kind]]:
    for precision in ("fp32", "int8", "int4"):
        files = partial(Peers.genai, precision=precision)
        name, quality = f"onnxruntime-genai {precision}", QUALITY[precision]
        yield name, Kind("onnxruntime_genai", onnxruntime_genai, files, quality)
        drafting = partial(onnxruntime_genai, speculation=GENAI_NGRAMS)
        yield f"{name} n-gram", Kind("onnxruntime_genai", drafting, files, quality)


def _llama() -> Iterator[tuple[str, Kind]]:
    for name, float32_cache, files, quality in (
        ("llama.cpp fp32", True, Peers.gguf, FULL),
        ("llama.cpp Q8_0", False, partial(Peers.quantised_gguf, kind="Q8_0"), EIGHT),
    ):
        plain = partial(llama_cpp, float32_cache=float32_cache)
        yield name, Kind("llama_cpp", plain, files, quality)
        yield f"{name} lookup", Kind("llama_cpp", partial(plain, lookup=True), files, quality)


def _openvino() -> Iterator[tuple[str, Kind]]:
    for name, float32, weights, quality in (
        ("OpenVINO fp32", True, "fp32", FULL),
        ("OpenVINO default", False, "fp32", HALF),
        ("OpenVINO int8", False, "int8", EIGHT),
    ):
        plain = partial(openvino_genai, float32=float32)
        files = partial(Peers.openvino, weights=weights)
        yield name, Kind("openvino_genai", plain, files, quality)
        yield f"{name} lookup", Kind("openvino_genai", partial(plain, lookup=True), files, quality)


ENGINES = {
    "target-only": Kind("onnxruntime", target_only),
    "speculative": Kind("onnxruntime", speculative),
    "fixed tree": Kind("onnxruntime", fixed_tree),
    "transformers": Kind("transformers", transformers, Peers.hugging_face, FULL),
    **dict(_genai()),
    **dict(_llama()),
    **dict(_openvino()),
}
BASELINE = "target-only"  # ratios and equality are against it
