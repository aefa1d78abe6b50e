"""Fields of requests: what a user gave, as a plain Python value of the right type, or one sentence that says why not."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tokenopt.errors import SpecError

_MAX_USD_PER_CHIP_HR = 1e6


def text(name: str, value: object) -> str:
    """A text that is not empty; a path counts as one."""
    content = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(content, str) or not content.strip():
        raise SpecError(f"{name} is {value!r}, expected a text")
    return content


def items(name: str, value: object) -> Sequence[Any]:
    """A list."""
    if isinstance(value, Sequence):
        return value
    raise SpecError(f"{name} is {value!r}, expected a list")


def texts(name: str, value: object) -> tuple[str, ...]:
    """A list of texts; one text stands for a list of one."""
    return tuple(text(name, item) for item in ([value] if isinstance(value, str) else items(name, value)))


def number(name: str, value: object) -> float:
    """A number."""
    # A bool counts as a number in Python, and never by intention in a request.
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise SpecError(f"{name} is {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise SpecError(f"{name} is beyond every number that is accepted") from None


def whole(name: str, value: object) -> int:
    """A whole number."""
    real = number(name, value)
    if not math.isfinite(real) or real != math.floor(real):
        raise SpecError(f"{name} is {value}, expected a whole number")
    return int(real)


def wholes(name: str, value: object) -> tuple[int, ...]:
    """A list of whole numbers; one number stands for a list of one."""
    return tuple(whole(name, item) for item in ([value] if isinstance(value, numbers.Real) else items(name, value)))


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise SpecError(f"{name} is {value!r}, expected True or False")
    return value


def quotes(quotes: object) -> dict[str, float]:
    """Prices in USD per chip-hour by accelerator key."""
    if not isinstance(quotes, Mapping):
        raise SpecError(f"price is {quotes!r}, expected USD per chip-hour by accelerator key")
    prices: dict[str, float] = {}
    for key, amount in quotes.items():
        usd = number("price", amount)
        positive("price", usd, _MAX_USD_PER_CHIP_HR)
        prices[text("price", key).lower()] = usd
    return prices


def owners_inputs(inputs: object) -> dict[str, float | str]:
    """Inputs of the owner's cost by name; their names and ranges are checked where they are used."""
    if not isinstance(inputs, Mapping):
        raise SpecError(f"tco is {inputs!r}, expected values by the name of an input")
    return {
        text("tco", name): value if isinstance(value, str) else number(f"tco {name}", value)
        for name, value in inputs.items()
    }


def positive(name: str, value: float, most: float) -> None:
    """Refuses what is not above 0 and at most `most`."""
    if not (math.isfinite(value) and 0 < value <= most):
        raise SpecError(f"{name} is {value:g}, expected a number above 0 and at most {most:g}")


def within(name: str, value: float, least: float, most: float) -> None:
    """Refuses what is not from `least` to `most`."""
    if not least <= value <= most:
        raise SpecError(f"{name} is {value:g}, expected a number from {least:g} to {most:g}")


def choice(name: str, value: str, legal: Sequence[str]) -> None:
    """Refuses what is not one of `legal`."""
    if value not in legal:
        raise SpecError(f"{name} is {value!r}, expected {', '.join(legal)}")
