"""The Cloud Billing Catalog (`skus.list`): parsing and fetching.

A machine with accelerators is not sold as one SKU: its price is the sum of accelerators, cores and memory, each in its
own SKU by region and usage. TPUs are priced per chip. Prices are `units` plus `nanos` in the SKU's currency, with the
catalogue's own exchange rate beside it.

Assumes: local SSDs, which some machine types must have and which are billed apart, are left out (the sum is then a few
percent low); `note` says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.currency import to_usd
from tokenopt.prices.names import InstanceTable
from tokenopt.prices.sources import OfferBook, items, load_json, mapping, number, text
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource, Term

URL_VARIABLE = "TOKENOPT_GCP_PRICES_URL"
KEY_VARIABLES = ("TOKENOPT_GCP_API_KEY", "GOOGLE_API_KEY")
DEFAULT_URL = "https://cloudbilling.googleapis.com"
SERVICES = ("6F81-5844-456A", "E000-3F24-B8AA")
"""Compute Engine and Cloud TPU."""
MAX_PAGES = 500

_TERMS: Mapping[str, Term] = {
    "OnDemand": "on-demand", "Preemptible": "spot", "Commit1Yr": "reserved-1y", "Commit3Yr": "reserved-3y",
}  # fmt: skip
_OTHER_SALE = re.compile(
    r"sole tenancy|reserved|premium|custom|suspended|dws|calendar|flex start|dollar based|upgrade", re.IGNORECASE
)
_GPUS = (
    ("gb200", re.compile(r"\bgb200\b", re.IGNORECASE)),
    ("b200", re.compile(r"\bb200\b", re.IGNORECASE)),
    ("h200", re.compile(r"\bh200\b", re.IGNORECASE)),
    ("h100-mega", re.compile(r"\bh100\b.*\b(mega|plus)\b", re.IGNORECASE)),
    ("h100", re.compile(r"\bh100\b", re.IGNORECASE)),
    ("a100-80", re.compile(r"\ba100 80gb\b", re.IGNORECASE)),
    ("a100-40", re.compile(r"\ba100\b", re.IGNORECASE)),
    ("l4", re.compile(r"\bl4\b", re.IGNORECASE)),
    ("rtx-pro-6000", re.compile(r"\brtx pro 6000\b|\brtx 6000 96gb\b", re.IGNORECASE)),
)
_HOST = re.compile(
    r"^(?:commitment v1: |spot preemptible |preemptible )?(a2|a3|a3plus|a3ultra|a4|a4x|g2|g4)(?: instance)? "
    r"(core|cpu|ram|memory)\b",
    re.IGNORECASE,
)
_TPUS = (
    # Key, chips of a pod (a slice may be as large, and its chips share the fabric), how it is written.
    ("tpu-v7", 9216, re.compile(r"tpu ?-?(v7x?|7x)\b|ironwood", re.IGNORECASE)),
    ("tpu-v6e", 256, re.compile(r"tpu ?-?v6e|trillium", re.IGNORECASE)),
    ("tpu-v5p", 8960, re.compile(r"tpu ?-?v5p", re.IGNORECASE)),
    ("tpu-v5e", 256, re.compile(r"tpu ?-?v5e|tpu ?-?v5 ?lite", re.IGNORECASE)),
    ("tpu-v4", 4096, re.compile(r"tpu ?-?v4\b", re.IGNORECASE)),
)

_Key = tuple[str, str, str, str]
"""Part (gpu, core, ram), family, region, usage."""


@cache
def machine_table() -> InstanceTable:
    """Machine types with accelerators, their cores and memory."""
    return InstanceTable(Path(__file__).parent / "machines.csv")


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:
    """Offers made from the SKUs of all pages together.

    Args:
        pages: `skus.list` answers of one catalogue.
        rates: USD per unit of a currency, from the user; else the catalogue's own rate is used.

    Returns:
        Offers per region and usage: whole machines, and TPU chips.

    Raises:
        PriceSourceError: A page is not whole JSON.
    """
    book = OfferBook("vendor-datasheet")
    prices: dict[_Key, float] = {}
    for page in pages:
        for sku in items(mapping(load_json(page)).get("skus")):
            _sku(mapping(sku), page.name, book, prices, rates)
    _machines(book, prices, pages[0].name if pages else "")
    return book.result()


def _sku(
    sku: Mapping[str, Any], name: str, book: OfferBook, prices: dict[_Key, float], rates: Mapping[str, float]
) -> None:
    description = text(sku.get("description"))
    category = mapping(sku.get("category"))
    usage = text(category.get("usageType"))
    group = text(category.get("resourceGroup"))
    tpu = next(((key, host) for key, host, pattern in _TPUS if pattern.search(description)), None)
    gpu = next((family for family, pattern in _GPUS if pattern.search(description)), None) if group == "GPU" else None
    host = _HOST.match(description)
    if tpu is None and gpu is None and host is None:
        book.skip(
            "accelerator not in the table" if group in ("GPU", "TPU") else "no part of a machine with accelerators"
        )
        return
    if usage not in _TERMS:
        book.skip(f"usage type {usage or 'not given'}")
        return
    if _OTHER_SALE.search(description):
        book.skip("another way to buy: reservation, calendar, flex-start or dollar commitment")
        return
    usd = _price(sku, "GiBy.h" if host is not None and host.group(2).lower() in ("ram", "memory") else "h", book, rates)
    if usd is None:
        return
    for region in items(sku.get("serviceRegions")):
        if not isinstance(region, str):
            book.skip("region is not text")
        elif tpu is not None:
            book.add(
                accelerator=tpu[0], provider="gcp", instance_type="Cloud TPU", region=region, term=_TERMS[usage],
                usd_per_instance_hr=usd, chips=1, reference=name, fabric_chips=tpu[1],
                note="price of one chip; slices are sold whole",
            )  # fmt: skip
        elif gpu is not None:
            prices["gpu", gpu, region, usage] = usd
        elif host is not None:
            part = "ram" if host.group(2).lower() in ("ram", "memory") else "core"
            prices[part, host.group(1).upper(), region, usage] = usd


def _price(sku: Mapping[str, Any], unit: str, book: OfferBook, rates: Mapping[str, float]) -> float | None:
    info = mapping(next(iter(items(sku.get("pricingInfo"))), None))
    expression = mapping(info.get("pricingExpression"))
    if text(expression.get("usageUnit")) != unit:
        book.skip(f"priced per {text(expression.get('usageUnit')) or 'nothing'}, expected {unit}")
        return None
    for tier in items(expression.get("tieredRates")):
        price = mapping(mapping(tier).get("unitPrice"))
        units, nanos = number(price.get("units") or 0), number(price.get("nanos") or 0)
        if units is None or nanos is None:
            continue
        amount = units + nanos / 1e9
        if amount > 0:
            currency = text(price.get("currencyCode")) or "USD"
            usd = to_usd(amount, currency, rates, number(info.get("currencyConversionRate")))
            if usd is None:
                book.skip(f"price in {currency} without a rate")
            return usd
    book.skip("no price above 0 in its tiers")
    return None


def _machines(book: OfferBook, prices: Mapping[_Key, float], name: str) -> None:
    places = sorted({(family, region, usage) for part, family, region, usage in prices if part == "gpu"})
    for family, region, usage in places:
        rows = [row for row in machine_table() if row.columns["gpu"] == family]
        if rows and not any(
            (part, row.columns["family"], region, usage) in prices for row in rows for part in ("core", "ram")
        ):
            book.add(
                accelerator=rows[0].accelerator, provider="gcp", instance_type=f"{family} without host", region=region,
                term=_TERMS[usage], usd_per_instance_hr=prices["gpu", family, region, usage], chips=1, reference=name,
                suspect="price of the accelerator alone: the SKUs of its host are not in the pages",
            )  # fmt: skip
            continue
        for row in rows:
            core = prices.get(("core", row.columns["family"], region, usage))
            ram = prices.get(("ram", row.columns["family"], region, usage))
            if core is None or ram is None:
                book.skip(f"{row.columns['instance_type']}: no SKU of its cores or memory in the same region and usage")
                continue
            book.add(
                accelerator=row.accelerator, provider="gcp", instance_type=row.columns["instance_type"], region=region,
                term=_TERMS[usage],
                usd_per_instance_hr=row.chips * prices["gpu", family, region, usage]
                + float(row.columns["vcpus"]) * core + float(row.columns["memory_gib"]) * ram,
                chips=int(row.chips), reference=name,
                note="accelerators, cores and memory summed; local SSD, where one is needed, is billed apart",
            )  # fmt: skip


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """All pages of Compute Engine and Cloud TPU.

    Raises:
        PriceSourceError: There is no key, or the pages do not end.
    """
    key = _key()
    if not key:
        raise PriceSourceError(f"the Cloud Billing Catalog needs an API key: set {KEY_VARIABLES[0]}")
    base = os.environ.get(URL_VARIABLE, DEFAULT_URL).rstrip("/")
    for service in SERVICES:
        token = ""
        for _ in range(MAX_PAGES):
            params = {"pageSize": "5000", "key": key, **({"pageToken": token} if token else {})}
            page = client.get(f"{base}/v1/services/{service}/skus", params=params)
            yield page
            token = text(mapping(load_json(page)).get("nextPageToken"))
            if not token:
                break
        else:
            raise PriceSourceError(f"Google sent more than {MAX_PAGES} pages")


def _key() -> str:
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and {"skus", "skuId", "pricingInfo"} <= shape.names


SOURCES = (
    PriceSource(
        "gcp", "Google Cloud Billing Catalog, machines summed, TPU per chip", parse, _recognises, fetch,
        f"an API key in {KEY_VARIABLES[0]}", lambda: bool(_key()),
    ),
)  # fmt: skip
