"""Hand-collected lists of GPU cloud offerings: one record a price, USD per GPU-hour, with caveats in words.

The caveats decide what a price may be used for: estimates, stale pages and virtual GPUs are marked, minimum prices of a
marketplace are marketplace offers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenopt.prices.names import chip_by_name
from tokenopt.prices.sources import OfferBook, iso_date, items, load_json, mapping, number, text
from tokenopt.records import FileShape, ParsedPrices, PricePage, PriceSource, Term

_TERMS: Mapping[str, Term] = {
    "on-demand": "on-demand", "secure": "on-demand", "production": "on-demand", "serverless": "on-demand",
    "spot": "spot", "interruptible": "spot", "prototyping": "spot",
    "marketplace": "marketplace", "community": "marketplace", "reserved-1y": "reserved-1y", "reserved-3y": "reserved-3y",
}  # fmt: skip
_PROVIDERS = {"vast-ai": "vast.ai"}
"""Names under which other sources know a provider."""
_DOUBT = re.compile(
    r"estimated|may be stale|virtuali[sz]ed gpu|gpu-over-ip|not published|superseded|placeholder|rarely available"
    r"|per node|per server|whole node|minimum term",
    re.IGNORECASE,
)
_MARKETPLACE = re.compile(r"marketplace|cheapest host|min live offer", re.IGNORECASE)
_APART = re.compile(r"billed separately", re.IGNORECASE)


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers of one GPU each.

    Raises:
        PriceSourceError: A page is not whole JSON.
    """
    book = OfferBook("third-party")
    for page in pages:
        document = load_json(page)
        records = document if isinstance(document, list) else items(mapping(document).get("offerings"))
        for record in records:
            _record(mapping(record), page.name, book)
    return book.result()


def _record(record: Mapping[str, Any], name: str, book: OfferBook) -> None:
    model = text(record.get("gpu_model"))
    provider = _PROVIDERS.get(text(record.get("provider_id")).lower(), text(record.get("provider_id")).lower())
    usd = number(record.get("price_usd_hour"))
    if not model or not provider or usd is None:
        missing = "gpu_model" if not model else "provider_id" if not provider else "price_usd_hour"
        book.skip(f"field {missing} is missing")
        return
    interconnect = text(record.get("interconnect"))
    chip = chip_by_name(model, number(record.get("vram_gb")), hint=interconnect)
    if chip is None:
        book.skip("accelerator not in the table")
        return
    tier = text(record.get("tier"))
    words = " ".join([text(record.get("notes")), *(text(caveat) for caveat in items(record.get("caveats")))]).strip()
    term = _TERMS.get(tier)
    if term is None:
        book.skip(f"tier {tier or 'not given'}")
        return
    if _MARKETPLACE.search(words):
        term = "marketplace"
    elif record.get("is_spot") is True and term == "on-demand":
        term = "spot"
    doubts = [part for part in (words if _DOUBT.search(words) else "", chip.doubt) if part]
    if _APART.search(words) and not doubts:
        doubts.append(f"the host is billed apart: {words}")
    is_single = interconnect.lower() in ("pcie", "")
    book.add(
        accelerator=chip.key, provider=provider, instance_type=f"{model} ({tier})", region="", term=term,
        usd_per_instance_hr=usd, chips=1, reference=text(record.get("source_url")) or name,
        as_of=iso_date(record.get("collected_at")), note=words, suspect="; ".join(doubts),
        fabric_chips=None if is_single else 8,
    )  # fmt: skip


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and {"gpu_model", "price_usd_hour", "provider_id"} <= shape.names


SOURCE = PriceSource("offerings", "hand-collected lists of GPU cloud offerings (files)", parse, _recognises)
