"""Whether what a sequence gets depends on those that share its calls: measured when a bundle is built.

The same calls are run in the session of one slot, which answers in turns, and in that of several, which
answers many at once: both are those that run the bundle.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from poss_export.evaluation.differences import largest
from poss_export.evaluation.laws import TOKENS, ask_beside, run_together
from poss_export.exactness import Beside
from poss_export.manifest import Manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.onnx_target import onnx_target
from poss_export.runtime.sessions.ort import OrtOptions

SLOTS = 8
_CACHES = 1 << 30  # bytes of all slots: an engine that reads caches of full length may touch all


def measure_beside(folder: Path, manifest: Manifest) -> Beside:
    """Return how much calls that several slots share differ from those alone, in graphs of every size.

    Args:
        folder: of the bundle, whose target's weights get a copy there for the time.
        manifest: what is known of it so far, its files too.
    """
    contract, vocab = contracts_of(manifest)["target"], manifest.target.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocab, TOKENS)
    asked = ask_beside(tokens, _slots(contract.cache_bytes(manifest.capacity)))
    with onnx_target(folder, manifest, contract, OrtOptions()) as session:
        alone = [run_together(session, [one.alone()])[0] for one in asked]
    differences = []
    options = OrtOptions(slots=len(asked))
    with (
        TemporaryDirectory(dir=folder) as cache,
        onnx_target(folder, manifest, contract, options, Path(cache)) as session,
    ):
        count = len(asked)
        while count > 1:
            for places in (slice(count), slice(-count, None)):
                for found, expected in zip(run_together(session, asked[places]), alone[places], strict=True):
                    differences += [np.abs(found[i] - expected[i].astype(np.float64)).max() for i in (1, 3)]
            count //= 2
    return Beside(len(asked), largest(differences))


def _slots(each: int) -> int:
    """Return how many slots are tried, a power of two; a slot's caches take `each` bytes."""
    slots = SLOTS
    while slots > 2 and slots * each > _CACHES:
        slots //= 2
    return slots
