"""Cash flows over years: what they are worth today, when they have paid for themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence


def net_present_value(rate: float, upfront_usd: float, yearly_usd: Sequence[float]) -> float:
    """Value today of what is paid now and what comes in over the years.

    Args:
        rate: Cost of capital per year, as a share.
        upfront_usd: Paid now, USD.
        yearly_usd: Income less cost of each year, USD; the last year may be a part of one.

    Returns:
        USD of today.

    Source: discounted cash flow; each year's flow is taken at the middle of the year, since tokens are sold all year.
    """
    return -upfront_usd + math.fsum(flow / math.pow(1.0 + rate, year + 0.5) for year, flow in enumerate(yearly_usd))


def payback_years(upfront_usd: float, yearly_usd: Sequence[float]) -> float | None:
    """Years until what was paid now has come back, undiscounted, each year's flow spread evenly; None = never."""
    left = upfront_usd
    if left <= 0:
        return 0.0
    for year, flow in enumerate(yearly_usd):
        if flow > 0 and flow >= left:
            return year + left / flow
        left -= flow
    return None


def year_shares(years: float) -> list[float]:
    """Length of each year of a horizon: ones, and the part that is left."""
    whole = math.floor(years + 1e-9)
    rest = years - whole
    return [1.0] * whole + ([rest] if rest > 1e-9 else [])


def check(name: str, value: float, low: float, high: float) -> None:
    """Refuses a figure that is not a finite number within bounds.

    Raises:
        SpecError: Names it.
    """
    from tokenopt.errors import SpecError

    if not (math.isfinite(value) and low <= value <= high):
        raise SpecError(f"{name} is {value:g}, expected a number from {low:g} to {high:g}")
