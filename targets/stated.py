"""What a quantization_config states, read field by field: whatever is not understood is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from poss_export.errors import CheckpointError
from poss_export.targets.grids import USE


@dataclass(frozen=True)
class Stated:
    """A quantization_config or a part of it, called `whose` in errors; a field of null counts as left out."""

    whose: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, whose: str, values: Any) -> "Stated":
        """Take over a part that must be an object."""
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{whose} is {shortened(values)}; expected an object: {USE}")
        return cls(whose, values)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or the default."""
        value = self.values.get(name)
        return default if value is None else value

    def first(self, *names: str) -> str:
        """Return the first of several names that is a field, or the last of them."""
        return next((name for name in names if self.get(name) is not None), names[-1])

    def part(self, name: str) -> "Stated":
        """Return a field that is an object itself, empty where it is left out."""
        return Stated.of(f"{self.whose}.{name}", self.get(name, {}))

    def among(self, name: str, allowed: tuple[Any, ...], default: Any = None, why: str = "") -> Any:
        """Return a field that must be one of some values; text may be in capitals. `why`: not others."""
        value = self.get(name, default)
        value = value.lower() if isinstance(value, str) else value
        if not any(value == one and type(value) is type(one) for one in allowed):
            known = ", ".join(str(one) for one in allowed if one is not None)
            raise self.refused(name, f"this version reads {known}{why and f', as {why}'}")
        return value

    def width(self, name: str, default: int) -> int | None:
        """Return the size of groups of inputs; None for one group, which is -1."""
        value = self.get(name, default)
        if type(value) is not int or (value < 1 and value != -1):
            raise self.refused(name, "expected a number of inputs, or -1")
        return None if value == -1 else value

    def block(self, name: str) -> tuple[int, int] | None:
        """Return outputs and inputs of a block; None where the field is left out."""
        value = self.get(name)
        if isinstance(value, str):  # as early files have it: 128x128
            value = [int(size) for size in value.split("x") if size.isdigit()]
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int or n < 1 for n in value):
            raise self.refused(name, "expected two sizes")
        return value[0], value[1]

    def names(self, *fields: str) -> tuple[str, ...]:
        """Return the names that are listed in a field; the first of several that is there counts."""
        value = self.get(field := self.first(*fields), [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.refused(field, "expected a list of names")
        return tuple(value)

    def only(self, *known: str, **reasons: str) -> None:
        """Raise CheckpointError where another field says something; some have `reasons`."""
        for name, value in self.values.items():
            if name not in known and value not in (None, False, "", [], {}):
                raise self.refused(name, reasons.get(name, "this version does not know what it changes"))

    def refused(self, name: str, why: str) -> CheckpointError:
        """Return the error that a field is not supported."""
        return CheckpointError(f"{self.whose} has {name} {shortened(self.values.get(name))}; {why}: {USE}")
