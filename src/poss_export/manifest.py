"""The manifest: what a bundle holds, what made it, and how to tell that nothing changed since.

It is written last and in one step, so a folder without a manifest is not a bundle.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from poss_export.config import CacheForm, Precision, TargetConfig, TreeShape
from poss_export.draft_vocabulary import DraftVocabulary
from poss_export.drafter_config import DrafterConfig
from poss_export.engine_spec import EngineEntry, GraphName
from poss_export.errors import BundleError, CheckpointError, InputError, translated
from poss_export.exactness import Beside, Exactness, floating
from poss_export.fields import check_fields
from poss_export.files import parse_json, write_whole
from poss_export.text import TextConfig

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TARGET_GRAPH = "target.onnx"
DRAFT_GRAPH = "draft.onnx"
TOKENIZER = "tokenizer.json"
DRAFT_IDS = "draft_ids.npy"  # int64 [draft_vocab]: the tokens that the drafter can propose
ACCEPTANCE = "acceptance.json"  # how the drafter's scores are to be read (docs/acceptance-calibration.md)
GRAPHS: dict[GraphName, str] = {"target": TARGET_GRAPH, "draft": DRAFT_GRAPH}

_SIZES = range(1 << 63)
SMALL_FILE = 64 << 20  # bytes; larger files are hashed only on a full check, or loading would take seconds


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class EmbeddingTable:
    """Where the target graph's external data holds the embedding table `[vocab, hidden]`, row-major."""

    file: str
    offset: int  # bytes
    dtype: str
    shape: tuple[int, int]

    def open(self, folder: Path) -> np.ndarray[Any, np.dtype[Any]]:
        """Map the table of the bundle in `folder`, read-only: rows are read from disk when they are used."""
        dtype = "uint16" if self.dtype == "bfloat16" else self.dtype  # numpy lacks it: these are its bits
        return np.memmap(folder / self.file, dtype, "r", self.offset, self.shape)


@dataclass(frozen=True)
class TargetEntry:
    """The target: `sha256` is that of the checkpoint it was exported from.

    `dequantised` says from what, where the weights of its folder are quantised.
    """

    name: str
    sha256: str
    config: TargetConfig
    embedding: EmbeddingTable
    dequantised: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TargetEntry":
        """Read the manifest's `target`."""
        table = values["embedding"]
        embedding = EmbeddingTable(**{**table, "shape": tuple(table["shape"])})
        return cls(**{**values, "config": TargetConfig.from_dict(values["config"]), "embedding": embedding})


@dataclass(frozen=True)
class DrafterEntry:
    """The drafter and the tree that its graph draws: `sha256` is that of the checkpoint.

    `vocabulary` is what the build cut a drafter of the whole vocabulary to; None: its own, cut or not.
    """

    name: str
    sha256: str
    config: DrafterConfig
    tree: TreeShape
    vocabulary: DraftVocabulary | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DrafterEntry":
        """Read the manifest's `drafter`."""
        config, tree = DrafterConfig.from_dict(values["config"]), TreeShape(**values["tree"])
        cut = values.get("vocabulary")
        vocabulary = None if cut is None else DraftVocabulary(**cut)
        return cls(**{**values, "config": config, "tree": tree, "vocabulary": vocabulary})


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself; `files` lists every other file in the folder.

    A bundle without a drafter can only decode with the target. `versions` maps library to version,
    `parity` maps a check to its figure, `created` is an ISO 8601 time, `argv` the command that built it.
    `in_pieces`: the target was too large to be loaded for the comparison, and ran piece by piece.
    `engines` are compiled from the graphs; ONNX Runtime reads the graphs themselves. `quantisation` says how
    each graph was quantised, `quality` what that costs, `calibration` what was learned of the drafter from
    real rounds, and which of its precisions was kept (docs/quantisation.md). `beside` says how much sequences
    that share calls change each other's logits (`evaluation/beside.py`); None: nobody measured it.
    """

    target: TargetEntry
    drafter: DrafterEntry | None
    precision: Precision
    cache_form: CacheForm
    capacity: int  # tokens
    text: TextConfig
    created: str
    argv: tuple[str, ...]
    versions: dict[str, str]
    parity: dict[str, float]
    files: dict[str, FileEntry]
    in_pieces: bool = False
    engines: tuple[EngineEntry, ...] = ()
    quantisation: dict[GraphName, dict[str, Any]] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    beside: Beside | None = None

    @property
    def exactness(self) -> Exactness:
        """Whether speculation must give the target's own tokens, and from which width of a call on."""
        quantised = "target" in self.quantisation
        widths = (self.quality or {}).get("widths")
        alone = Exactness.measured(widths) if quantised else floating(self.precision)
        return alone.beside(self.beside)

    def label(self, graph: GraphName) -> str:
        """Return in which precision a graph computes, in the words of the command line."""
        return str(self.quantisation[graph]["scheme"]) if graph in self.quantisation else self.precision

    def graph_sha256(self, graph: GraphName) -> str:
        """Return the hash of a graph and its weights, from those of their files."""
        files = [self.files[name].sha256 for name in (GRAPHS[graph], f"{GRAPHS[graph]}.data")]
        return hashlib.sha256("".join(files).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Manifest":
        """Read what `to_dict` wrote, after a round trip through JSON."""
        drafter, beside = values["drafter"], values.get("beside")
        return cls(
            **{
                **values,
                "target": TargetEntry.from_dict(values["target"]),
                "drafter": None if drafter is None else DrafterEntry.from_dict(drafter),
                "text": TextConfig.from_dict(values["text"]),
                "argv": tuple(values["argv"]),
                "files": {name: FileEntry(**entry) for name, entry in values["files"].items()},
                "engines": tuple(EngineEntry.from_dict(entry) for entry in values["engines"]),
                "beside": None if beside is None else Beside(**beside),
            }
        )


def describe_files(
    folder: Path, names: Iterable[str], hashes: Mapping[str, str] | None = None
) -> dict[str, FileEntry]:
    """Hash the files of a bundle for its manifest; `hashes` has those that are known."""
    known = hashes or {}
    return {
        name: FileEntry(known.get(name) or _sha256(folder / name), (folder / name).stat().st_size)
        for name in sorted(names)
    }


def listed_files(folder: Path) -> set[str]:
    """Return the names of the files of a bundle; where its manifest is damaged, all that are there."""
    with suppress(BundleError, TypeError, KeyError):
        return {MANIFEST, *_parse(folder / MANIFEST)["files"]}
    return {path.name for path in folder.iterdir()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Finish the bundle in `folder`; the manifest appears whole or not at all."""
    values = {"format_version": FORMAT_VERSION, **manifest.to_dict()}
    values["field_sha256"] = {name: _own_hash(value) for name, value in values.items()}
    values["manifest_sha256"] = _own_hash(values)
    write_whole(folder / MANIFEST, json.dumps(values, indent=2) + "\n")


def read_manifest(folder: Path, full: bool = False) -> Manifest:
    """Read the manifest in `folder` and check the bundle against it.

    Files under 64 MiB are compared by hash and larger ones by size, unless `full` hashes all.

    Raises:
        InputError: there is no such folder.
        BundleError: it is no bundle, or something in it is missing or was changed.
    """
    if not folder.is_dir():
        raise InputError(f"no bundle folder at {str(folder)!r}; make one with `poss-export build`")
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{str(folder)!r} has no {MANIFEST}: it is not a bundle, or its build did not finish; "
            "run `poss-export build` again"
        )
    values = _parse(path)
    with translated(BundleError, f"{str(path)!r} does not describe a bundle; rebuild it"):
        for name, entry in values["files"].items():
            _check_file(folder, name, FileEntry(**entry), full)
        try:
            manifest = Manifest.from_dict(values)
            parts = (manifest, manifest.target, manifest.target.embedding, manifest.text, manifest.beside)
            for part in filter(None, parts):
                check_fields(part, "manifest's", _SIZES)
        except CheckpointError as error:
            raise BundleError(f"{str(path)!r}: {error}; rebuild the bundle") from error
    return manifest


def _parse(path: Path) -> dict[str, Any]:
    """Return the manifest's values when version and hash are right."""
    try:
        values = parse_json(path.read_bytes())
        version, recorded = values.pop("format_version"), values.pop("manifest_sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BundleError(
            f"{str(path)!r} is not a manifest ({error!r}); run `poss-export build` again"
        ) from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{str(path)!r} has format version {version}, this release reads {FORMAT_VERSION}; "
            "rebuild the bundle, or install the release that built it"
        )
    if recorded != _own_hash({"format_version": version, **values}):
        digests = values.get("field_sha256", {})
        changed = [name for name, value in values.items() if digests.get(name, "") != _own_hash(value)]
        fields = ", ".join(name for name in changed if name != "field_sha256") or "field_sha256"
        raise BundleError(
            f"{str(path)!r} was changed after the build: its hash does not match (field: {fields}); "
            "restore it or rebuild the bundle"
        )
    del values["field_sha256"]
    return dict(values)


def _check_file(folder: Path, name: str, entry: FileEntry, full: bool) -> None:
    if Path(name).name != name:
        raise BundleError(f"the manifest lists {name!r}, which is not a plain file name; rebuild the bundle")
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{str(path)!r} is missing from the bundle; restore it or rebuild the bundle")
    if (size := path.stat().st_size) != entry.size:
        raise BundleError(
            f"{str(path)!r} has {size} bytes, the manifest says {entry.size}; "
            "restore it or rebuild the bundle"
        )
    if (full or size < SMALL_FILE) and _sha256(path) != entry.sha256:
        raise BundleError(
            f"{str(path)!r} was changed after the build: its hash does not match; "
            "restore it or rebuild the bundle"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_hash(values: Any) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
