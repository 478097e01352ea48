"""Cards: what a bundle, a drafter or a target is, for a person with ten seconds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from poss_export.cli.printing import megabytes
from poss_export.draft_vocabulary import describe_vocabulary
from poss_export.engine_spec import NAMES
from poss_export.errors import BundleError, translated

if TYPE_CHECKING:
    from poss_export.bundling.facts import BundleFacts, DrafterFacts, TargetFacts
    from poss_export.config import TargetConfig
    from poss_export.drafter_config import DrafterConfig
    from poss_export.manifest import Manifest

Rows = dict[str, str]


def card(title: str, rows: Rows) -> Table:
    """Return a card: a title, and a line for every row that has a text."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    for name, text in rows.items():
        if text:
            table.add_row(name, escape(text))
    return table


def bundle_card(facts: "BundleFacts") -> Table:
    """Return what a bundle is, how large, how fast, how good, and in which way lossless."""
    manifest = facts.manifest
    drafter = "no drafter" if manifest.drafter is None else f"drafter {manifest.drafter.name}"
    with translated(BundleError, f"{str(facts.folder)!r} does not describe itself; rebuild it"):
        rows = _bundle_rows(facts)
    return card(f"{facts.folder.resolve().name}: bundle of {manifest.target.name}, {drafter}", rows)


def _bundle_rows(facts: "BundleFacts") -> Rows:
    manifest = facts.manifest
    return {
        "target": _target_line(facts),
        "dequantised": from_quantised(manifest.target.dequantised),
        "drafter": _drafter_line(facts),
        "vocabulary": _vocabulary_line(manifest),
        "drafter's precision": choice_line(manifest.calibration),
        "tree": _tree_line(manifest),
        "capacity": f"{manifest.capacity:,} tokens of prompt and answer",
        "on disk": megabytes(facts.sizes["all"]),
        "runs on": _runs_on(manifest),
        "engines": _engines_line(facts),
        **_speed_rows(manifest),
        **_quality_rows(manifest),
        "acceptance": _acceptance_line(facts),
        "lossless": lossless(manifest),
        "at once": at_once(manifest),
        "built": f"{manifest.created[:10]}, poss-export {manifest.versions.get('poss-export', 'unknown')}",
    }


def drafter_card(facts: "DrafterFacts") -> Table:
    """Return what a drafter is, and what it was trained for."""
    config = facts.config
    positions = config.positions_per_specialist
    specialists = f"{config.num_specialists}, each for {_count(positions, 'draft position')}"
    rows = {
        "dialect": f"{facts.dialect}: {facts.recognised_by}",
        "parameters": millions(facts.parameters),
        "drafting": "level by level"
        if config.drafting == "tree"
        else f"{config.num_masks + 1} positions in one pass",
        "specialists": specialists if positions else "one for every draft position",
        "fusion": f"{config.fusion}; alignment {config.alignment}",
        "reads": _taps(config) if config.reads_taps else "",
        "not told": "whether states are fed back normed; a build tries both" if facts.unsettled else "",
        "vocabulary": describe_vocabulary(config, None),
        "layers": f"{_count(config.num_layers, 'layer')}, hidden size {config.hidden_size:,}, "
        f"{config.num_heads} heads ({config.num_kv_heads} of keys)",
        "trained for": f"target {facts.target_sha256[:12]}" if facts.target_sha256 else "",
        "sha256": facts.sha256,
    }
    return card(f"{facts.name}: drafter", rows)


def _taps(config: "DrafterConfig") -> str:
    """Return which layers a drafter reads, and how."""
    layers = ", ".join(map(str, config.taps)) or "2, half and 3 before the end"
    flags = {
        "residual from the normed state": config.norm_before_residual,
        "feeds back normed states": config.feed_back_normed,
        "norms heads": config.qk_norm,
        "own LM head": config.own_head,
        "own embeddings": config.own_embeddings,
    }
    told = [f"norm {config.tap_norm}", *(words for words, flag in flags.items() if flag)]
    return f"what enters layers {layers} of its target; {', '.join(told)}"


def target_card(facts: "TargetFacts") -> Table:
    """Return what a target is."""
    config = facts.config
    rows = {
        "architecture": config.architecture,
        "parameters": millions(facts.parameters),
        "layers": f"{config.num_layers}, hidden size {config.hidden_size:,}, "
        f"{config.num_heads} heads ({config.num_kv_heads} of keys)",
        "vocabulary": f"{config.vocab_size:,} tokens{', tied embeddings' if config.tied_embeddings else ''}",
        "context": f"{config.max_positions:,} tokens{_windows(config)}",
        "weights": _count(len(facts.weight_files), "file"),
        "dequantised": from_quantised(facts.dequantised),
        "sha256": facts.sha256,
    }
    return card(f"{facts.name}: target", rows)


def from_quantised(kind: str | None) -> str:
    """Return from which kind of quantised weights a target was made; nothing of one in floating point."""
    return "" if kind is None else f"from {kind}"


def _windows(config: "TargetConfig") -> str:
    if config.window is None:
        return ""
    return f", of which {len(config.windowed_layers)} layers see the last {config.window:,}"


def millions(parameters: int) -> str:
    """Return a number of parameters in words."""
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"


def lossless(manifest: "Manifest") -> str:
    """Return in one sentence whether speculation leaves the target's own output."""
    exactness = manifest.exactness
    chain = manifest.drafter is None or manifest.drafter.tree.is_chain
    if not exactness.claims(chain):
        if exactness.claims(chain=True):
            return "bit for bit, in chains, which plans keep to; not claimed of fixed trees with siblings"
        return "not claimed: what a token gets depends on the others in its call"
    if tie := exactness.tie(chain=chain):
        return f"yes; where two logits are within {tie:.0e}, rounding may decide"
    return "yes, bit for bit"


def at_once(manifest: "Manifest") -> str:
    """Return in one sentence whether answers that are made at once are those made alone."""
    if manifest.beside is None:
        return "not measured when it was built"
    if (tie := manifest.exactness.beside_tie) is None:
        return f"not claimed: logits beside others differ by {manifest.beside.difference:.1e}"
    if tie:
        return f"as alone; where two logits are within {tie:.0e}, rounding may decide"
    return f"as alone, bit for bit, with {manifest.beside.slots} in a call"


def quality_rows(quality: Mapping[str, Any]) -> Rows:
    """Return what quantising costs, beside the pair in floating point."""
    text, rounds = quality["text"], quality["rounds"]
    rows = {
        "perplexity": f"{text['perplexity']:.3f}, in floating point {text['reference_perplexity']:.3f}",
        "agreement": f"{text['agreement']:.1%} of {text['tokens']:,} next tokens, "
        f"divergence {text['divergence']:.4f} nats",
    }
    if rounds:
        rows["tau"] = f"{rounds['tau']:.2f} tokens a round, in floating point {rounds['reference_tau']:.2f}"
        rows["fixed trees"] = f"{rounds['equal_answers']} of {rounds['prompts']} answers are target-only's"
    if quality.get("in_pieces"):
        rows["perplexity"] += ", which read the text piece by piece"
    return rows


def _quality_rows(manifest: "Manifest") -> Rows:
    if manifest.quality is not None:
        return quality_rows(manifest.quality)
    if not manifest.parity:
        return {}
    how = ", the target run piece by piece" if manifest.in_pieces else ""
    return {"parity": f"within {max(manifest.parity.values()):.1e} of PyTorch{how}"}


def _target_line(facts: "BundleFacts") -> str:
    target, precision = facts.manifest.target, facts.manifest.label("target")
    size = megabytes(facts.sizes["target"])
    return f"{target.name}, {millions(target.config.parameters)} parameters, {precision}, {size}"


def _drafter_line(facts: "BundleFacts") -> str:
    drafter = facts.manifest.drafter
    if drafter is None:
        return ""
    return f"{drafter.name}, {facts.manifest.label('draft')}, {megabytes(facts.sizes['draft'])}"


def _vocabulary_line(manifest: "Manifest") -> str:
    entry = manifest.drafter
    return "" if entry is None else describe_vocabulary(entry.config, entry.vocabulary)


def choice_line(calibration: Mapping[str, Any] | None) -> str:
    """Return which precision of the drafter was kept, and the figures of each that was tried."""
    tried = (calibration or {}).get("drafter")
    if tried is None:
        return ""
    figures = [
        f"{name} {tau:.2f} tokens a round" + (f" in {tried['ms'][name]:.1f} ms" if tried["ms"] else "")
        for name, tau in tried["tau"].items()
    ]
    return f"{tried['kept']}, {tried['why']}: {', '.join(figures)}"


def _tree_line(manifest: "Manifest") -> str:
    if manifest.drafter is None:
        return ""
    tree = manifest.drafter.tree
    if tree.is_chain:
        return f"a chain of {_count(tree.nodes, 'drafted token')}"
    return f"{_count(tree.nodes, 'drafted token')}, depth {tree.depth}, top-k {tree.top_k}"


def _runs_on(manifest: "Manifest") -> str:
    names = {NAMES[entry.spec.flavour]: None for entry in manifest.engines}
    return ", ".join(["ONNX Runtime", *names]) + f"; {manifest.cache_form} caches"


def _engines_line(facts: "BundleFacts") -> str:
    """Return what the engines are for: library, devices, and how much a cache holds."""
    capacities: dict[str, set[int]] = {}
    for spec in (entry.spec for entry in facts.manifest.engines):
        devices = ", ".join(spec.options.compute_capabilities) or "this machine's device"
        capacities.setdefault(f"{NAMES[spec.flavour]} {spec.version} for {devices}", set()).add(spec.capacity)
    kinds = [
        f"{kind}: {' and '.join(f'{size:,}' for size in sorted(sizes))} tokens"
        for kind, sizes in capacities.items()
    ]
    return "; ".join([*kinds, megabytes(facts.sizes["engines"])]) if kinds else ""


def _speed_rows(manifest: "Manifest") -> Rows:
    """Return how long calls took on the machine that built the bundle, where they were timed."""
    quality = manifest.quality
    if quality is None or "ms" not in quality:
        return {}
    ours, theirs = quality["ms"]["quantised"], quality["ms"]["reference"]
    steps = ours["target"]["1"], theirs["target"]["1"]
    rounds = (ours["round"], theirs["round"]) if "round" in ours else None
    return {
        "step": f"{steps[0]:.1f} ms of the target alone, in floating point {steps[1]:.1f}",
        "round": f"{rounds[0]:.1f} ms where it was built, in floating point {rounds[1]:.1f}"
        if rounds
        else "",
    }


def _acceptance_line(facts: "BundleFacts") -> str:
    curves = facts.acceptance
    if curves is None:
        return ""
    return f"expected calibration error {curves.after.ece:.3f}, of raw scores {curves.before.ece:.3f}"


def _count(number: int | None, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
