"""Weights as this machine's kernels read them, in files that all sessions and processes share.

ONNX Runtime gives every session copies of its own, in the order that its kernels want. Once written, they are
mapped like any other file: a second session of the same weights, here or in another process, costs no memory.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from poss_export.errors import InputError
from poss_export.files import make_writable
from poss_export.machine import processor
from poss_export.runtime.sessions.load_graph import load_graph
from poss_export.runtime.sessions.ort import OrtOptions

_MOVE = "set XDG_CACHE_HOME to a folder on a disk with more room"


def prepacked(graph: Path, sha256: str, cache: Path | None = None) -> Path:
    """Return a graph file that computes what `graph` does, its weights beside it; made when first asked for.

    It takes twice the room of the weights, and may be deleted while nothing uses it. sha256: of the graph and
    its weights. cache: the folder where it lies; None: the user's.

    Raises:
        BackendError: ONNX Runtime is missing or refuses the graph.
        InputError: there is no room in the cache folder.
    """
    folder = _folder(sha256, cache)
    if not (folder / graph.name).exists():
        make_writable(folder.parent, _MOVE)
        _check_room(graph, folder.parent)
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        unfinished.mkdir(exist_ok=True)
        try:
            load_graph(graph, OrtOptions(), save_to=unfinished / graph.name)
            with suppress(OSError):  # another process was faster
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder / graph.name


def _folder(sha256: str, cache: Path | None) -> Path:
    import onnxruntime
    from platformdirs import user_cache_path

    what: Mapping[str, str] = {
        "graph": sha256,
        "onnxruntime": onnxruntime.__version__,
        "processor": processor(),
    }
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    return (cache or user_cache_path("poss-export")) / "prepacked" / name


def _check_room(graph: Path, folder: Path) -> None:
    wanted, free = 2 * graph.with_name(f"{graph.name}.data").stat().st_size, shutil.disk_usage(folder).free
    if free < wanted:
        raise InputError(
            f"weights for several slots take {wanted / 1e9:.1f} GB in {str(folder)!r}, which has "
            f"{free / 1e9:.1f} GB left: {_MOVE}, or answer in one slot",
            options=("slots",),
        )
