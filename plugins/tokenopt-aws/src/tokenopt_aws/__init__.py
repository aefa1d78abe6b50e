"""AWS Trainium and Inferentia and serving engines for tokenopt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenopt.catalog.accelerators import load_accelerators_toml
from tokenopt.catalog.engines import load_engines_toml
from tokenopt.hookspecs import hookimpl
from tokenopt.records import Accelerator, Engine

TOKENOPT_HOOK_API_VERSION = 1

_DATA = Path(__file__).parent


@hookimpl
def tokenopt_accelerators() -> Iterable[Accelerator]:
    """Accelerators of this package, from `accelerators.toml`."""
    return load_accelerators_toml(_DATA / "accelerators.toml")


@hookimpl
def tokenopt_engines() -> Iterable[Engine]:
    """Engines that run on them, from `engines.toml`."""
    return load_engines_toml(_DATA / "engines.toml")
