"""Template accelerators, engines and prices for tokenopt: data only, nothing here runs during a search."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenopt.catalog.accelerators import load_accelerators_toml
from tokenopt.catalog.engines import load_engines_toml
from tokenopt.hookspecs import hookimpl
from tokenopt.records import Accelerator, Engine, Offer, Source

TOKENOPT_HOOK_API_VERSION = 1
_DATA = Path(__file__).parent


@hookimpl
def tokenopt_accelerators() -> Iterable[Accelerator]:
    """The chips, from `accelerators.toml`."""
    return load_accelerators_toml(_DATA / "accelerators.toml")


@hookimpl
def tokenopt_engines() -> Iterable[Engine]:
    """What runs on them, from `engines.toml`."""
    return load_engines_toml(_DATA / "engines.toml")


@hookimpl
def tokenopt_prices() -> Iterable[Offer]:
    """What they cost: USD per chip-hour without tax, the chips that must be taken together, and the day of the price."""
    return [
        Offer(
            accelerator="template-1",
            provider="template-cloud",
            instance_type="template.8x",
            region="eu-1",
            term="on-demand",
            usd_per_chip_hr=2.00,
            chips_per_instance=8,
            as_of="2026-10-01",
            source=Source("template.example/prices", "vendor-datasheet", as_of="2026-10-01"),
        )
    ]
