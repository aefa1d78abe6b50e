"""Prices of Lambda, RunPod and Vultr, and of hand-collected lists."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import PriceSource

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_price_sources() -> Iterable[PriceSource]:
    """The sources of this package; their code is imported when the hook is called."""
    from tokenopt_prices_clouds import lambda_cloud, offerings, runpod, vultr

    return (lambda_cloud.SOURCE, runpod.SOURCE, vultr.SOURCE, offerings.SOURCE)
