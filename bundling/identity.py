"""What a bundle was made from, beside what the same request would make it from now."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from reprlib import repr as shortened
from typing import Any

from poss_export.bundling.graphs import library_versions
from poss_export.bundling.plan import Plan
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import GraphName
from poss_export.manifest import TOKENIZER, DrafterEntry, Manifest
from poss_export.targets.checkpoint import Target

Fact = tuple[str, Any, Any]  # its name, what the bundle has, what there is now

_MOST_TOLD = 3  # places that differ within one fact
_DECIDING = ("poss-export", "torch", "onnx", "onnxscript")  # their versions decide what a graph is


def target_facts(manifest: Manifest, target: Target) -> list[Fact]:
    """Return what decides the target's graph."""
    return [
        ("target", manifest.target.sha256, target.sha256),
        ("target configuration", manifest.target.config, target.config),
        ("kind of quantised weights", manifest.target.dequantised, target.dequantised),
    ]


def text_facts(manifest: Manifest, target: Target) -> list[Fact]:
    """Return what decides prompts and answers as text."""
    tokenizer = hashlib.sha256(target.text.tokenizer_json.encode()).hexdigest()
    return [
        ("tokenizer", manifest.files[TOKENIZER].sha256, tokenizer),
        ("text", manifest.text, target.text.config),
    ]


def drafter_facts(entry: DrafterEntry | None, drafter: DrafterCheckpoint | None) -> list[Fact]:
    """Return what decides the draft graph, but for the tree."""
    return [
        ("drafter", entry and entry.sha256, drafter and drafter.sha256),
        ("draft vocabulary", entry and entry.vocabulary, drafter and drafter.vocabulary),
        ("drafter configuration", entry and entry.config, drafter and drafter.drafter.config),
    ]


def plan_facts(manifest: Manifest, plan: Plan) -> list[Fact]:
    """Return everything that decides a bundle's graphs, its text and what was learned with them."""
    learned, judged, text_by = manifest.calibration, manifest.quality, plan.target.text_libraries
    present = library_versions(*text_by)
    return [
        *target_facts(manifest, plan.target),
        *text_facts(manifest, plan.target),
        *drafter_facts(manifest.drafter, plan.drafter),
        ("tree", manifest.drafter and manifest.drafter.tree, plan.drafter and plan.tree),
        ("precision", manifest.precision, plan.precision),
        ("quantisation", _requests(manifest), plan.quantise_requests),
        ("calibration", learned and learned["request"], plan.calibration_request),
        ("measure of quality", judged and judged.get("request"), plan.quality_request),
        ("cache form", manifest.cache_form, plan.cache_form),
        ("capacity", manifest.capacity, plan.capacity),
        *((f"version of {one}", manifest.versions.get(one), present[one]) for one in (*_DECIDING, *text_by)),
    ]


def difference(facts: Iterable[Fact]) -> str:
    """Return the name of the first fact that differs, and how, where people can read it; "" for none."""
    for name, have, want in facts:
        if have != want:
            told = [] if _is_hash(have) or _is_hash(want) else [*_told(have, want)]
            more = ["..."] if len(told) > _MOST_TOLD else []
            return f"{name} ({', '.join(told[:_MOST_TOLD] + more)})" if told else name
    return ""


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _told(have: Any, want: Any, name: str = "") -> Iterator[str]:
    """Yield what differs within two values, each place by its name."""
    have, want = (_plain(value) for value in (have, want))
    if isinstance(have, dict) and isinstance(want, dict):
        for key in have | want:
            yield from _told(have.get(key), want.get(key), f"{name}.{key}" if name else str(key))
    elif have != want:
        yield f"{name} was {shortened(have)}, is {shortened(want)}".lstrip()


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _requests(manifest: Manifest) -> dict[GraphName, Any]:
    """Return what was asked of each graph that was quantised, kept or not."""
    tried = (manifest.calibration or {}).get("drafter")
    requests = {graph: entry["request"] for graph, entry in manifest.quantisation.items()}
    return requests if tried is None else {**requests, "draft": tried["request"]}
