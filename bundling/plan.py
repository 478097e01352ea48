"""What a build will do, and every refusal that needs no work."""

from dataclasses import asdict, dataclass
from typing import Any

from poss_export.bundling import sizes
from poss_export.bundling.draft_vocabulary import cut_drafter, wide_head
from poss_export.bundling.engine_request import EngineRequest, check_engines
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.calibration.record import check_record
from poss_export.config import CacheForm, Precision, Scheme, TreeShape
from poss_export.contract import draft_contract, target_contract
from poss_export.drafters.checkpoint import DrafterCheckpoint, pair
from poss_export.drafters.readings import TOKENS, settle_feedback
from poss_export.drafters.round import check_tree
from poss_export.engine_spec import (
    MOST_PROFILES,
    GraphName,
    Profile,
    draft_profiles,
    ladder_of,
    target_profiles,
)
from poss_export.errors import CheckpointError, InputError
from poss_export.evaluation.held_out import HELD_OUT
from poss_export.evaluation.text_quality import read_windows
from poss_export.exporters.target import check_target
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, TOKENIZER
from poss_export.quantisation.digits import SEVERAL
from poss_export.reference import ROWS
from poss_export.runtime.sessions.base import PREFILL_CHUNK
from poss_export.targets.checkpoint import Target

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
    engines: EngineRequest | None = None
    quantise: QuantiseRequest | None = None

    @property
    def calibration_request(self) -> dict[str, Any] | None:
        """From which samples a build learns of its drafter, and whether it chooses; or None."""
        if self.drafter is None or self.quantise is None:
            return None
        return self.quantise.calibration_request

    @property
    def quality_request(self) -> dict[str, Any] | None:
        """What a quantised target must reach, on which text and prompts; or None."""
        if self.quantise is None or "target" not in self.quantise.graphs:
            return None
        return self.quantise.quality_request

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may disappoint, though it is right."""
        refused = self.target.text.config.refused
        told = self.target.doubts + tuple(
            f"the chat template does not write {what} ({why})"
            for what, why in refused
            if what != "tools"  # which most targets do not have
        )
        if self.drafter is None:
            return told
        wide = wide_head(self.target, self.drafter, self.tree)
        told += () if wide is None else (wide,)
        if self.drafter.target_sha256 in (None, self.target.sha256):
            return told
        return (
            *told,
            f"drafter {self.drafter.name!r} was trained for other weights than those of "
            f"{self.target.name!r}; output stays right, but fewer tokens may be accepted",
        )

    @property
    def quantise_requests(self) -> dict[GraphName, dict[str, Any]]:
        """What is asked of each quantised graph, as plain values."""
        return {} if self.quantise is None else self.quantise.to_dict()

    def engine_profiles(self, capacity: int) -> dict[GraphName, tuple[Profile, ...]]:
        """Return the sizes of calls that each graph's engine of a capacity is made for."""
        chunk = min(PREFILL_CHUNK, capacity)
        slots = 1 if self.engines is None else self.engines.slots
        found: dict[GraphName, tuple[Profile, ...]] = {
            "target": target_profiles(chunk, self.engine_widths, slots)
        }
        if self.drafter is not None:
            found["draft"] = draft_profiles(chunk, self.tree.depth + 1, slots)
        return found

    @property
    def engine_widths(self) -> tuple[int, ...]:
        """Rows of the calls that the target's engines are made for, ascending; the tree's are among them."""
        tree_width = None if self.drafter is None else self.tree.width
        return ladder_of(tree_width, () if self.engines is None else self.engines.widths)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values; sizes in bytes, those of graphs without their structure."""
        weights = self._weight_bytes()
        values: dict[str, Any] = {
            "target": {
                "name": self.target.name,
                "parameters": self.target.parameters,
                "dequantised": self.target.dequantised,
            },
            "drafter": None,
            "precision": self.precision,
            "quantisation": {graph: asked["scheme"] for graph, asked in self.quantise_requests.items()},
            "cache_form": self.cache_form,
            "capacity": self.capacity,
            "files": {
                f"{TARGET_GRAPH}.data": weights["target"],
                TOKENIZER: len(self.target.text.tokenizer_json.encode()),
            },
            "cache_bytes": self._cache_bytes(),
        }
        if self.drafter is not None:
            values["files"][f"{DRAFT_GRAPH}.data"] = weights["draft"]
            values["drafter"] = {
                "name": self.drafter.name,
                "dialect": self.drafter.dialect.name,
                "parameters": sizes.draft_parameters(self.target, self.drafter, self.tree),
                "vocabulary": self.drafter.vocabulary_words,
                "tree": asdict(self.tree),
            }
        if self.engines is not None:
            values["engines"] = self._engine_facts(self.engines, weights)
        return values

    def _engine_facts(self, engines: EngineRequest, weights: dict[GraphName, int]) -> dict[str, Any]:
        return {
            "backend": f"{engines.flavour} {engines.version}",
            "options": asdict(engines.options),
            "capacities": [*engines.capacities, self.capacity],
            "widths": list(self.engine_widths),
            "slots": engines.slots,
            "estimates": {  # of each capacity
                graph: sizes.engine_bytes(graph, weights[graph], profiles, self.precision)
                for graph, profiles in self.engine_profiles(self.capacity).items()
            },
        }

    def _weight_bytes(self) -> dict[GraphName, int]:
        """Return the sizes of the graphs' weights."""
        schemes: dict[GraphName, Scheme] = {}
        if self.quantise is not None:
            schemes = {graph: wanted.scheme for graph, wanted in self.quantise.graphs.items()}
        found: dict[GraphName, int] = {
            "target": sizes.target_bytes(self.target, self.precision, schemes.get("target"))
        }
        if self.drafter is not None:
            found["draft"] = sizes.draft_bytes(
                self.target, self.drafter, self.tree, self.precision, schemes.get("draft")
            )
        return found

    def _cache_bytes(self) -> dict[str, int]:
        taps = () if self.drafter is None else self.drafter.drafter.config.taps
        target = target_contract(self.target.config, self.precision, taps)
        found = {"target": target.cache_bytes(self.capacity)}
        if self.drafter is not None:
            drafter = draft_contract(self.drafter.drafter.config, self.tree, self.precision)
            found["drafter"] = drafter.cache_bytes(self.capacity)
        return found


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
    draft_vocab_size: int | None = None,
) -> Plan:
    """Check that the parts fit; a capacity of None is 2048 tokens, or the target's longest context.

    A `draft_vocab_size` cuts the drafter to so many ids, by the samples of `quantise` where there are some.

    Raises:
        CheckpointError: target and drafter do not belong together, the chat template writes no prompt, or a
            stop token is none of the target's.
        InputError: capacity, cache form, tree, samples, held-out text or draft vocabulary do not suit them.
    """
    stop_id, vocab_size = max(target.text.config.stop_ids, default=0), target.config.vocab_size
    if stop_id >= vocab_size:
        raise CheckpointError(
            f"target {target.name!r} stops at token {stop_id}, but has {vocab_size} tokens: mend "
            "eos_token_id in its config.json and generation_config.json"
        )
    if (why := dict(target.text.config.refused).get("user messages")) is not None:
        raise CheckpointError(
            f"target {target.name!r}, whose template was given one message of a user: {why}; mend the "
            "template, or take it out of the checkpoint to build for plain text"
        )
    if capacity is None:
        capacity = min(_COMMON_CAPACITY, target.config.max_positions)
    check_target(target.config, cache_form, capacity, precision)
    if capacity < ROWS:
        raise InputError(
            f"capacity is {capacity} tokens; a bundle needs at least {ROWS}: choose a larger one",
            options=("capacity",),
        )
    if drafter is not None:
        pair(target.config, drafter.drafter)
        if drafter.unsettled:
            _settle(target, drafter)
    if engines is not None:
        check_engines(engines, capacity, cache_form)
    if quantise is not None:
        _check_quantise(quantise, target, drafter, cache_form)
        read_windows(target.text, capacity, quantise.text)
    if drafter is not None:
        if draft_vocab_size is not None:
            samples = None if quantise is None else quantise.samples
            drafter = cut_drafter(target, drafter, draft_vocab_size, samples)
        check_tree(drafter.drafter, tree)
    plan = Plan(target, drafter, tree, capacity, precision, cache_form, engines, quantise)
    _check_profiles(plan)
    return plan


def _settle(target: Target, drafter: DrafterCheckpoint) -> None:
    """Try both readings of a drafter on the first tokens of a text."""
    import torch

    ids = target.text.encode(HELD_OUT.read_text(encoding="utf-8"))
    settle_feedback(target.stream_decoder(), drafter.drafter, torch.tensor(ids[:TOKENS]))


def _check_profiles(plan: Plan) -> None:
    """Raise InputError where the target's engine has more profiles than its name can tell."""
    profiles = plan.engine_profiles(plan.capacity)["target"]
    if len(profiles) > MOST_PROFILES:
        raise InputError(
            f"widths {', '.join(map(str, plan.engine_widths))} for calls of so many answers make "
            f"{len(profiles)} profiles; an engine has {MOST_PROFILES} at most: ask for fewer",
            options=("engine_widths", "engine_slots"),
        )


def _check_quantise(
    request: QuantiseRequest, target: Target, drafter: DrafterCheckpoint | None, cache_form: CacheForm
) -> None:
    """Raise InputError where a graph cannot be quantised as it is asked."""
    assert drafter is not None or "draft" not in request.graphs
    for graph in request.graphs:
        _check_schemes(request, graph, cache_form)
    if request.samples is not None:
        check_record(
            request.samples,
            target_sha256=target.sha256,
            drafter_sha256=drafter.sha256 if drafter is not None and "draft" in request.graphs else None,
            vocab_size=target.config.vocab_size,
        )


def _check_schemes(request: QuantiseRequest, graph: GraphName, cache_form: CacheForm) -> None:
    wanted = request.graphs[graph]
    if cache_form == "shared" and "fp8" in wanted.all_schemes:
        raise InputError(
            f"{graph} precision fp8 is for TensorRT: use it with backend tensorrt-rtx or tensorrt, or "
            "take w8a8",
            options=("backend",),
        )
    if cache_form == "static" and "int8" in wanted.all_schemes:
        raise InputError(
            f"{graph} precision int8 (weights only) is for ONNX Runtime on the CPU: take w8a8 or int4"
        )
    if cache_form == "static" and (digits := wanted.all_schemes & SEVERAL):
        raise InputError(
            f"{graph} precision {min(digits)} is for ONNX Runtime on the CPU: take w8a8, or another backend"
        )
