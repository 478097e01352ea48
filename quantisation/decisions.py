"""How each weight of a graph is quantised: decided on one graph, made of any export of the same model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import onnx

from poss_export.config import Observer, Scheme
from poss_export.errors import InputError
from poss_export.onnx_file import read_weight
from poss_export.quantisation.compensation import compensate
from poss_export.quantisation.digits import SEVERAL, digits_for
from poss_export.quantisation.gains import COPY, add_gains, untie
from poss_export.quantisation.observers import OBSERVERS
from poss_export.quantisation.rounding import LARGEST, output_error
from poss_export.quantisation.scratch import Keep, in_memory
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
    keep: Keep = in_memory,
) -> Decisions:
    """Decide what happens to each weight.

    Args:
        model: a float32 graph; chosen scales are moved in it.
        request: what is asked.
        statistics: of the sites, by their names; None where only weights are to be rounded.
        sweep: measures how sensitive activations are; without it no layer is.
        keep: has the weights that change.

    Raises:
        InputError: a pattern of the request fits no layer.
    """
    schemes = _assign(find_sites(model), request)
    _untie_heads(model, schemes, keep)
    if statistics is None:
        return Decisions(schemes, {}, {}, {}, ())
    scales = _migrate(model, schemes, statistics, keep) if request.smoothing else {}
    sites = find_sites(model)
    met = _met(model, sites, statistics, scales)
    coarse = [site for site in sites if schemes.get(site.weight) in _COARSE]
    sensitivity = {}
    if coarse and sweep is not None:
        sensitivity = _sensitivity(model, coarse, _limits(request.observer, coarse, met), sweep)
    asked_for = {site.weight for site in sites if _override(site, request) is not None}
    fallbacks = _too_sensitive(sensitivity, request.budget) - asked_for
    for weight in fallbacks:
        del schemes[weight]
        if request.fallback is not None:
            schemes[weight] = request.fallback
    if request.fallback in SEVERAL:
        scales = _move_back(model, scales, fallbacks, keep)
        met = _met(model, sites, statistics, scales)
    rounded = [site for site in sites if schemes.get(site.weight) in LARGEST]
    limits, joined = _limits(request.observer, rounded, met), by_weight(sites, met)
    _widen(schemes, rounded, limits, joined)
    small = _compensate(model, schemes, joined, keep)
    return Decisions(schemes, limits, scales, sensitivity, tuple(sorted(fallbacks)), small)


def _met(
    model: onnx.ModelProto,
    sites: Sequence[Site],
    statistics: Mapping[str, Statistics],
    scales: Mapping[str, Floats],
) -> dict[str, Statistics]:
    """Return the statistics of the sites once scales have moved."""
    divided = _by_reader(find_migrations(model, sites), scales)
    return {
        site.name: statistics[site.name] / divided[site.weight]
        if site.weight in divided
        else statistics[site.name]
        for site in sites
    }


def _limits(
    observer: Observer, sites: Sequence[Site], statistics: Mapping[str, Statistics]
) -> dict[str, float]:
    """Return how far the ranges of activations reach, by site; of one that is always 0 anywhere."""
    return {
        site.name: OBSERVERS[observer](met) if met.channel_max.any() else 1.0
        for site in sites
        for met in (statistics[site.name],)
    }


def _widen(
    schemes: dict[str, Scheme],
    sites: Sequence[Site],
    limits: Mapping[str, float],
    statistics: Mapping[str, Statistics],
) -> None:
    """Give weights whose input has a range far beyond its spread more digits than were asked for."""
    for site in sites:
        if (scheme := schemes.get(site.weight)) in SEVERAL:
            schemes[site.weight] = digits_for(scheme, limits[site.name], statistics[site.weight].spread)


def _compensate(
    model: onnx.ModelProto, schemes: Mapping[str, Scheme], statistics: Mapping[str, Statistics], keep: Keep
) -> dict[str, Small]:
    """Return INT8 forms of weights whose activations have several digits: where nothing else is lost."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = dict[str, Small]()
    for weight in (weight for weight, scheme in schemes.items() if scheme in SEVERAL):
        small = compensate(read_weight(tensors[weight]), statistics[weight].rows)
        found[weight] = replace(small, values=read_weight(keep(small.values, weight)))
    return found


def _migrate(
    model: onnx.ModelProto, schemes: Mapping[str, Scheme], statistics: Mapping[str, Statistics], keep: Keep
) -> dict[str, Floats]:
    """Move scales; return s by the parameter that takes 1 / s."""
    _add_gains(model, schemes)
    migrations = find_migrations(model, sites := find_sites(model))
    # An activation of several digits is exact enough as it is, and its weights lose less unscaled.
    errors = {
        weight: partial(output_error, scheme) for weight, scheme in schemes.items() if scheme not in SEVERAL
    }
    scales = choose_scales(model, migrations, by_weight(sites, statistics), errors)
    move_scales(model, migrations, scales, keep)
    return scales


def _move_back(
    model: onnx.ModelProto, scales: Mapping[str, Floats], weights: set[str], keep: Keep
) -> dict[str, Floats]:
    """Move scales back where none but `weights` have taken them; return the others."""
    migrations = find_migrations(model, find_sites(model))
    back = {m.parameter for m in migrations if m.parameter in scales and weights.issuperset(m.weights)}
    move_scales(model, migrations, {parameter: np.reciprocal(scales[parameter]) for parameter in back}, keep)
    return {parameter: s for parameter, s in scales.items() if parameter not in back}


def _sensitivity(
    model: onnx.ModelProto, sites: Sequence[Site], limits: Mapping[str, float], sweep: Sweep
) -> dict[str, float]:
    """Return what rounding its input costs, by weight."""
    by_input = sweep(model, {site.input: limits[site.name] for site in sites})
    return {site.weight: by_input[site.input] for site in sites}


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


def _untie_heads(model: onnx.ModelProto, schemes: dict[str, Scheme], keep: Keep) -> None:
    """Give the heads that have a scheme weights of their own, which take the table's place in `schemes`."""
    tables = {site.weight for site in find_sites(model) if site.transposed} & schemes.keys()
    untie(model, tables, keep)
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
