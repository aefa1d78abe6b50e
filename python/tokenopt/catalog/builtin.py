"""The built-in plugin: the bundled models and measurements, through the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Iterable

from tokenopt.hookspecs import hookimpl
from tokenopt.records import Measurement, Model

TOKENOPT_HOOK_API_VERSION = 1


@hookimpl
def tokenopt_models() -> Iterable[Model]:
    """Nothing: bundled models are found by name without parsing them all (see `tokenopt.catalog.models`)."""
    return ()


@hookimpl
def tokenopt_measurements() -> Iterable[Measurement]:
    """Nothing: bundled measurements are read one model at a time (see `tokenopt.measured.bundled`)."""
    return ()
