"""From checkpoints to a bundle: plan, export, check, then one rename that makes it appear."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poss_export.bundling.export import Export
from poss_export.bundling.quantise import QuantiseRequest, quantise_bundle
from poss_export.calibration.record import check_record
from poss_export.config import CacheForm, Precision, TreeShape
from poss_export.contract import FLOAT, GraphContract, draft_contract, target_contract
from poss_export.drafters.checkpoint import DrafterCheckpoint, check_pair, check_tables
from poss_export.drafters.round import check_tree
from poss_export.engine_spec import (
    EngineEntry,
    EngineSpec,
    GraphName,
    Profile,
    draft_profiles,
    target_profiles,
)
from poss_export.errors import InputError
from poss_export.exporters.drafter import export_drafter
from poss_export.exporters.engine_build import EngineRequest, build_engine, estimate
from poss_export.exporters.parity import ROWS, compare, make_reference, require_parity
from poss_export.exporters.target import check_target, export_target
from poss_export.exporters.widening import runnable_on_cpu
from poss_export.machine import versions
from poss_export.manifest import (
    ACCEPTANCE,
    DRAFT_GRAPH,
    GRAPHS,
    MANIFEST,
    TARGET_GRAPH,
    TOKENIZER,
    DrafterEntry,
    Manifest,
    TargetEntry,
    describe_files,
    link_or_copy,
    read_manifest,
    write_manifest,
)
from poss_export.progress import Progress, Report, silent
from poss_export.quantisation.rounding import BYTES
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.loop import PREFILL_CHUNK
from poss_export.runtime.sessions.ort import OrtOptions
from poss_export.targets.checkpoint import Target

_COMMON_CAPACITY = 2048  # tokens
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
_DECIDING = ("poss-export", "torch", "onnx", "onnxscript")  # their versions decide what a graph is


@dataclass(frozen=True)
class Plan:
    """What a build will do; everything that can be refused before the work has been refused."""

    target: Target
    drafter: DrafterCheckpoint | None
    tree: TreeShape
    capacity: int  # tokens
    precision: Precision
    cache_form: CacheForm
    engines: EngineRequest | None = None
    quantise: QuantiseRequest | None = None

    @property
    def calibrates_acceptance(self) -> bool:
        """Whether the bundle will say how its drafter's scores are to be read."""
        return self.drafter is not None and self.quantise is not None and self.quantise.samples is not None

    @property
    def draft_parameters(self) -> int:
        """Weights in the draft graph: the specialists that the tree uses, and rows of the target's tables."""
        if self.drafter is None:
            return 0
        config, model = self.drafter.drafter.config, self.drafter.drafter
        # Parallel drafting looks up no embedding: its graph holds the LM head's rows only.
        one_table = self.target.config.tied_embeddings or config.drafting == "parallel"
        tables = (1 if one_table else 2) * config.draft_vocab_size * config.hidden_size
        unused = model.specialists[config.specialist(self.tree.depth) + 1 :]
        return self.drafter.parameters - _count(unused) + tables

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values; sizes in bytes, those of graphs without their structure."""
        target = target_contract(self.target.config, self.precision)
        weights = self._weight_bytes()
        files = {
            f"{TARGET_GRAPH}.data": weights["target"],
            TOKENIZER: len(self.target.text.tokenizer_json.encode()),
        }
        values: dict[str, Any] = {
            "target": {"name": self.target.name, "parameters": self.target.parameters},
            "drafter": None,
            "precision": self.precision,
            "quantisation": {graph: asked["scheme"] for graph, asked in _requests(self).items()},
            "cache_form": self.cache_form,
            "capacity": self.capacity,
            "files": files,
            "cache_bytes": {"target": _cache_bytes(target, self.capacity)},
        }
        if self.drafter is not None:
            drafter = draft_contract(self.drafter.drafter.config, self.tree, self.precision)
            files[f"{DRAFT_GRAPH}.data"] = weights["draft"]
            values["drafter"] = {
                "name": self.drafter.name,
                "dialect": self.drafter.dialect.name,
                "parameters": self.draft_parameters,
                "tree": asdict(self.tree),
            }
            values["cache_bytes"]["drafter"] = _cache_bytes(drafter, self.capacity)
        if self.engines is not None:
            values["engines"] = {
                "backend": f"{self.engines.flavour} {self.engines.version}",
                "options": asdict(self.engines.options),
                "capacities": [*self.engines.capacities, self.capacity],
                "estimates": {  # of each capacity
                    graph: estimate(graph, weights[graph], len(profiles), self.precision)
                    for graph, profiles in self.engine_profiles(self.capacity).items()
                },
            }
        return values

    def _weight_bytes(self) -> dict[GraphName, int]:
        """Return the sizes of the graphs' weights; layers that turn out to be sensitive are not known yet."""
        config = self.target.config
        table = config.vocab_size * config.hidden_size
        tied = config.tied_embeddings
        sizes: dict[GraphName, int] = {"target": self._bytes("target", self.target.parameters, table, tied)}
        if self.drafter is not None:
            drafter = self.drafter.drafter.config
            looked_up = drafter.draft_vocab_size * drafter.hidden_size * (drafter.drafting == "tree")
            sizes["draft"] = self._bytes("draft", self.draft_parameters, looked_up, tied)
        return sizes

    def _bytes(self, graph: GraphName, parameters: int, table: int, tied: bool) -> int:
        """Return the size of weights, of which `table` are looked up, and read by the head too if `tied`."""
        item = np.dtype(FLOAT[self.precision]).itemsize
        request = None if self.quantise is None else self.quantise.graphs.get(graph)
        if request is None:
            return item * parameters
        head = table if tied else 0  # its quantised copy
        return round(item * table + BYTES[request.scheme] * (parameters - table + head))

    def engine_profiles(self, capacity: int) -> dict[GraphName, tuple[Profile, ...]]:
        """Return the sizes of calls that each graph's engine of a capacity is made for."""
        chunk = min(PREFILL_CHUNK, capacity)
        if self.drafter is None:
            return {"target": target_profiles(chunk, None)}
        return {
            "target": target_profiles(chunk, self.tree.nodes + 1),
            "draft": draft_profiles(chunk, self.tree.depth + 1),
        }


def plan_build(
    target: Target,
    drafter: DrafterCheckpoint | None,
    *,
    tree: TreeShape,
    capacity: int | None,
    precision: Precision,
    cache_form: CacheForm,
    engines: EngineRequest | None = None,
    quantise: QuantiseRequest | None = None,
) -> Plan:
    """Check that the parts fit; a capacity of None is 2048 tokens, or the target's longest context.

    Raises:
        CheckpointError: target and drafter do not belong together.
        InputError: the capacity, the cache form or the tree does not suit them.
    """
    if capacity is None:
        capacity = min(_COMMON_CAPACITY, target.config.max_positions)
    check_target(target.config, cache_form, capacity, precision)
    if capacity < ROWS:
        raise InputError(
            f"capacity is {capacity} tokens; a bundle needs at least {ROWS}: choose a larger one"
        )
    if drafter is not None:
        check_pair(target.config, drafter.drafter.config)
        check_tree(drafter.drafter, tree)
    if engines is not None and cache_form != "static":
        raise InputError(f"cache form {cache_form!r} is not for TensorRT: use 'static', or leave it out")
    for smaller in () if engines is None else engines.capacities:
        if not ROWS <= smaller < capacity:
            raise InputError(
                f"engine capacity is {smaller} tokens; beside a bundle of {capacity} it may be {ROWS} to "
                f"{capacity - 1}"
            )
    if quantise is not None:
        _check_quantise(quantise, target, drafter, cache_form)
    return Plan(target, drafter, tree, capacity, precision, cache_form, engines, quantise)


def _check_quantise(
    request: QuantiseRequest, target: Target, drafter: DrafterCheckpoint | None, cache_form: CacheForm
) -> None:
    """Raise InputError where a graph cannot be quantised as it is asked."""
    if "draft" in request.graphs and drafter is None:
        raise InputError("a draft precision needs a drafter: name one with --drafter, or leave it out")
    for graph, wanted in request.graphs.items():
        if cache_form == "shared" and "fp8" in wanted.all_schemes:
            raise InputError(
                f"{graph} precision fp8 is for TensorRT: use it with --backend tensorrt-rtx or tensorrt, or "
                "take w8a8"
            )
        if cache_form == "static" and "int8" in wanted.all_schemes:
            raise InputError(
                f"{graph} precision int8 (weights only) is for ONNX Runtime on the CPU: take w8a8 or int4"
            )
        if (rounding := wanted.need_samples) and request.samples is None:
            raise InputError(
                f"{graph} precision {min(rounding)} needs samples of real rounds: record them with "
                "`poss-export calibrate` and name the file with --samples"
            )
    if request.samples is not None:
        check_record(
            request.samples,
            target_sha256=target.sha256,
            drafter_sha256=drafter.sha256 if drafter is not None and "draft" in request.graphs else None,
            vocab_size=target.config.vocab_size,
        )


def check_output(folder: Path) -> None:
    """Raise InputError where something is at `folder` that is no bundle."""
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise InputError(f"{str(folder)!r} exists and is not a bundle: choose another output folder")


def build_bundle(
    plan: Plan,
    folder: Path,
    *,
    argv: Sequence[str],
    force: bool,
    report: Report,
    progress: Progress = silent,
) -> Manifest:
    """Build the bundle and put it at `folder`, whole or not at all.

    A bundle that is there already keeps what the plan would build again unchanged, and gets what it lacks;
    `force` builds everything anew.

    Raises:
        InputError: `folder` cannot be written, or is another bundle that `force` may replace, or none.
        CheckpointError: the drafter's copy of a table is not the target's.
        ParityError: a graph does not compute what PyTorch does.
        PossExportError: as `Target.load_decoder`, the exporters and `build_engine` raise it.
    """
    check_output(folder)
    present = _unchanged(plan, folder) if folder.exists() and not force else None
    if present is not None and not _missing_engines(plan, present):
        report(f"{folder} is unchanged: nothing to build")
        return present
    with _unfinished(folder) as unfinished:
        if present is None:
            manifest = _make(unfinished, plan, argv, report, progress)
        else:
            manifest = replace(present, argv=tuple(argv), engines=())
            for name in manifest.files:
                link_or_copy(folder / name, unfinished / name)
        kept = () if present is None else present.engines
        engines = _build_engines(unfinished, plan, manifest, kept, report, progress)
        manifest = replace(manifest, engines=engines)
        report("writing the manifest")
        manifest.files.update(describe_files(unfinished, [entry.spec.file for entry in engines]))
        write_manifest(unfinished, manifest)
        _publish(unfinished, folder)
    return manifest


def _unchanged(plan: Plan, folder: Path) -> Manifest | None:
    """Return the manifest of the bundle at `folder`, whose graphs are those of the plan.

    Raises:
        InputError: they are others.
        BundleError: it is damaged.
    """
    manifest = read_manifest(folder)
    drafter, planned, present = manifest.drafter, plan.drafter, versions(*_LIBRARIES)
    facts: list[tuple[str, object, object]] = [
        ("target", manifest.target.sha256, plan.target.sha256),
        ("text", manifest.text, plan.target.text.config),
        ("drafter", drafter and drafter.sha256, planned and planned.sha256),
        ("tree", drafter and drafter.tree, planned and plan.tree),
        ("precision", manifest.precision, plan.precision),
        ("quantisation", _requests(manifest), _requests(plan)),
        ("acceptance", ACCEPTANCE in manifest.files, plan.calibrates_acceptance),
        ("cache form", manifest.cache_form, plan.cache_form),
        ("capacity", manifest.capacity, plan.capacity),
        *((f"version of {name}", manifest.versions[name], present[name]) for name in _DECIDING),
    ]
    for name, have, want in facts:
        if have != want:
            raise InputError(
                f"{str(folder)!r} exists: choose another output folder, or replace it with --force "
                f"(it has another {name})"
            )
    return manifest


def _requests(made: Manifest | Plan) -> dict[GraphName, dict[str, Any]]:
    """Return what is asked of each graph, as plain values."""
    if isinstance(made, Manifest):
        return {graph: entry["request"] for graph, entry in made.quantisation.items()}
    if made.quantise is None:
        return {}
    return made.quantise.to_dict()


def _missing_engines(plan: Plan, manifest: Manifest) -> list[EngineSpec]:
    """Return what the plan asks for and the bundle does not have."""
    present = {entry.spec.file: entry.spec for entry in manifest.engines}
    return [spec for spec in _engine_specs(plan, manifest) if present.get(spec.file) != spec]


def _engine_specs(plan: Plan, manifest: Manifest) -> list[EngineSpec]:
    if plan.engines is None:
        return []
    return [
        EngineSpec(
            graph=graph,
            flavour=plan.engines.flavour,
            version=plan.engines.version,
            precision=plan.precision,
            capacity=capacity,
            profiles=profiles,
            options=plan.engines.options,
            graph_sha256=manifest.graph_sha256(graph),
        )
        for capacity in (plan.capacity, *plan.engines.capacities)
        for graph, profiles in plan.engine_profiles(capacity).items()
    ]


def _build_engines(
    folder: Path,
    plan: Plan,
    manifest: Manifest,
    kept: Sequence[EngineEntry],
    report: Report,
    progress: Progress,
) -> tuple[EngineEntry, ...]:
    """Build what is missing into `folder`; return all engines of the bundle, `kept` ones first."""
    engines = {entry.spec.file: entry for entry in kept}
    contracts = contracts_of(manifest)
    missing = _missing_engines(plan, replace(manifest, engines=tuple(kept)))
    for capacity in sorted({spec.capacity for spec in missing}, reverse=True):
        with _graphs(folder, plan, capacity, report) as graphs:
            for spec in (spec for spec in missing if spec.capacity == capacity):
                assert plan.engines is not None
                (folder / spec.file).unlink(missing_ok=True)  # a link to what the bundle has now
                engines[spec.file] = build_engine(
                    graphs / GRAPHS[spec.graph],
                    contracts[spec.graph],
                    spec,
                    folder / spec.file,
                    timing_cache=plan.engines.timing_cache,
                    progress=progress,
                )
    return tuple(engines.values())


@contextmanager
def _graphs(folder: Path, plan: Plan, capacity: int, report: Report) -> Iterator[Path]:
    """Give the folder with the graphs of a capacity: the bundle's own, or others, checked like them."""
    if capacity == plan.capacity:
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=folder) as other:
        report(f"exporting again for {capacity} tokens")
        smaller = replace(plan, capacity=capacity, engines=None)
        _make(Path(other), smaller, (), silent, silent)
        yield Path(other)


def _make(folder: Path, plan: Plan, argv: Sequence[str], report: Report, progress: Progress) -> Manifest:
    """Fill `folder` with everything but the manifest and engines; return the manifest."""
    if plan.quantise is None:
        return _fill(folder, plan, argv, report)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = _source(Path(name) / "source", plan, argv, report)
        reference = source
        if plan.cache_form != "shared":
            report("exporting again, to decide and to compare")
            common = replace(plan, cache_form="shared", precision="fp32")
            reference = _source(Path(name) / "reference", common, argv, lambda _: None)
        manifest = quantise_bundle(source, reference, folder, plan.quantise, report=report, progress=progress)
    names = [path.name for path in folder.iterdir()]
    return replace(manifest, files=describe_files(folder, names))


def _source(folder: Path, plan: Plan, argv: Sequence[str], report: Report) -> Export:
    folder.mkdir()
    return Export(folder, _fill(folder, plan, argv, report))


def _fill(folder: Path, plan: Plan, argv: Sequence[str], report: Report) -> Manifest:
    shape: dict[str, Any] = {
        "cache_form": plan.cache_form,
        "precision": plan.precision,
        "capacity": plan.capacity,
    }
    report(f"loading {plan.target.name}")
    decoder = plan.target.load_decoder()
    if plan.drafter is not None:
        check_tables(decoder, plan.drafter)
    reference = make_reference(decoder, plan.drafter, plan.tree)
    report(f"exporting {TARGET_GRAPH}")
    embedding = export_target(decoder, folder / TARGET_GRAPH, **shape)
    del decoder  # from here on the rows in the reference are enough
    drafter = None
    if plan.drafter is not None and reference.drafting is not None:
        report(f"exporting {DRAFT_GRAPH}")
        export_drafter(reference.drafting, folder / DRAFT_GRAPH, **shape)
        config = plan.drafter.drafter.config
        drafter = DrafterEntry(plan.drafter.name, plan.drafter.sha256, config, plan.tree)
    (folder / TOKENIZER).write_text(plan.target.text.tokenizer_json, encoding="utf-8")
    manifest = Manifest(
        target=TargetEntry(plan.target.name, plan.target.sha256, plan.target.config, embedding),
        drafter=drafter,
        text=plan.target.text.config,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=tuple(argv),
        versions=versions(*_LIBRARIES),
        parity={},
        files={},
        **shape,
    )
    report("checking parity with PyTorch")
    with runnable_on_cpu(folder, manifest) as runnable, Bundle(*runnable, OrtOptions()) as bundle:
        manifest.parity.update(compare(bundle, reference))
    require_parity(manifest.parity, plan.precision)
    manifest.files.update(describe_files(folder, [path.name for path in folder.iterdir()]))
    return manifest


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to fill; remove it, and what killed builds left, in the end."""
    prefix = f".{folder.name}.partial-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to {str(folder.parent)!r} ({error.strerror}): choose another output folder"
        ) from error
    try:
        yield path
    except OSError as error:
        raise InputError(f"the build of {str(folder)!r} failed: {error}; nothing was kept") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _publish(unfinished: Path, folder: Path) -> None:
    """Rename the finished folder; a bundle that is there already goes first."""
    unfinished.chmod(0o755)  # mkdtemp keeps others out
    if folder.exists():
        replaced = unfinished.with_name(f"{unfinished.name}-replaced")
        folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced)
    else:
        unfinished.rename(folder)


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _cache_bytes(contract: GraphContract, capacity: int) -> int:
    sized = contract.with_sizes(batch=1, capacity=capacity)
    caches = [spec for spec in sized.inputs if spec.is_cache]
    return sum(prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in caches)
