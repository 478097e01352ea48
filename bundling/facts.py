"""What a bundle, a drafter or a target is, as plain JSON values."""

from collections import Counter
from pathlib import Path
from typing import Any

from poss_export.errors import InputError
from poss_export.manifest import MANIFEST, read_manifest


def facts_of(thing: str, positions_per_specialist: int | None = None) -> dict[str, Any]:
    """Return the facts of a bundle, a drafter or a target, named as for `poss-export build`.

    `positions_per_specialist`: of a drafter that does not state it.

    Raises:
        PossExportError: it is none of them, or is damaged.
    """
    facts = _facts(thing, positions_per_specialist)
    if positions_per_specialist is not None and facts["kind"] != "drafter":
        raise InputError(
            f"{thing!r} is a {facts['kind']}; positions per specialist are of drafters: leave the option out"
        )
    return facts


def _facts(thing: str, positions_per_specialist: int | None) -> dict[str, Any]:
    if (Path(thing) / MANIFEST).is_file():
        return {"kind": "bundle", **read_manifest(Path(thing)).to_dict()}
    # Checkpoints need PyTorch, bundles do not.
    from poss_export.drafters.checkpoint import is_drafter

    return _drafter_facts(thing, positions_per_specialist) if is_drafter(thing) else _target_facts(thing)


def _drafter_facts(spec: str, positions_per_specialist: int | None) -> dict[str, Any]:
    from poss_export.drafters.checkpoint import load_drafter

    drafter = load_drafter(spec, positions_per_specialist)
    return {
        "kind": "drafter",
        "name": drafter.name,
        "dialect": drafter.dialect.name,
        "recognised_by": drafter.dialect.reason,
        "sha256": drafter.sha256,
        "target_sha256": drafter.target_sha256,
        "parameters": drafter.parameters,
        "config": drafter.drafter.config.to_dict(),
    }


def _target_facts(spec: str) -> dict[str, Any]:
    from poss_export.targets.checkpoint import open_target

    target = open_target(spec)
    return {
        "kind": "target",
        "name": target.name,
        "sha256": target.sha256,
        "parameters": target.parameters,
        "config": target.config.to_dict(),
        "weight_files": [str(path) for path in target.weight_files],
    }


def in_short(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts without what a bundle says of every weight: how many there are, in its place."""
    quantisation = {
        graph: {
            **{name: value for name, value in entry.items() if not isinstance(value, dict | list | tuple)},
            "request": entry["request"],
            "weights": dict(Counter(entry["schemes"].values())),
            "moved_scales": len(entry["scales"]),
            "fallbacks": len(entry["fallbacks"]),
        }
        for graph, entry in facts.get("quantisation", {}).items()
    }
    return {**facts, "quantisation": quantisation} if quantisation else facts
