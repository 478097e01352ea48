"""Weights of Hugging Face folders, in safetensors or .bin files.

No remote code, no pickled objects: `.bin` files are read with `weights_only=True`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poss_export.config import TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.json_file import read_json
from poss_export.targets.methods import read_quantisation, stated_type
from poss_export.targets.packing import pack
from poss_export.targets.weights import FLOATS, Stored, Weight

Tensors = dict[str, Stored]  # by name

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, each perhaps with an index
DERIVED = "rotary_emb.inv_freq"  # old releases saved it; the configuration says the same


def published_name(folder: Path) -> str:
    """Return the name that a checkpoint was published as: that of its folder, unless a cache has named it."""
    folder = folder.resolve()
    # A download cache keeps a checkpoint as models--OWNER--NAME/snapshots/REVISION.
    return folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, safetensors before .bin, all shards present."""
    for name in _WEIGHTS:
        if (index := folder / f"{name}.index.json").is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise CheckpointError(
                    f"{folder}: {', '.join(missing)} is missing of {len(shards)} weight files; fetch it again"
                )
            return tuple(folder / shard for shard in shards)
        if (folder / name).is_file():
            return (folder / name,)
    raise CheckpointError(
        f"{folder}: no weights; expected {' or '.join(_WEIGHTS)}, or an index of their shards"
    )


def open_weights(files: tuple[Path, ...]) -> Tensors:
    """Return the tensors by name, not read yet; reads every file's header.

    Raises:
        CheckpointError: a file is truncated or not what its name says.
    """
    opened: Tensors = {}
    for path in files:
        with _damage_translated(path):
            opened |= _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
    return opened


def _open_safetensors(path: Path) -> Tensors:
    def facts(file: Any, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        shape = tuple(file.get_slice(name).get_shape())
        return shape, (file.get_slice(name)[:0] if shape else file.get_tensor(name)).dtype

    with _safetensors(path) as file:
        found = {name: facts(file, name) for name in file.keys()}  # noqa: SIM118

    def read(name: str, first: int, last: int) -> Tensor:
        # Opened anew each time: what is mapped and was read counts as memory until the file is closed.
        with _damage_translated(path), _safetensors(path) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor[first:last] if tensor.dim() else tensor

    return {name: Stored(shape, dtype, partial(read, name)) for name, (shape, dtype) in found.items()}


def _safetensors(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _open_bin(path: Path) -> Tensors:
    def load() -> dict[str, Tensor]:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError("it holds other things than tensors by name")
        return tensors

    def read(name: str, first: int, last: int) -> Tensor:
        with _damage_translated(path):
            tensor = load()[name]
            return tensor[first:last] if tensor.dim() else tensor

    return {
        name: Stored(tuple(tensor.shape), tensor.dtype, partial(read, name))
        for name, tensor in load().items()
    }


def has_own_head(tensors: Tensors) -> bool:
    """Whether another head than the table is stored: transformers then unties them, whatever is stated."""
    table, head = (tensors.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    if table is None or head is None:
        return False
    return table.shape != head.shape or not all(
        torch.equal(table.read(*rows), head.read(*rows)) for rows in table.blocks()
    )


def open_floats(folder: Path, files: tuple[Path, ...]) -> tuple[Tensors, str | None]:
    """Return the tensors of a target, and from what they are dequantised when they are read, if they are.

    Raises:
        CheckpointError: as `open_weights`; one is quantised, and not as config.json says.
    """
    stated, tensors = read_json(folder / "config.json"), open_weights(files)
    quantisation = read_quantisation(stated)
    if quantisation is not None:
        tensors = quantisation.dequantise(tensors, stated_type(stated))
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"tensor {name!r} is {tensor.dtype}, a type of quantised weights, but neither config.json's "
                "quantization_config nor a scale beside it says what it stands for; use the original "
                "checkpoint"
            )
    return tensors, None if quantisation is None else quantisation.kind


def read_weights(config: TargetConfig, tensors: Tensors) -> Mapping[str, Weight]:
    """Return the weights of a decoder, which are read when they are used; raises as `pack`."""
    derived = {name for name in tensors if name.endswith(DERIVED)}
    if config.tied_embeddings:
        derived.add("lm_head.weight")
    return pack(config, {name: tensor for name, tensor in tensors.items() if name not in derived})


@contextmanager
def _damage_translated(path: Path) -> Iterator[None]:
    import pickle

    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable weight file ({error}); it is damaged or incomplete: fetch it again"
        ) from error
