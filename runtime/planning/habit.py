"""Whether to draft at all, decided before a draft is paid for."""

_HOPE = 1.25  # plain steps' worth of drafting, before anything is known
_MEMORY = 4  # rounds that the running mean is of
_SLACK = 0.03  # below a plain step before drafting is left, above before it is taken up
_BESIDE = 1.4  # times what drafting is worth, lookup must be: a drafted round has what was looked up as well
_FIRST_WAIT, _LONGEST_WAIT = 16, 128  # rounds between two trials


class Habit:
    """A running mean of what drafting rounds were worth, in plain steps for the same time.

    Where they are worth less, they are left; one of 16 rounds tries again, then of 32, up to 128, and the
    first that pays ends that.
    """

    def __init__(self, hopes: bool = True) -> None:
        """Begin with some hope, or with a trial."""
        self._worth, self._on = _HOPE, hopes
        self._skipped, self._wait = 0 if hopes else _FIRST_WAIT, _FIRST_WAIT

    def drafts(self, otherwise: float) -> bool:
        """Return whether to draft in a round that is worth `otherwise` without."""
        return self.tries or (self._on and self._worth * _BESIDE >= otherwise)

    def skipped(self) -> None:
        """Note a round without a draft."""
        self._skipped += 1

    def drafted(self, worth: float, otherwise: float) -> None:
        """Note what a round with a draft was worth, which was worth `otherwise` without."""
        paid = worth >= otherwise * (1 + _SLACK)
        if self.tries:
            self._wait = _FIRST_WAIT if paid else min(2 * self._wait, _LONGEST_WAIT)
        self._skipped = 0
        self._worth += (worth - self._worth) / _MEMORY
        if not self._on and paid:
            self._worth = max(self._worth, otherwise)
        self._on = self._worth >= 1 - _SLACK if self._on else paid

    @property
    def tries(self) -> bool:
        """Whether drafting was left long enough for a trial."""
        return self._skipped >= self._wait
