"""The user's `prices.toml` as a price plugin, apart from the store so that neither can take the other down."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import Offer

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_prices() -> Iterable[Offer]:
    """The user's own offers; nothing where there is no file and none is named.

    Raises:
        SpecError: The file is not usable, or the one that TOKENOPT_PRICES_FILE names does not exist.
    """
    import os

    from tokenopt.prices.quotes import FILE_VARIABLE, default_file, load_user_prices

    file = default_file()
    # A file that was named must be there; the one in the usual place need not.
    return load_user_prices(file) if os.environ.get(FILE_VARIABLE) or file.exists() else []
