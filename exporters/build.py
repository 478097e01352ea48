"""From checkpoints to a bundle: plan, export, check, then one rename that makes it appear."""

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from poss_export.config import CacheForm, Precision, TreeShape
from poss_export.contract import FLOAT, GraphContract, draft_contract, target_contract
from poss_export.drafters.checkpoint import DrafterCheckpoint, check_pair, check_tables
from poss_export.drafters.drafting import check_tree
from poss_export.errors import InputError
from poss_export.exporters.drafter import export_drafter
from poss_export.exporters.parity import ROWS, compare, make_reference, require_parity
from poss_export.exporters.target import check_target, export_target
from poss_export.manifest import (
    DRAFT_GRAPH,
    MANIFEST,
    TARGET_GRAPH,
    TOKENIZER,
    DrafterEntry,
    Manifest,
    TargetEntry,
    describe_files,
    write_manifest,
)
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.ort import OrtOptions
from poss_export.targets.checkpoint import Target

Report = Callable[[str], None]  # told what begins

_COMMON_CAPACITY = 2048  # tokens


@dataclass(frozen=True)
class Plan:
    """What a build will do; everything that can be refused before the work has been refused."""

    target: Target
    drafter: DrafterCheckpoint | None
    tree: TreeShape
    capacity: int  # tokens
    precision: Precision
    cache_form: CacheForm

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
        item = np.dtype(FLOAT[self.precision]).itemsize
        target = target_contract(self.target.config, self.precision)
        files = {
            f"{TARGET_GRAPH}.data": item * self.target.parameters,
            TOKENIZER: len(self.target.text.tokenizer_json.encode()),
        }
        values: dict[str, Any] = {
            "target": {"name": self.target.name, "parameters": self.target.parameters},
            "drafter": None,
            "precision": self.precision,
            "cache_form": self.cache_form,
            "capacity": self.capacity,
            "files": files,
            "cache_bytes": {"target": _cache_bytes(target, self.capacity)},
        }
        if self.drafter is not None:
            drafter = draft_contract(self.drafter.drafter.config, self.tree, self.precision)
            files[f"{DRAFT_GRAPH}.data"] = item * self.draft_parameters
            values["drafter"] = {
                "name": self.drafter.name,
                "dialect": self.drafter.dialect.name,
                "parameters": self.draft_parameters,
                "tree": asdict(self.tree),
            }
            values["cache_bytes"]["drafter"] = _cache_bytes(drafter, self.capacity)
        return values


def plan_build(
    target: Target,
    drafter: DrafterCheckpoint | None,
    *,
    tree: TreeShape,
    capacity: int | None,
    precision: Precision,
    cache_form: CacheForm,
) -> Plan:
    """Check that the parts fit; a capacity of None is 2048 tokens, or the target's longest context.

    Raises:
        CheckpointError: target and drafter do not belong together.
        InputError: the capacity, the cache form or the tree does not suit them.
    """
    if capacity is None:
        capacity = min(_COMMON_CAPACITY, target.config.max_positions)
    check_target(target.config, cache_form, capacity)
    if capacity < ROWS:
        raise InputError(
            f"capacity is {capacity} tokens; a bundle needs at least {ROWS}: choose a larger one"
        )
    if drafter is not None:
        check_pair(target.config, drafter.drafter.config)
        check_tree(drafter.drafter, tree)
    return Plan(target, drafter, tree, capacity, precision, cache_form)


def check_output(folder: Path, force: bool) -> None:
    """Raise InputError where a bundle cannot be put at `folder`; only a bundle may be replaced."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{str(folder)!r} exists and is not a bundle: choose another output folder")
    if not force:
        raise InputError(f"{str(folder)!r} exists: choose another output folder, or replace it with --force")


def build_bundle(plan: Plan, folder: Path, *, argv: Sequence[str], force: bool, report: Report) -> Manifest:
    """Build the bundle and put it at `folder`, whole or not at all.

    Raises:
        InputError: `folder` cannot be written, exists, or is no bundle that `force` may replace.
        CheckpointError: the drafter's copy of a table is not the target's.
        ParityError: a graph does not compute what PyTorch does.
        PossExportError: as `Target.load_decoder` and the exporters raise it.
    """
    check_output(folder, force)
    with _unfinished(folder) as unfinished:
        manifest = _fill(unfinished, plan, argv, report)
        _publish(unfinished, folder)
    return manifest


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
        versions=_versions(),
        parity={},
        files={},
        **shape,
    )
    report("checking parity with PyTorch")
    with Bundle(folder, manifest, OrtOptions()) as bundle:
        manifest.parity.update(compare(bundle, reference))
    require_parity(manifest.parity, plan.precision)
    report("writing the manifest")
    manifest.files.update(describe_files(folder, [path.name for path in folder.iterdir()]))
    write_manifest(folder, manifest)
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


def _versions() -> dict[str, str]:
    return {
        "poss-export": version("poss-export"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "onnxscript": version("onnxscript"),
        "onnxruntime": onnxruntime.__version__,  # of either distribution
        "numpy": np.__version__,
    }


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _cache_bytes(contract: GraphContract, capacity: int) -> int:
    sized = contract.with_sizes(batch=1, capacity=capacity)
    caches = [spec for spec in sized.inputs if spec.is_cache]
    return sum(prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in caches)
