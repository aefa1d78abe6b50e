"""Whether a record is what it declares: plain values of the right type, nothing that runs when it is used.

A plugin may hand over any Python object. Here each field is held against the type that the record class declares, and
numbers and texts of foreign classes are copied into built-in ones, so that no code of a plugin runs afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeVar, get_args

from tokenopt.records import Confidence, Source, Status, Term, Topology

Record = TypeVar("Record")

MAX_WHOLE = 1_000_000_000
"""Counts above this are a mistake (bytes for chips) and would not fit the core's integers."""
_MAX_DEPTH = 12


def plain_record(record: Record) -> Record:
    """Copies a record into plain data.

    Args:
        record: One of the classes of :mod:`tokenopt.records`.

    Returns:
        The record itself when it is plain already, else a copy.

    Raises:
        ValueError: Names the field, its value and what is expected.
    """
    changed: dict[str, Any] = {}
    record_type: Any = type(record)
    for name, check in _checks(record_type):
        value = getattr(record, name)
        try:
            clean = check(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name} is {_short(value)}, expected {error}") from None
        if clean is not value:
            changed[name] = clean
    return replace(record, **changed) if changed else record  # type: ignore[type-var]


@cache
def _checks(record_type: type) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Field names of a record class with the check of each, read from the declared types."""
    return tuple((field.name, _check_of(str(field.type))) for field in fields(record_type))


def _check_of(declared: str) -> Callable[[Any], Any]:
    if declared.endswith(" | None"):
        inner = _check_of(declared.removesuffix(" | None"))
        return lambda value: None if value is None else inner(value)
    if declared.startswith("Callable["):
        return _callable
    if declared.startswith("Literal["):
        return _choice(tuple(part.strip(" \"'") for part in declared[len("Literal[") : -1].split(",")))
    return _CHECKS[declared]


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError("a text")


def _number(value: Any) -> float:
    if type(value) is float or (type(value) is int and abs(value) <= MAX_WHOLE):
        number = value
    elif isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float.__float__(value) if isinstance(value, float) else float(value)
        except OverflowError:
            raise ValueError("a finite number") from None
    else:
        raise TypeError("a finite number")
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _whole(value: Any) -> int:
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and float.is_integer(value))
    if isinstance(value, bool) or not is_whole or not abs(value) <= MAX_WHOLE:
        raise TypeError(f"a whole number of at most {MAX_WHOLE:,}")
    return value if type(value) is int else int(value)


def _callable(value: Any) -> Any:
    if not callable(value):
        raise TypeError("a function")
    return value


def _choice(legal: tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in legal:
            raise ValueError(f"one of {', '.join(legal)}")
        return _text(value)

    return check


def _source(value: Any) -> Source:
    if type(value) is not Source:
        raise TypeError("a Source")
    source = plain_record(value)
    if not source.reference.strip():
        raise ValueError("a Source with a reference")
    return source


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
        raise TypeError("a tuple of texts")
    return tuple(_text(item) for item in value)


def _mapping(check: Callable[[Any], Any], what: str) -> Callable[[Any], dict[str, Any]]:
    def check_mapping(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError(f"a mapping from texts to {what}")
        copy: dict[str, Any] = {}
        for key, item in value.items():
            try:
                copy[_text(key)] = check(item)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"a mapping from texts to {what}; {_short(key)} is {_short(item)}, not {error}"
                ) from None
        return copy

    return check_mapping


def _tree(value: Any, depth: int = 0) -> Any:
    """JSON-like data: texts, finite numbers, truth values, None, lists and mappings of them."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) and abs(int(value)) <= MAX_WHOLE else _number(value)
    if depth >= _MAX_DEPTH:
        raise ValueError(f"data nested at most {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {_text(key): _tree(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tree(item, depth + 1) for item in value]
    raise TypeError("texts, numbers, lists and mappings")


def _short(value: object) -> str:
    """A value for a message; nothing a plugin puts into it can break the sentence."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "float": _number,
    "int": _whole,
    "Confidence": _choice(get_args(Confidence)),
    "Topology": _choice(get_args(Topology)),
    "Status": _choice(get_args(Status)),
    "Term": _choice(get_args(Term)),
    "Source": _source,
    "tuple[str, ...]": _texts,
    "Mapping[str, float]": _mapping(_number, "numbers"),
    "Mapping[str, Source]": _mapping(_source, "sources"),
    "Mapping[str, Any]": _mapping(_tree, "plain data"),
}
"""By the type as it is written in :mod:`tokenopt.records`; a record with a type that is not here cannot be loaded."""
