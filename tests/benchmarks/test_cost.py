"""The cost of a call by its width is measured as `profile` measures it."""

from pathlib import Path

from benchmarks.cost import by_width
from poss_export.runtime.bundle import open_bundle


def test_the_benchmark_measures_alike(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        assert by_width(bundle, 5, (1, 4), 2).keys() == {1, 4}
        assert bundle.target.length() == 5  # only the context was committed
