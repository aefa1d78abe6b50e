"""The user's `prices.toml` as a price plugin, apart from the store so that neither can take the other down."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import Offer

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_prices() -> Iterable[Offer]:
    """The user's own offers; nothing where there is no file.

    Raises:
        SpecError: The file is not usable.
    """
    from tokenopt.prices.quotes import default_file, load_user_prices

    file = default_file()
    return load_user_prices(file) if file.exists() else []
