"""What a round costs on one machine, by how much it verifies: measured once, then only read.

Decisions are made by such a table and never by the clock, so that a run repeats exactly.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from poss_export.errors import InputError, translated
from poss_export.files import make_writable, parse_json, write_whole

FORMAT_VERSION = 1
_LARGEST = 1 << 24  # costs in a table that is read
_NEAR = 64  # tokens of context that are taken as one

Fingerprint = Mapping[str, str | int | None]


@dataclass(frozen=True)
class Costs:
    """Milliseconds of rounds, measured in rounds.

    `rounds[i][j]`: of a round that verifies `widths[j]` rows behind `contexts[i]` tokens, without its draft
    call. `drafts[k]`: of a draft call that reads `rows[k]` new rows. All ascend. `fingerprint` says of what,
    and on what, they were measured.
    """

    fingerprint: Fingerprint
    contexts: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: tuple[tuple[float, ...], ...]
    rows: tuple[int, ...] = ()
    drafts: tuple[float, ...] = ()

    @property
    def widest(self) -> int:
        """Rows of the widest round that was measured."""
        return self.widths[-1]

    def by_width(self, context: int) -> list[float]:
        """Return the cost of a round behind `context` tokens, by its rows, from 0 to `widest`.

        Linear between measured widths and between contexts. A call can be filled up, so that none costs more
        than a wider one.
        """
        return self._by_width[min(context, self.contexts[-1]) // _NEAR]

    def draft(self, rows: int) -> float:
        """Return the cost of a draft call that reads so many rows; 0 without a drafter."""
        return float(np.interp(rows, self.rows, self.drafts)) if self.rows else 0.0

    @cached_property
    def _by_width(self) -> list[list[float]]:
        return [self._behind(context) for context in range(0, self.contexts[-1] + 1, _NEAR)]

    def _behind(self, context: int) -> list[float]:
        by_width = np.array([np.interp(context, self.contexts, ms) for ms in zip(*self.rounds, strict=True)])
        cheapest = np.minimum.accumulate(by_width[::-1])[::-1]
        every: list[float] = np.interp(range(self.widest + 1), self.widths, cheapest).tolist()
        return every

    def _check(self) -> None:
        """Raise ValueError where the table is not what its fields say."""
        counts = (self.contexts, self.widths, self.rows)
        if any(sorted(set(map(int, ascending))) != list(ascending) for ascending in counts):
            raise ValueError("contexts, widths and rows must ascend")
        rounds, drafts = np.array(self.rounds, np.float64), np.array(self.drafts, np.float64)
        if rounds.shape != (len(self.contexts), len(self.widths)) or len(drafts) != len(self.rows):
            raise ValueError("a time is missing")
        if not rounds.size or self.contexts[0] < 0 or self.widths[0] < 1:
            raise ValueError("no context or width, or a negative one")
        if (self.contexts[-1] // _NEAR + 1) * (self.widest + 1) > _LARGEST:
            raise ValueError("a context or a width of too many tokens")
        if not np.isfinite(rounds).all() or not np.isfinite(drafts).all():
            raise ValueError("a time is no number")

    def save(self, path: Path) -> None:
        """Write a JSON file in one step; raises InputError where it cannot be written."""
        write_whole(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, fingerprint: Fingerprint) -> "Costs":
        """Read what `save` wrote.

        Raises:
            InputError: it is something else, or was measured of or on something else.
        """
        with translated(InputError, f"{str(path)!r} is no table of costs; {_MAKE}"):
            values = parse_json(path.read_bytes())
            version = values.pop("format_version")
            found = cls(
                dict(values.pop("fingerprint")),
                rounds=tuple(tuple(map(float, row)) for row in values.pop("rounds")),
                drafts=tuple(map(float, values.pop("drafts"))),
                **{name: tuple(values.pop(name)) for name in ("contexts", "widths", "rows")},
            )
            found._check()
        if version != FORMAT_VERSION:
            raise InputError(f"{str(path)!r} has format version {version}, not {FORMAT_VERSION}; {_MAKE}")
        for name in {**fingerprint, **found.fingerprint}:
            if (have := found.fingerprint.get(name)) != (want := fingerprint.get(name)):
                raise InputError(
                    f"{str(path)!r} was measured with {name} {have!r}, here it is {want!r}; {_MAKE}"
                )
        return found


_MOVE = "set XDG_CACHE_HOME"
_MAKE = "measure one: profile the bundle, and save what rounds cost"


def cached_costs(fingerprint: Fingerprint) -> Path:
    """Return where the table with this fingerprint is kept, in the user's cache folder."""
    from platformdirs import user_cache_path

    name = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:24]
    return user_cache_path("poss-export") / "costs" / f"{name}.json"


def check_kept() -> None:
    """Raise InputError where no table can be kept."""
    make_writable(cached_costs({}).parent, _MOVE)


def load_cached(fingerprint: Fingerprint) -> Costs | None:
    """Return the table that is kept for this fingerprint; None where there is none that can be used."""
    with suppress(InputError):
        return Costs.load(cached_costs(fingerprint), fingerprint)
    return None


def keep(costs: Costs) -> Path | None:
    """Keep a table in the user's cache folder; return where, or None where nothing can be written there."""
    path = cached_costs(costs.fingerprint)
    with suppress(InputError):
        make_writable(path.parent, _MOVE)
        costs.save(path)
        return path
    return None
