"""How far a symmetric 8-bit range reaches: what lies beyond is cut off, what lies within is coarser."""

from collections.abc import Callable

import numpy as np

from poss_export.config import Observer
from poss_export.quantisation.statistics import Floats, Statistics

HEADROOM = 1.5  # samples are few, and a value beyond the range is worse than coarser steps within
PERCENTILE = 99.99
_BINS = 512  # on each side of zero, of the histogram that entropy reads
_LEVELS = 127  # on each side of zero


def min_max(statistics: Statistics) -> float:
    """Return the largest magnitude of all rows with some headroom: nothing is cut off."""
    return HEADROOM * float(statistics.channel_max.max())


def percentile(statistics: Statistics) -> float:
    """Return what `PERCENTILE` percent of the kept values do not exceed."""
    return float(np.percentile(np.abs(statistics.rows), PERCENTILE))


def entropy(statistics: Statistics) -> float:
    """Return the threshold of least Kullback-Leibler divergence, as ONNX Runtime's calibrator finds it."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    rows, reach = statistics.rows, float(statistics.channel_max.max())
    counts, edges = np.histogram(rows, bins=2 * _BINS + 1, range=(-reach, reach))
    collector = HistogramCollector("entropy", True, 2 * _BINS + 1, 2 * _LEVELS + 1, None, None)
    low, high = collector.get_entropy_threshold((counts, edges, -reach, reach), 2 * _LEVELS + 1)[:2]
    return float(max(-low, high))


def mse(statistics: Statistics) -> float:
    """Return the range whose rounding and cutting together have the least mean squared error."""
    reach = float(statistics.channel_max.max())
    candidates = reach * np.geomspace(1, 0.02, 40)
    return float(min(candidates, key=lambda limit: _squared_error(statistics.rows, limit)))


def _squared_error(rows: Floats, limit: float) -> float:
    step = limit / _LEVELS
    return float(np.square(np.clip(np.rint(rows / step), -_LEVELS, _LEVELS) * step - rows).mean())


OBSERVERS: dict[Observer, Callable[[Statistics], float]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
