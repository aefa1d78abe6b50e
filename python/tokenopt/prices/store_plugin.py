"""The store as a price plugin: what was fetched or imported earlier, through the same hook as anyone's."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import Offer

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_prices() -> Iterable[Offer]:
    """Offers of the local store; nothing where there is none.

    Raises:
        StoreError: The store is damaged or of a newer tokenopt.
    """
    from tokenopt.prices.store import read_offers

    return read_offers()
