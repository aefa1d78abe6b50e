"""The built-in plugin: the bundled models, through the same hook as anyone's."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import Model

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_models() -> Iterable[Model]:
    """Nothing: bundled models are found by name without parsing them all (see `tokenopt.catalog.models`)."""
    return ()
