"""Vultr's plans (API v2): cloud GPU plans, of which many are fractions of a card, and bare metal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.names import Chip, chip_by_name
from tokenopt.prices.sources import HOURS_PER_MONTH, OfferBook, items, load_json, mapping, number, text
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource

URL_VARIABLE = "TOKENOPT_VULTR_URL"
DEFAULT_URL = "https://api.vultr.com/v2"
MAX_PAGES = 200

_CARD_MEMORY_GB = {
    "a16": 16, "a40": 48, "a100-pcie-80": 80, "a100-sxm-80": 80, "l40s": 48, "l40": 48, "gh200": 96, "h100-sxm": 80,
    "b200-sxm": 180, "b300-sxm": 268, "mi300x": 192, "mi325x": 256, "mi355x": 288, "a10": 24, "rtx-pro-6000": 96,
}  # fmt: skip
"""Memory of one card, GB: a plan gives its own memory alone, and its share of a card follows from it."""
_CARD_TOLERANCE = 0.12
_METAL = re.compile(r"-(?:(\d+)-)?([a-z0-9]+)-gpu$")


def _card(name: str) -> Chip | None:
    """The card of a name; of a family with several memories (A100) the one that the provider has."""
    sizes = (None, *sorted(set(_CARD_MEMORY_GB.values())))
    found = (chip_by_name(name, size) for size in sizes)
    return next((chip for chip in found if chip is not None and chip.key in _CARD_MEMORY_GB), None)


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers per location.

    Raises:
        PriceSourceError: A page is not whole JSON.
    """
    book = OfferBook("vendor-datasheet")
    for page in pages:
        document = mapping(load_json(page))
        for plan in items(document.get("plans")):
            _plan(mapping(plan), page.name, book)
        for plan in items(document.get("plans_metal")):
            _metal(mapping(plan), page.name, book)
    return book.result()


def _plan(plan: Mapping[str, Any], reference: str, book: OfferBook) -> None:
    name = text(plan.get("gpu_type"))
    if not name:
        book.skip("no accelerator")
        return
    chip = _card(name)
    memory_gb = number(plan.get("gpu_vram_gb"))
    if chip is None:
        book.skip(f"accelerator not in the table: {name}")
        return
    if not memory_gb:
        book.skip("field gpu_vram_gb is missing")
        return
    card_gb = _CARD_MEMORY_GB[chip.key]
    if memory_gb < card_gb * (1 - _CARD_TOLERANCE):
        book.skip("a fraction of an accelerator")
        return
    _offers(plan, chip.key, round(memory_gb / card_gb), chip.doubt, reference, book)


def _metal(plan: Mapping[str, Any], reference: str, book: OfferBook) -> None:
    match = _METAL.search(text(plan.get("id")))
    if match is None:
        book.skip("no accelerator")
        return
    chip = chip_by_name(match.group(2), hint="sxm")
    if chip is None:
        book.skip(f"accelerator not in the table: {match.group(2)}")
        return
    _offers(plan, chip.key, int(match.group(1) or 1), chip.doubt, reference, book)


def _offers(
    plan: Mapping[str, Any], accelerator: str, chips: int, suspect: str, reference: str, book: OfferBook
) -> None:
    hourly, monthly = number(plan.get("hourly_cost")), number(plan.get("monthly_cost"))
    if not hourly and monthly:
        hourly = monthly / HOURS_PER_MONTH
    if not hourly:
        book.skip("fields hourly_cost and monthly_cost are missing")
        return
    locations = [text(location) for location in items(plan.get("locations"))]
    if not any(locations):
        book.skip("sold out: no location has it")
    for location in filter(None, locations):
        book.add(
            accelerator=accelerator, provider="vultr", instance_type=text(plan.get("id")), region=location,
            term="on-demand", usd_per_instance_hr=hourly, chips=chips, reference=reference, suspect=suspect,
        )  # fmt: skip


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """All pages of cloud GPU and bare-metal plans; no account is needed.

    Raises:
        PriceSourceError: The pages do not end.
    """
    base = os.environ.get(URL_VARIABLE, DEFAULT_URL).rstrip("/")
    for path, fixed in (("/plans", {"type": "vcg"}), ("/plans-metal", {})):
        cursor = ""
        for _ in range(MAX_PAGES):
            page = client.get(
                base + path, params={"per_page": "500", **fixed, **({"cursor": cursor} if cursor else {})}
            )
            yield page
            links = mapping(mapping(mapping(load_json(page)).get("meta")).get("links"))
            cursor = text(links.get("next"))
            if not cursor:
                break
        else:
            raise PriceSourceError(f"Vultr sent more than {MAX_PAGES} pages")


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and (
        ({"plans", "vcpu_count"} <= shape.names) or ({"plans_metal", "cpu_count"} <= shape.names)
    )


SOURCE = PriceSource("vultr", "Vultr plans", parse, _recognises, fetch)
