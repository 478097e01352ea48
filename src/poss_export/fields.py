"""Whether the fields of a dataclass that was read from a file are of their annotated kinds."""

from dataclasses import fields
from reprlib import repr as shortened
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from poss_export.errors import CheckpointError

_MOST, _MOST_LAYERS = 2**31 - 1, 1024  # of any size, and of what is made one by one


def check_fields(config: Any, whose: str, sizes: range = range(1, _MOST + 1)) -> None:
    """Raise CheckpointError where a field of a dataclass, read from a file, is not of its annotated kind.

    Whole numbers are in `sizes`, or 0 where the default is 0 or empty; real ones are finite and above 0.
    """
    for field in fields(config):
        most = _MOST_LAYERS if field.name in ("num_layers", "num_specialists") else sizes[-1]
        allowed = range(0 if field.default in (0, ()) else sizes[0], most + 1)
        if not _fits(value := getattr(config, field.name), field.type, allowed):
            raise CheckpointError(
                f"the {whose} {field.name} is {shortened(value)}; expected {_words(field.type, allowed)}: "
                "check its configuration"
            )


def _fits(value: Any, kind: Any, sizes: range) -> bool:
    origin, kinds = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, one, sizes) for one in kinds)
    if kind is Any or origin is Literal:
        return kind is Any or value in kinds
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and value in sizes
    if kind is float:
        return isinstance(value, int | float) and (0 < value < 1e30 or value == sizes[0])
    if not isinstance(value, origin or kind):
        return False
    if origin is dict:
        return all(_fits(one, kinds[1], sizes) for one in value.values())
    if origin is tuple:
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(kinds) == len(value) and all(map(_fits, value, kinds, [sizes] * len(value)))
    return True


def _words(kind: Any, sizes: range) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_words(one, sizes) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    known = {bool: "true or false", int: f"a whole number from {sizes[0]} to {sizes[-1]}"}
    known |= {float: "a number above 0", type(None): "null"}
    return known.get(kind, str(kind))
