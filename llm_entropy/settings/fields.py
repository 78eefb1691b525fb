"""What settings hold: plain values of the types that their fields declare, made of what people give in Python.

Numbers and arrays of numpy and torch, paths and mappings become numbers, lists, text and settings, so that everything
can be written as YAML. Nothing heavy is imported for that: foreign values are known by what they can do.
"""

import difflib
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from llm_entropy.errors import ReportedError

ARRAYS = {"arrays": True}
"""Metadata of a field that keeps tensors and arrays, and lists of them, as they are; whoever reads it checks them."""
SHOWN = 60
"""How many characters of a wrong value an error shows."""


class _Scalar(NamedTuple):
    """A type of plain values."""

    words: str
    """What it is called in errors."""
    fits: Callable[[Any], bool]
    plain: Callable[[Any], Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


_SCALARS: dict[Any, _Scalar] = {
    bool: _Scalar("true or false", lambda value: isinstance(value, bool), bool),
    int: _Scalar("a whole number", lambda value: _is_number(value) and isinstance(value, numbers.Integral), int),
    float: _Scalar("a number", _is_number, float),
    # YAML writes no subclass of str, such as numpy's.
    str: _Scalar(
        "text", lambda value: isinstance(value, (str, os.PathLike)), lambda value: str.__str__(os.fspath(value))
    ),
    type(None): _Scalar("null", lambda value: value is None, lambda value: None),
}


def make_plain_(settings: Any, key: str = "") -> None:
    """Replace the value of every field by a plain one of its declared type.

    Args:
        settings: An instance of a dataclass.
        key: Its place in the configuration, for messages.

    Raises:
        ReportedError: A value is of another type.
    """
    for item in fields(settings):
        value = getattr(settings, item.name)
        if "arrays" not in item.metadata or not holds_arrays(value):
            name = f"{key}.{item.name}" if key else item.name
            setattr(settings, item.name, plain_value(value, item.type, name))


def plain_value(value: Any, declared: Any, key: str) -> Any:
    """Return a value as a plain one of a declared type.

    Args:
        value: A number without dimensions may be an array or a tensor; a list, anything that can be gone through in
            order; text, a path; settings, a mapping.
        declared: bool, int, float, str, Literal, list, dict, a dataclass, or a Union of them.
        key: Its place in the configuration, for messages.

    Raises:
        ReportedError: It is of another type.
    """
    value = list(value) if isinstance(value, Iterator) else _scalar(value)
    for one in _alternatives(declared):
        if _fits(value, one):
            return _plain(value, one, key)
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    words = list(dict.fromkeys(_words(one) for one in _alternatives(declared)))
    raise ReportedError(f"{key}: got {shown} ({type(value).__name__}); expected {' or '.join(words)}")


def holds_arrays(value: Any) -> bool:
    """Whether a value is an array or a tensor with dimensions, or a list with one in it."""
    if isinstance(value, (list, tuple)):
        return any(holds_arrays(item) for item in value)
    return hasattr(value, "__array__") and getattr(value, "ndim", 1) > 0


def _scalar(value: Any) -> Any:
    """Return the number that an array or a tensor without dimensions is; anything else as it is."""
    is_wrapped = not isinstance(value, type) and hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_wrapped else value


def _alternatives(declared: Any) -> list[Any]:
    if get_origin(declared) is Union:
        return [one for member in get_args(declared) for one in _alternatives(member)]
    return [declared]


def _fits(value: Any, declared: Any) -> bool:
    """Whether a value can be made one of a type, which is no Union; what settings hold is checked later."""
    origin = get_origin(declared)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(declared))
    if origin is list:
        items = _items(value, declared)
        (item,) = get_args(declared)
        return items is not None and all(
            any(_fits(_scalar(each), one) for one in _alternatives(item)) for each in items
        )
    if origin is dict:
        return isinstance(value, Mapping)
    if is_dataclass(declared):
        return isinstance(value, (Mapping, declared))  # type: ignore[arg-type]
    return _SCALARS[declared].fits(value)


def _plain(value: Any, declared: Any, key: str) -> Any:
    """Return a value that fits a type as one of it."""
    origin = get_origin(declared)
    if origin is Literal:
        return value
    if origin is list:
        return [plain_value(item, get_args(declared)[0], key) for item in _items(value, declared) or ()]
    if origin is dict:
        name, item = get_args(declared)
        named = {plain_value(each, name, key): below for each, below in value.items()}
        return {each: plain_value(below, item, f"{key}.{each}") for each, below in named.items()}
    if is_dataclass(declared):
        return _settings(value, declared, key)
    return _SCALARS[declared].plain(value)


def _items(value: Any, declared: Any) -> list[Any] | None:
    """Return what is in a list, or what can be taken for one; None for anything else."""
    (item,) = get_args(declared)
    if isinstance(value, str):
        return [value] if item is str else None
    if hasattr(value, "tolist"):
        value = value.tolist()
    has_order = isinstance(value, Iterable) and (item is str or not isinstance(value, Set))
    return list(value) if has_order and not isinstance(value, (str, bytes, Mapping)) else None


def _settings(value: Any, declared: Any, key: str) -> Any:
    """Return settings, whose fields may have been set since they were made, or those that a mapping stands for."""
    try:
        if isinstance(value, Mapping):
            return _from_mapping(value, declared, key)
        value.__post_init__()
        return value
    except ReportedError as error:
        usual = getattr(declared, "KEY", None)  # the place that the class takes for granted
        if usual in (None, key):
            raise
        raise ReportedError(str(error).replace(f"{usual}.", f"{key}.")) from error


def _from_mapping(value: Mapping[Any, Any], declared: Any, key: str) -> Any:
    known = {item.name: item for item in fields(declared)}
    for name in value:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"the nearest known key is {nearest[0]!r}" if nearest else f"known are {', '.join(known)}"
            raise ReportedError(f"{key}: got the key {str(name)!r}, which is not known; {hint}")
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise ReportedError(f"{key}: got no {name}; expected {key}.{name}, {_words(item.type)}")
    return declared(**value)


def _words(declared: Any) -> str:
    """Return what a type is called in errors."""
    origin = get_origin(declared)
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(declared)))}"
    if origin is list:
        item = get_args(declared)[0]
        return f"a list of {'text' if item is str else 'numbers' if item in (int, float) else 'lists of numbers'}"
    if origin is dict:
        return "a mapping of keys to values"
    return _SCALARS[declared].words if declared in _SCALARS else f"settings ({declared.__name__})"
