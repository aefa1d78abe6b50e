"""Money in other currencies. A rate comes from the user or from the price list itself, never from us."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenopt.errors import SpecError

BASE = "USD"


def parse_rates(texts: Sequence[str]) -> dict[str, float]:
    """Exchange rates from texts ``CODE=USD``.

    Args:
        texts: For instance ``EUR=1.08``: USD paid for one euro.

    Returns:
        USD per unit of each currency.

    Raises:
        SpecError: A text has another form, or the rate is not a finite number above 0.
    """
    rates: dict[str, float] = {}
    for text in texts:
        code, separator, amount = text.partition("=")
        code = code.strip().upper()
        try:
            rate = float(amount)
        except ValueError:
            rate = math.nan
        if not separator or len(code) != 3 or not code.isalpha() or not math.isfinite(rate) or rate <= 0:
            raise SpecError(
                f"--rate is {text!r}, expected CODE=USD with a number above 0, for instance EUR=1.08 (USD per euro)"
            )
        rates[code] = rate
    return rates


def to_usd(
    amount: float, currency: str, rates: Mapping[str, float], units_per_usd: float | None = None
) -> float | None:
    """An amount in USD.

    Args:
        amount: In `currency`.
        currency: ISO 4217 code.
        rates: USD per unit of a currency, from the user; they come before the price list's own.
        units_per_usd: The price list's own rate, units of `currency` per USD.

    Returns:
        USD, None where nobody gave a rate.
    """
    code = currency.upper()
    if code == BASE:
        return amount
    if code in rates:
        return amount * rates[code]
    if units_per_usd is not None and math.isfinite(units_per_usd) and units_per_usd > 0:
        return amount / units_per_usd
    return None
