"""Terminal tables of prediction errors, narrow enough for 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tokenopt.report.tables import Column, listing_console, plain_table

_WHOLE_FROM = 100
"""Errors from here on are shown without decimals: their cells stay as narrow as the others."""


class Errors(Protocol):
    """Errors of one quantity over some rows, %."""

    @property
    def n(self) -> int:
        """Rows."""

    @property
    def median(self) -> float:
        """Median absolute error."""

    @property
    def p90(self) -> float:
        """P90 of the absolute error."""

    @property
    def bias(self) -> float:
        """Median of the signed error."""


def error_cell(errors: Errors) -> str:
    """Median / P90 / bias, %; a dash where no row has the quantity."""
    if not errors.n:
        return "-"
    return f"{percent(errors.median)}/{percent(errors.p90)}/{percent(errors.bias, sign='+')}"


def percent(value: float, sign: str = "") -> str:
    """A percentage with one decimal, none where it is large."""
    digits = 0 if abs(value) >= _WHOLE_FROM else 1
    return f"{value:{sign},.{digits}f}"


def print_errors(
    columns: Sequence[str], lines: Iterable[Sequence[str]], counts: Mapping[str, int], title: str | None = None
) -> None:
    """Prints a table of errors and what was not scored.

    Args:
        columns: Headings after the name of the slice; a line break splits one in two.
        lines: Name of the slice, and one cell a column.
        counts: Rows by the reason for which they are not scored.
        title: Heading.
    """
    console = listing_console()
    head: list[Column] = [("slice", "wrap"), *((name, "right") for name in columns)]
    console.print(plain_table(head, [list(line) for line in lines], console.width, title=title))
    for reason, count in counts.items():
        console.print(f"{count:5d} rows{'' if reason.startswith(':') else ' '}{reason}")
