"""The page of a verification: what somebody would attach to a bug report, in one file.

It names no place on the machine, and tells the words of no prompt unless that is asked for.
"""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from poss_export.errors import InputError
from poss_export.evaluation import report_plots
from poss_export.evaluation.checks import Verification
from poss_export.files import check_file, write_whole
from poss_export.machine import cores, processor, versions
from poss_export.manifest import Manifest
from poss_export.plots import check_library

_TEMPLATE = Path(__file__).parent / "report.html"
_LIBRARIES = (
    "numpy",
    "onnxruntime",
    "tokenizers",
    "torch",
    "transformers",
    "onnx",
    "tensorrt-rtx",
    "tensorrt",
)
_RESULTS = {True: "passed", False: "failed", None: "skipped"}

Facts = Mapping[str, str]


def check_report(path: Path) -> None:
    """Raise InputError where no page can be written to `path`."""
    check_library()
    if path.suffix.lower() != ".html":
        raise InputError(f"the report is {str(path)!r}; name a file that ends in .html", options=("report",))
    check_file(path)


def write_report(found: Verification, path: Path, *, prompts: bool = False) -> None:
    """Write a page with all tables and pictures, which needs nothing beside it.

    Args:
        found: what was verified, with costs.
        path: of the page, in one step.
        prompts: tell the prompts of answers that part.

    Raises:
        InputError: the page cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    check_report(path)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    write_whole(path, template.render(**_contents(found), with_prompts=prompts))


def _contents(found: Verification) -> dict[str, Any]:
    checks = [{**asdict(check), "result": _RESULTS[check.passed]} for check in found.checks]
    equality = [check for check in checks if "divergences" in check["figures"]]
    return {
        "title": f"{found.manifest.target.name}, {_drafter(found.manifest)}",
        "checks": checks,
        "counts": {result: sum(c["result"] == result for c in checks) for result in _RESULTS.values()},
        "equality": equality,
        "depths": _depths(equality[0]["figures"]["rounds_by_depth"]) if equality else [],
        "pictures": report_plots.pictures(found),
        "costs": None if found.costs is None else asdict(found.costs),
        "bundle": _bundle(found.manifest),
        "environment": {**_environment(), **{name: str(fact) for name, fact in found.engine.items()}},
    }


def _depths(rounds: list[int]) -> list[dict[str, Any]]:
    """Return a row for each depth: rounds that came so far, of all of them and of those before."""
    every = max(rounds[0], 1)
    return [
        {"depth": depth, "rounds": count, "share": count / every, "alpha": count / before if before else None}
        for depth, (before, count) in enumerate(pairwise(rounds), start=1)
    ]


def _drafter(manifest: Manifest) -> str:
    return "no drafter" if manifest.drafter is None else f"drafter {manifest.drafter.name}"


def _bundle(manifest: Manifest) -> Facts:
    target, drafter = manifest.target, manifest.drafter
    of_drafter = (
        {}
        if drafter is None
        else {
            "drafter": f"{drafter.name}, {manifest.label('draft')}",
            "drafter's sha256": drafter.sha256,
            "tree": ", ".join(f"{name} {value}" for name, value in asdict(drafter.tree).items()),
            "draft graph's sha256": manifest.graph_sha256("draft"),
        }
    )
    return {
        "target": f"{target.name}, {manifest.label('target')}",
        "target's sha256": target.sha256,
        "architecture": f"{target.config.architecture}, {target.config.parameters:,} parameters",
        "target graph's sha256": manifest.graph_sha256("target"),
        **of_drafter,
        "capacity": f"{manifest.capacity:,} tokens",
        "caches": manifest.cache_form,
        "beside others": _beside(manifest),
        "engines": ", ".join(entry.spec.flavour for entry in manifest.engines) or "none built",
        "built": manifest.created,
        "built with": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }


def _beside(manifest: Manifest) -> str:
    """Return how much answers that are made at once change each other."""
    if (found := manifest.beside) is None:
        return "not measured"
    return f"logits differ by {found.difference:.1e} with {found.slots} in a call"


def _environment() -> Facts:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": processor(),
        "cores": f"{cores()}",
        **versions(*_LIBRARIES),
    }
