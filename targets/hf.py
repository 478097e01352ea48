"""Weights of Hugging Face folders, in safetensors or .bin files.

No remote code, no pickled objects: `.bin` files are read with `weights_only=True`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poss_export.config import TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.decoder import Decoder
from poss_export.targets.json_file import read_json
from poss_export.targets.weights import build_decoder

Tensors = dict[str, Callable[[], Tensor]]  # by name, read when called

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, each perhaps with an index
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt")
    names = file.keys()
    return {name: partial(file.get_tensor, name) for name in names}


def _open_bin(path: Path) -> Tensors:
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("it holds other things than tensors by name")
    return {name: partial(tensors.__getitem__, name) for name in tensors}


def has_own_head(tensors: Tensors) -> bool:
    """Whether another head than the table is stored: transformers then unties them, whatever is stated."""
    table, head = (tensors.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    return table is not None and head is not None and not torch.equal(table(), head())


def read_decoder(config: TargetConfig, tensors: Tensors) -> Decoder:
    """Return the decoder with float32 weights, converted one tensor at a time."""

    def read(name: str) -> Tensor:
        tensor = tensors[name]()
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"tensor {name!r} is {tensor.dtype}: quantised weights are not supported; "
                "use the original checkpoint"
            )
        return tensor.float()

    derived = {name for name in tensors if name.endswith(DERIVED)}
    if config.tied_embeddings:
        derived.add("lm_head.weight")
    return build_decoder(config, tensors.keys() - derived, read)


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
