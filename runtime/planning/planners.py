"""A planner for each answer of a bundle, and what they share: costs, calibrated chances, a corpus."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from poss_export.acceptance import AcceptanceCurves
from poss_export.costs import Costs, Fingerprint, keep, load_cached
from poss_export.errors import InputError
from poss_export.manifest import ACCEPTANCE, Manifest
from poss_export.progress import Progress, silent
from poss_export.runtime.planning.chances import Calibration, DraftChances
from poss_export.runtime.planning.lookup import Lookup, SuffixAutomaton
from poss_export.runtime.planning.measure import QUICK, Effort, measure_costs, measure_together
from poss_export.runtime.planning.planner import (
    ADAPTIVE,
    WHOLE_TREES,
    AdaptivePlanner,
    Planner,
    Planning,
)
from poss_export.runtime.sessions.base import DraftSession, TargetSession
from poss_export.text import Text

LONGEST_CORPUS = 200_000  # tokens: half a kilobyte each


def read_corpus(path: Path, text: Text) -> SuffixAutomaton:
    """Return a file of plain text to look up in.

    Raises:
        InputError: it cannot be read, is empty, or is longer than `LONGEST_CORPUS`.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {str(path)!r} ({error}); expected a file of plain text in UTF-8"
        raise InputError(message, options=("lookup",)) from error
    tokens = text.encode(content) if content else []
    if not 1 <= len(tokens) <= LONGEST_CORPUS:
        message = f"{str(path)!r} has {len(tokens)} tokens; expected 1 to {LONGEST_CORPUS} to look up in"
        raise InputError(message, options=("lookup",))
    return SuffixAutomaton(tokens)


class Planners:
    """Makes planners for a bundle whose sessions are entered when the first is made."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        target: TargetSession,
        drafter: DraftSession | None,
        engine: Callable[[], Fingerprint],
    ) -> None:
        """Keep the arguments; `engine` tells what runs the sessions."""
        self._folder, self._manifest = folder, manifest
        self._target, self._drafter, self._engine = target, drafter, engine
        self._vocab = manifest.target.config.vocab_size
        self._together: dict[int, Costs] = {}  # by sequences
        self.corpus: SuffixAutomaton | None = None  # of the user's own, looked up too

    def planner(self, planning: Planning | None = ADAPTIVE) -> Planner:
        """Return what plans the rounds of one answer; None verifies the drafter's whole tree every round.

        So does a bundle whose drafter's scores nobody calibrated: a guess of chances would be worse.
        """
        if planning is None or not self._adaptive:
            return WHOLE_TREES
        chances = None if self._calibration is None else DraftChances(self._calibration)
        lookup = Lookup(self.corpus)
        return AdaptivePlanner(self.costs, chances, lookup, chains=self.chains, planning=planning)

    def prepare(self, sequences: int) -> None:
        """Measure the costs of up to so many sequences that are not kept; the sessions are emptied."""
        for count in range(1, sequences + 1) if self._adaptive else ():
            self.together(count)

    @property
    def _adaptive(self) -> bool:
        return self._drafter is None or self._calibration is not None

    @property
    def chains(self) -> bool:
        """Whether only chains of tokens are verified exactly here, so that plans are chains."""
        exactness = self._manifest.exactness
        return exactness.claims(chain=True) and not exactness.claims(chain=False)

    @cached_property
    def costs(self) -> Costs:
        """What rounds cost here: the table that is kept for this bundle and machine, or one measured now.

        To measure takes about a second and empties the sessions.
        """
        return _kept(self.fingerprint, self.measure)

    def together(self, sequences: int) -> Costs:
        """Return what rounds of so many sequences cost; kept and measured as `costs`, for sizes of graphs."""
        if sequences == 1:
            return self.costs
        size = min(1 << (sequences - 1).bit_length(), self._target.slots)
        if size not in self._together:
            measure = partial(
                measure_together,
                self._target,
                self._drafter,
                self.costs,
                size,
                vocab=self._vocab,
                chains=self.chains,
            )
            self._together[size] = _kept({**self.fingerprint, "sequences": size}, measure)
        return self._together[size]

    def measure(self, effort: Effort = QUICK, progress: Progress = silent) -> Costs:
        """Return the costs of rounds, measured now; the sessions are emptied."""
        return measure_costs(
            self._target,
            self._drafter,
            self.fingerprint,
            vocab=self._vocab,
            chains=self.chains,
            effort=effort,
            progress=progress,
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides the costs of rounds: the graphs, and what runs them."""
        graphs = {"target": self._manifest.graph_sha256("target")}
        if self._drafter is not None:
            graphs["draft"] = self._manifest.graph_sha256("draft")
        return {**graphs, **self._engine()}

    @cached_property
    def _calibration(self) -> Calibration | None:
        if self._drafter is None or ACCEPTANCE not in self._manifest.files:
            return None
        return Calibration(AcceptanceCurves.load(self._folder / ACCEPTANCE))


def _kept(fingerprint: Fingerprint, measure: Callable[[], Costs]) -> Costs:
    """Return the table that is kept for this fingerprint, or one measured now and kept."""
    if (costs := load_cached(fingerprint)) is None:
        costs = measure()
        keep(costs)
    return costs
