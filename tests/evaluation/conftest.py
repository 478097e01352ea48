"""The tiny bundle, open for all tests of a file."""

from collections.abc import Iterator
from typing import Any

import pytest

from poss_export.runtime.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Any) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as engines:
        yield engines
