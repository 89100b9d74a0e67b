"""Pickles of numpy arrays (Detectron2's model zoo), read without numpy's or anyone's own code being called.

A pickle is a program. This reader runs it with stand-ins of its own for the few names that arrays are made of; any
other name ends it. The arrays are made here from the bytes and a short list of types.
"""

import io
import math
import pickle
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np

_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_MAX_DEPTH = 50
_MAX_VALUES = 1_000_000
_MAX_DIMENSIONS = 8


class PickleError(ValueError):
    """A pickle that is damaged, or that names anything but arrays and plain containers."""


def _shown(value: object) -> str:
    """A value in a message; never the inside of a container, which may be endless."""
    return repr(value)[:40] if isinstance(value, str | int | bytes) else f"a {type(value).__name__}"


class _Type:
    """Stands for numpy.dtype."""

    def __init__(self, code: object) -> None:
        self.code = code
        self.order = "<"

    def restore(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise PickleError(f"a numpy type has the byte order {_shown(order)}: the file is damaged")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        if self.code not in _TYPES:
            raise PickleError(f"an array has the type {_shown(self.code)}, wanted numbers ({', '.join(_TYPES)})")
        return np.dtype(f"{self.order}{self.code}" if self.order in "<>" else str(self.code))


class _Array:
    """Stands for numpy.ndarray until its values are known."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] | None = None

    def restore(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("an array has no shape, type and values: the file is damaged")
        self.state = state

    def numpy(self) -> np.ndarray[Any, Any]:
        if self.state is None:
            raise PickleError("an array has no values: the file is damaged")
        _, shape, kind, is_fortran, raw = self.state
        return _filled(shape, kind, raw, "F" if is_fortran else "C")


def _filled(shape: object, kind: object, raw: object, order: Any) -> np.ndarray[Any, Any]:
    if isinstance(raw, str):  # bytes of Python 2
        raw = raw.encode("latin1", errors="strict")
    if not isinstance(kind, _Type) or not isinstance(raw, bytes | bytearray):
        raise PickleError("an array has no plain type and bytes: the file is damaged")
    dtype = kind.numpy()
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise PickleError(f"an array has {_shown(shape)} as its shape: the file is damaged")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise PickleError(f"an array of {math.prod(shape)} values of type {dtype} has {len(raw)} bytes: it is damaged")
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _scalar(kind: object, raw: object = b"") -> Any:
    return _filled((), kind, raw, "C")[()]


def _from_buffer(raw: object, kind: object, shape: object, order: object) -> Any:
    """Stands for what pickles of protocol 5 make arrays with."""
    return _filled(shape, kind, raw, "F" if order == "F" else "C")


def _bytes(text: object, encoding: object = "latin1") -> bytes:
    """Stands for _codecs.encode, which pickles of protocol 2 make bytes with."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("it asks for an encoding other than latin1: the file is damaged")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands for bytes, which pickles of protocol 2 name for empty ones."""
    return b""


def _empty(*_: object) -> _Array:
    return _Array()


def _type(code: object, *_: object) -> _Type:
    return _Type(code)


def _ordered(items: object = ()) -> Any:
    """Stands for collections.OrderedDict, which pickles of Python 2 make from a list of pairs."""
    pairs = [(pair[0], pair[1]) for pair in items] if isinstance(items, list | tuple) else []
    return OrderedDict((_key(key), value) for key, value in pairs)


def _key(key: object) -> Any:
    # Hashing a tuple of tuples that are all one object takes for ever.
    if not isinstance(key, str | int | bytes):
        raise PickleError(f"a dictionary has {_shown(key)} as a key, wanted text or numbers: the file is damaged")
    return key


_ARRAY_CLASS = object()  # numpy.ndarray itself is only ever named, as an argument
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _ARRAY_CLASS,
    ("numpy", "dtype"): _type,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


_Standard: Any = pickle._Unpickler  # the reader that is written in Python, whose opcodes can be refused


class _Reader(_Standard):  # type: ignore[misc]
    """The standard reader with stand-ins for names, and without the opcodes that arrays do not need."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Standard.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise PickleError(f"it names {module}.{name}; only numpy arrays and plain values are read, nothing was run")
        return _NAMES[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, _Array | _Type):
            raise PickleError(f"it sets the state of a {type(made).__name__}: the file is damaged")
        made.restore(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_bytearray8(self) -> None:
        # The standard reader makes the room before it looks whether the bytes are there.
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_refused(self) -> None:
        raise PickleError(
            "it makes something other than numpy arrays, text, numbers, lists and dictionaries; nothing was run"
        )


for _code in (
    pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
    pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.DICT, pickle.EMPTY_SET,
    pickle.ADDITEMS, pickle.FROZENSET,
):  # fmt: skip
    _Reader.dispatch[_code[0]] = _Reader.load_refused


def loads(data: bytes) -> Any:
    """The object of a pickle: arrays, numbers, text, bytes, and containers of them.

    Raises:
        PickleError: it is damaged, or names anything else.
    """
    try:
        return _Resolver().resolved(_Reader(io.BytesIO(data), encoding="latin1").load())
    except PickleError:
        raise
    except MemoryError as error:
        raise PickleError("it asks for more memory than there is: the file is damaged") from error
    except Exception as error:  # the reader assumes a well-formed program and fails in many ways on others
        raise PickleError(f"{type(error).__name__}: {str(error)[:100]}; the file is damaged") from error


class _Resolver:
    """Puts arrays in the place of their stand-ins."""

    def __init__(self) -> None:
        self._left = _MAX_VALUES

    def resolved(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            # A list that holds itself, or two of another that holds two of another ...
            raise PickleError(f"it nests more than {_MAX_DEPTH} deep or holds more than {_MAX_VALUES} values")
        if isinstance(value, _Array):
            return value.numpy()
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, dict):
            return {key: self.resolved(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.resolved(item, depth + 1) for item in value)
        if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
            return value
        raise PickleError(f"it holds a {type(value).__name__} instead of values: the file is damaged")
