"""AWS prices: Price List files, the Query API, Savings Plans, and two kinds of file people keep of them."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import PriceSource

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_price_sources() -> Iterable[PriceSource]:
    """The sources of this package; their code is imported when the hook is called."""
    from tokenopt_prices_aws.live import SOURCES

    return SOURCES
