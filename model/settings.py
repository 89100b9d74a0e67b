"""Config dataclasses to plain JSON values and back, and single fields by dotted name, with every value checked."""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def _tuple(value: list[Any] | tuple[Any, ...], kinds: tuple[Any, ...], where: str) -> tuple[Any, ...] | None:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_checked(item, kinds[0], where) for item in value)
    if len(value) != len(kinds):
        return None
    return tuple(_checked(item, kind, where) for item, kind in zip(value, kinds, strict=True))


def _enum(value: Any, wanted: type[enum.Enum], where: str) -> enum.Enum:
    choices = [item.value for item in wanted]
    if isinstance(value, wanted):
        return value
    if value in choices:
        return wanted(value)
    raise ValueError(f"{where} is one of {choices}, got {value!r}")


def _scalar(value: Any, wanted: Any) -> Any:
    """The value where it has the type, else None; an integer passes as a float, a bool only as a bool."""
    if isinstance(value, bool) and wanted is not bool:
        return None
    if wanted is float and isinstance(value, int):
        return float(value)
    return value if isinstance(wanted, type) and isinstance(value, wanted) else None


def _type_name(kind: Any) -> str:
    return kind.__name__ if typing.get_origin(kind) is None else str(kind)


def _checked(value: Any, wanted: Any, where: str) -> Any:
    """`value` as the annotated type `wanted`; strings pass as enum values, lists as tuples.

    Raises:
        TypeError: it is of another type.
        ValueError: no value of the enum, or a number that is not finite.
    """
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):  # optional: the only union a config holds
        if value is None:
            return None
        wanted = next(kind for kind in typing.get_args(wanted) if kind is not type(None))
    found: Any = None
    if typing.get_origin(wanted) is tuple and isinstance(value, list | tuple):
        found = _tuple(value, typing.get_args(wanted), where)
    elif dataclasses.is_dataclass(wanted):
        is_plain = isinstance(value, Mapping)
        found = from_dict(typing.cast("type[Any]", wanted), value, where) if is_plain else _scalar(value, wanted)
    elif isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        found = _enum(value, wanted, where)
    else:
        found = _scalar(value, wanted)
    if found is None:
        raise TypeError(f"{where} is {_type_name(wanted)}, got {value!r}")
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{where} must be finite, got {value!r}")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values (enums by value, tuples as lists); `from_dict` is the inverse.

    Raises:
        ValueError: a number that is not finite.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, enum.Enum):
            return value.value
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"a config holds {value!r}: use finite numbers")
        return value

    return typing.cast("dict[str, Any]", plain(config))


def _field_names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the config dataclass `kind` from plain JSON values, checking names, types and ranges.

    Raises:
        KeyError: a name that is not a field.
        TypeError: a value of another type than the field's.
        ValueError: a value out of range.
    """
    names = _field_names(kind)
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in names:
            raise KeyError(f"{kind.__name__} has no field {name!r}; it has {names}")
    prefix = f"{where}." if where else ""
    return kind(**{name: _checked(value, hints[name], f"{prefix}{name}") for name, value in values.items()})


def override(config: T, path: str, value: Any) -> T:
    """A copy of `config` with the field at the dotted `path` (for example ``rpn.nms_iou``) set to `value`.

    Raises:
        KeyError: a name on the path that is not a field.
        TypeError: a value of another type than the field's.
        ValueError: a value out of range.
    """
    name, dot, rest = path.partition(".")
    kind = type(config)
    if not dataclasses.is_dataclass(kind):
        raise KeyError(f"{kind.__name__} holds no fields, so there is no {path!r}: end the dotted name before it")
    if name not in _field_names(kind):
        raise KeyError(f"{kind.__name__} has no field {name!r}; it has {_field_names(kind)}")
    if dot:
        new = override(getattr(config, name), rest, value)
    else:
        new = _checked(value, typing.get_type_hints(kind)[name], f"{kind.__name__}.{name}")
    return typing.cast("T", dataclasses.replace(typing.cast("Any", config), **{name: new}))
