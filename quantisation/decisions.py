"""How each weight of a graph is quantised: decided on one graph, made of any export of the same model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from poss_export.config import Observer, Scheme
from poss_export.errors import InputError
from poss_export.quantisation.compensation import compensate
from poss_export.quantisation.digits import DIGITS, digits_for
from poss_export.quantisation.gains import COPY, add_gains, untie
from poss_export.quantisation.observers import OBSERVERS
from poss_export.quantisation.rounding import LARGEST, output_error
from poss_export.quantisation.sites import Site, find_sites
from poss_export.quantisation.small import Small
from poss_export.quantisation.smoothing import Migration, choose_scales, find_migrations, move_scales
from poss_export.quantisation.statistics import Floats, Statistics, by_weight

# These round activations so coarsely that layers may not bear it.
_COARSE: tuple[Scheme, ...] = ("w8a8", "fp8")

Sweep = Callable[[onnx.ModelProto, Mapping[str, float]], Mapping[str, float]]  # limits to sensitivities


@dataclass(frozen=True)
class GraphRequest:
    """What is asked of one graph.

    `layers` override the scheme where a pattern fits: "head", "fusion", or a weight's name with wildcards; of
    several the last one counts, and None leaves a layer in floating point. Activations of several digits get
    more where their range takes them. Those of one digit may cost `budget` nats a token, added up over the
    layers; the most sensitive ones beyond it get `fallback` instead.
    """

    scheme: Scheme
    layers: tuple[tuple[str, Scheme | None], ...] = ()
    observer: Observer = "min-max"
    smoothing: bool = True
    budget: float = 0.01
    fallback: Scheme | None = None

    @property
    def all_schemes(self) -> set[Scheme]:
        """Every scheme that a layer may get."""
        return {scheme for _, scheme in (*self.layers, ("", self.scheme), ("", self.fallback)) if scheme}

    @property
    def coarse(self) -> bool:
        """Whether a layer may get activations of one digit, whose tight ranges take many samples."""
        return not self.all_schemes.isdisjoint(_COARSE)

    @property
    def need_samples(self) -> set[Scheme]:
        """The schemes among them that round activations, which takes their ranges."""
        return self.all_schemes & LARGEST.keys()


@dataclass(frozen=True)
class Decisions:
    """What was decided about a graph; a weight without a scheme stays as it is."""

    schemes: dict[str, Scheme]  # by weight
    limits: dict[str, float]  # how far the range of an activation reaches, by site
    scales: dict[str, Floats]  # s, by the parameter that takes 1 / s
    sensitivity: dict[str, float]  # by weight, nats a token, where it was measured
    fallbacks: tuple[str, ...]  # weights that were too sensitive for the scheme
    small: dict[str, Small] = field(default_factory=dict)  # INT8 forms, by weight, chosen by what reads them

    def to_dict(self) -> dict[str, Any]:
        """Return what a report tells, as plain JSON values."""
        values = asdict(replace(self, small={}))
        del values["small"]
        values["scales"] = sorted(self.scales)
        return values


def decide(
    model: onnx.ModelProto,
    request: GraphRequest,
    statistics: Mapping[str, Statistics] | None,
    sweep: Sweep | None = None,
) -> Decisions:
    """Decide what happens to each weight.

    Args:
        model: a float32 graph with its weights in memory; chosen scales are moved in it.
        request: what is asked.
        statistics: of the sites, by their names; None where only weights are to be rounded.
        sweep: measures how sensitive activations are; without it no layer is.

    Raises:
        InputError: a pattern of the request fits no layer.
    """
    schemes = _assign(find_sites(model), request)
    _untie_heads(model, schemes)
    if statistics is None:
        return Decisions(schemes, {}, {}, {}, ())
    scales, divided = _migrate(model, schemes, statistics) if request.smoothing else ({}, {})
    sites = find_sites(model)
    met = {site.name: _divided(statistics[site.name], divided.get(site.weight)) for site in sites}
    limits = {
        site.name: _limit(request.observer, met[site.name])
        for site in sites
        if schemes.get(site.weight) in LARGEST
    }
    coarse = {site.name: limits[site.name] for site in sites if schemes.get(site.weight) in _COARSE}
    sensitivity = {} if sweep is None else _sensitivity(model, sites, coarse, sweep)
    asked_for = {site.weight for site in sites if _override(site, request) is not None}
    fallbacks = _too_sensitive(sensitivity, request.budget) - asked_for
    for weight in fallbacks:
        del schemes[weight]
        if request.fallback is not None:
            schemes[weight] = request.fallback
    joined = by_weight(sites, met)
    _widen(schemes, sites, limits, joined)
    small = _compensate(model, schemes, joined)
    return Decisions(schemes, limits, scales, sensitivity, tuple(sorted(fallbacks)), small)


def _widen(
    schemes: dict[str, Scheme],
    sites: Sequence[Site],
    limits: Mapping[str, float],
    statistics: Mapping[str, Statistics],
) -> None:
    """Give weights whose input has a range far beyond its spread more digits than were asked for."""
    for site in sites:
        if (scheme := schemes.get(site.weight)) in DIGITS and scheme not in _COARSE:
            schemes[site.weight] = digits_for(scheme, limits[site.name], statistics[site.weight].spread)


def _compensate(
    model: onnx.ModelProto, schemes: Mapping[str, Scheme], statistics: Mapping[str, Statistics]
) -> dict[str, Small]:
    """Return the INT8 forms of weights whose activations are rounded to digits."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        weight: compensate(numpy_helper.to_array(tensors[weight]), statistics[weight].rows)
        for weight, scheme in schemes.items()
        if scheme in DIGITS
    }


def _migrate(
    model: onnx.ModelProto, schemes: Mapping[str, Scheme], statistics: Mapping[str, Statistics]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Move scales; return s by the parameter that takes 1 / s, and by the weight that takes s."""
    _add_gains(model, schemes)
    migrations = find_migrations(model, sites := find_sites(model))
    # With several digits an activation is exact enough as it is, and weights lose less unscaled.
    errors = {
        weight: partial(output_error, scheme)
        for weight, scheme in schemes.items()
        if DIGITS.get(scheme, 1) == 1
    }
    scales = choose_scales(model, migrations, by_weight(sites, statistics), errors)
    move_scales(model, migrations, scales)
    return scales, _by_reader(migrations, scales)


def _sensitivity(
    model: onnx.ModelProto, sites: Sequence[Site], limits: Mapping[str, float], sweep: Sweep
) -> dict[str, float]:
    """Return what rounding its input costs, by weight."""
    rounded = [site for site in sites if site.name in limits]
    if not rounded:
        return {}
    by_input = sweep(model, {site.input: limits[site.name] for site in rounded})
    return {site.weight: by_input[site.input] for site in rounded}


def _too_sensitive(sensitivity: Mapping[str, float], budget: float) -> set[str]:
    """Return the weights beyond the budget, which goes to the least sensitive ones first."""
    costs = sorted((cost, weight) for weight, cost in sensitivity.items())
    spent = np.cumsum([cost for cost, _ in costs])
    return {weight for (_, weight), total in zip(costs, spent, strict=True) if total > budget}


def _assign(sites: Sequence[Site], request: GraphRequest) -> dict[str, Scheme]:
    """Return the scheme of each weight that gets one."""
    for pattern, _ in request.layers:
        if not any(_fits(site, pattern) for site in sites):
            raise InputError(
                f"no layer fits {pattern!r}: use head, fusion, or a weight's name with wildcards, such as "
                f"{sites[0].weight!r}"
            )
    schemes = dict[str, Scheme]()
    for site in sites:
        override = _override(site, request)
        scheme = request.scheme if override is None else override[1]
        if scheme is not None:
            schemes[site.weight] = scheme
    return schemes


def _untie_heads(model: onnx.ModelProto, schemes: dict[str, Scheme]) -> None:
    """Give the heads that have a scheme weights of their own, which take the table's place in `schemes`."""
    tables = {site.weight for site in find_sites(model) if site.transposed} & schemes.keys()
    untie(model, tables)
    for table in tables:
        schemes[table + COPY] = schemes.pop(table)


def _add_gains(model: onnx.ModelProto, schemes: Mapping[str, Scheme]) -> None:
    """Give heads and fusions whose input is rounded, and has no place for scales yet, a gain."""
    sites = find_sites(model)
    migrating = {weight for migration in find_migrations(model, sites) for weight in migration.weights}
    rounded = {weight for weight, scheme in schemes.items() if scheme in _COARSE}
    add_gains(model, {site.weight for site in sites if site.role != "layer"} & rounded - migrating)


def _override(site: Site, request: GraphRequest) -> tuple[str, Scheme | None] | None:
    return next((layer for layer in reversed(request.layers) if _fits(site, layer[0])), None)


def _fits(site: Site, pattern: str) -> bool:
    return site.role == pattern or fnmatchcase(site.weight.removesuffix(COPY), pattern)


def _by_reader(migrations: Sequence[Migration], scales: Mapping[str, Floats]) -> dict[str, Floats]:
    return {
        w: scales[migration.parameter]
        for migration in migrations
        if migration.parameter in scales
        for w in migration.weights
    }


def _divided(statistics: Statistics, scale: Floats | None) -> Statistics:
    return statistics if scale is None else statistics / scale


def _limit(observer: Observer, statistics: Statistics) -> float:
    """Return how far the range of an activation reaches; one that is always 0 has any."""
    return OBSERVERS[observer](statistics) if statistics.channel_max.any() else 1.0
