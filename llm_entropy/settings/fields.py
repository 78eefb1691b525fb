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


def plain_value(value: Any, declared: Any, key: str, read: Callable[[str], Any] | None = None) -> Any:
    """Return a value as a plain one of a declared type.

    Args:
        value: A number without dimensions may be an array or a tensor; a list, anything that can be gone through in
            order; text, a path; settings, a mapping.
        declared: bool, int, float, str, Literal, list, dict, a dataclass, or a Union of them.
        key: Its place in the configuration, for messages.
        read: What YAML makes of a word, where the value is written in a file or an option: words that do not fit as
            they are are read. Sections stay mappings then, because other files and options may add to them.

    Raises:
        ReportedError: It is of another type.
    """
    value = list(value) if isinstance(value, Iterator) else _scalar(value)
    alternatives = _alternatives(declared)
    if read is not None and isinstance(value, str):
        value = _meant(value, alternatives, read)
    for one in alternatives:
        if _fits(value, one):
            return _plain(value, one, key, read)
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    if read is None:
        words = [_words(one) for one in alternatives]
        raise ReportedError(f"{key}: got {shown} ({type(value).__name__}); expected {_any_of(words)}")
    words = ["a section with keys below it" if is_dataclass(one) else _words(one) for one in alternatives]
    raise ReportedError(f"{key}: got {_AS_WRITTEN.get(shown, shown)}; expected {_any_of(words)}")


def _meant(word: str, alternatives: list[Any], read: Callable[[str], Any]) -> Any:
    """Return what a written word stands for: itself where text is expected; for a list of words only if it is no more.

    Where there may be true, false or a list of words, false is not the list of that word.
    """
    fitting = [one for one in alternatives if _fits(word, one)]
    if any(get_origin(one) is not list for one in fitting):
        return word
    meant = read(word)
    return meant if not fitting or any(_fits(meant, one) for one in alternatives) else word


_AS_WRITTEN = {"None": "null", "True": "true", "False": "false"}


def _any_of(words: list[str]) -> str:
    return " or ".join(dict.fromkeys(words))


def type_below(declared: Any, name: str, key: str = "") -> Any:
    """Return the type of what has a name in a mapping or in settings; None where a type holds nothing with a name.

    Args:
        declared: As for `plain_value`.
        name: A key, without dots.
        key: The place of the mapping in the configuration, for messages.

    Raises:
        ReportedError: The settings know no such key.
    """
    for one in _alternatives(declared):
        if get_origin(one) is dict:
            return get_args(one)[1]
        if is_dataclass(one):
            _check_keys([name], one, key)
            return next(item.type for item in fields(one) if item.name == name)
    return None


def is_single(declared: Any) -> bool:
    """Whether values of a type are words and numbers alone, nothing that holds others."""
    return all(one in _SCALARS or get_origin(one) is Literal for one in _alternatives(declared))


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


def _plain(value: Any, declared: Any, key: str, read: Callable[[str], Any] | None) -> Any:
    """Return a value that fits a type as one of it."""
    origin = get_origin(declared)
    if origin is Literal:
        return value
    if origin is list:
        return [plain_value(item, get_args(declared)[0], key) for item in _items(value, declared) or ()]
    if origin is dict:
        name, item = get_args(declared)
        named = {plain_value(each, name, key): below for each, below in value.items()}
        return {each: plain_value(below, item, f"{key}.{each}", read) for each, below in named.items()}
    if is_dataclass(declared):
        return _settings(value, declared, key) if read is None else _section(value, declared, key, read)
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
    _check_keys(value, declared, key)
    for name, item in known.items():
        if value.get(name) is None and item.default is MISSING and item.default_factory is MISSING:
            raise ReportedError(f"{key}: got no {name}; expected {key}.{name}, {_words(item.type)}")
    return declared(**value)


def _section(value: Mapping[Any, Any], declared: Any, key: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """Return what is written of settings; a section with nothing below it is as good as none."""
    _check_keys(value, declared, key)
    types = {item.name: item.type for item in fields(declared)}
    written = {name: below for name, below in value.items() if below is not None or not is_dataclass(types[name])}
    return {
        name: plain_value(below, types[name], f"{key}.{name}" if key else name, read) for name, below in written.items()
    }


def _check_keys(names: Iterable[Any], declared: Any, key: str) -> None:
    """Refuse a key that settings do not know."""
    known = [item.name for item in fields(declared)]
    for name in names:
        if name not in known:
            place = f"{key}: got the key" if key else "got the key"
            below = _section_with(str(name), declared, key)
            hint = f"it belongs below {below}" if below else nearest_known(str(name), known, "key")
            raise ReportedError(f"{place} {str(name)!r}, which is not known; {hint}")


def _section_with(name: str, declared: Any, key: str) -> str:
    """Return the key of the section below this one that has a key of a name; empty: there is none."""
    for item in fields(declared):
        if is_dataclass(item.type):
            inner = f"{key}.{item.name}" if key else item.name
            if name in (below.name for below in fields(item.type)):
                return inner
            if found := _section_with(name, item.type, inner):
                return found
    return ""


def nearest_known(name: str, known: Iterable[str], what: str, likeness: float = 0.4) -> str:
    """Return the words that help with an unknown name: the known one that is nearest to it, or all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=likeness)
    return f"the nearest known {what} is {nearest[0]!r}" if nearest else f"the known {what}s are {', '.join(known)}"


def _words(declared: Any) -> str:
    """Return what a type is called in errors."""
    origin = get_origin(declared)
    if origin is Literal:
        choices = ", ".join(map(repr, get_args(declared)))
        return f"one of {choices}" if len(get_args(declared)) > 1 else choices
    if origin is list:
        item = get_args(declared)[0]
        return f"a list of {'text' if item is str else 'numbers' if item in (int, float) else 'lists of numbers'}"
    if origin is dict:
        return "a mapping, as {key: value}"
    return _SCALARS[declared].words if declared in _SCALARS else f"settings ({declared.__name__})"


def check_at_least(key: str, number: float, least: int, otherwise: str = "") -> None:
    """Refuse a number that is too small.

    Args:
        key: Its place in the configuration.
        number: What was given.
        least: The smallest that makes sense.
        otherwise: What else might be given, for the message.

    Raises:
        ReportedError: It is smaller.
    """
    if not number >= least:
        raise ReportedError(f"{key}: got {number}; expected at least {least} {otherwise}".rstrip())
