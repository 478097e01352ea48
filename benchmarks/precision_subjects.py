"""What `benchmarks/precision.py` measures: bundles of one target, and peers in several precisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.answers import Engine
from benchmarks.call_costs import WIDTHS
from benchmarks.compare import open_peers
from benchmarks.peer_engines import llama_cpp, onnxruntime_genai
from benchmarks.peers import Peers, genai_builder
from benchmarks.scorers import Scorer, genai_logits, llama_logits
from benchmarks.workers import Setup
from poss_export.errors import InputError
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, Manifest, read_manifest


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
    return Peer("llama_cpp", files, llama_cpp, llama_logits, made_by)


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


def peer_setups(names: Sequence[str], reference: Ours, target: str | None, cache: Path) -> dict[str, Setup]:
    """Return what each peer is opened with; their files are made where they are not there yet."""
    if not names:
        return {}
    made = open_peers(reference.manifest, target, cache)
    return {name: replace(reference.setup, model=PEERS[name].files(made)) for name in names}
