"""Typed access to the fields of a ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenopt.errors import SpecError

_MAX_SIZE = 1 << 30


def model_type_of(config: Mapping[str, Any]) -> str:
    """The model type, lower case; the architecture's name where the field is absent."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind:
        return kind.lower()
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0].lower().removesuffix("forcausallm")
    return ""


@dataclass(frozen=True, slots=True)
class Section:
    """The fields that describe the language model.

    Attributes:
        fields: The fields.
        where: Name for messages.
    """

    fields: Mapping[str, Any]
    where: str

    @property
    def model_type(self) -> str:
        """Model type, lower case."""
        return model_type_of(self.fields)

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is there, as a whole number of at least 1 (0 only where it is the default).

        Raises:
            SpecError: None is there and there is no default, or the value cannot be a size.
        """
        for name in names:
            value = self.fields.get(name)
            if value is not None:
                return self._size(name, value, allow_zero=default == 0)
        if default is None:
            raise SpecError(f"{self.where} has no {' or '.join(names)}, so it is not a model that can be counted")
        return default

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.fields.get(name) is not None

    def flag(self, name: str, default: bool = False) -> bool:
        """A true-or-false field."""
        value = self.fields.get(name)
        return default if value is None else bool(value)

    def pattern(self, name: str, length: int) -> list[Any] | None:
        """A list with one entry a layer; None where the field is absent.

        Raises:
            SpecError: The list is shorter than the model.
        """
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, (list, str)) or len(value) < length:
            size = len(value) if isinstance(value, (list, str)) else type(value).__name__
            raise SpecError(f"{self.where}: {name} has {size} entries for {length} layers")
        return list(value)[:length]

    def child(self, name: str) -> Section | None:
        """A nested object."""
        value = self.fields.get(name)
        return Section(value, f"{self.where} {name}") if isinstance(value, Mapping) else None

    def _size(self, name: str, value: Any, allow_zero: bool) -> int:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        least = 0 if allow_zero else 1
        if not is_number or not math.isfinite(value) or value != int(value) or not least <= value <= _MAX_SIZE:
            raise SpecError(
                f"{self.where}: {name} is {repr(value)[:60]}, expected a whole number from {least} to {_MAX_SIZE}"
            )
        return int(value)
