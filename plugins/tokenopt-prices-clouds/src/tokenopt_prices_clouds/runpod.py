"""RunPod's `gpuTypes` answer (GraphQL). Prices are per GPU-hour.

Secure cloud is on-demand; community cloud is other people's machines, hence `marketplace`; the bid price is spot. A price
of exactly 0.50 for a large accelerator is a placeholder that was seen on community rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.names import chip_by_name
from tokenopt.prices.sources import OfferBook, items, load_json, mapping, number, text, whole
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource, Term

URL_VARIABLE = "TOKENOPT_RUNPOD_URL"
DEFAULT_URL = "https://api.runpod.io/graphql"
PLACEHOLDER_USD = 0.5
PLACEHOLDER_MEMORY_GB = 90
GPUS_OF_A_NODE = 8

_QUERY = """query { gpuTypes {
  id displayName memoryInGb secureCloud communityCloud maxGpuCount
  securePrice communityPrice secureSpotPrice communitySpotPrice
  lowestPrice(input: {gpuCount: 1}) { minimumBidPrice uninterruptablePrice }
} }"""


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers of one GPU each, of nodes whose GPUs share a fabric where the form says so.

    Raises:
        PriceSourceError: A page is not whole JSON, or is an answer with errors alone.
    """
    book = OfferBook("vendor-datasheet")
    for page in pages:
        document = mapping(load_json(page))
        if document.get("errors") and not document.get("data"):
            first = mapping(next(iter(items(document["errors"])), None))
            raise PriceSourceError(f"RunPod refused the query: {text(first.get('message')) or 'no reason given'}")
        for entry in items(mapping(document.get("data")).get("gpuTypes")):
            _entry(mapping(entry), page.name, book)
    return book.result()


def _entry(entry: Mapping[str, Any], reference: str, book: OfferBook) -> None:
    name = text(entry.get("id")) or text(entry.get("displayName"))
    shown = text(entry.get("displayName"))
    memory_gb = number(entry.get("memoryInGb"))
    if "mig" in f"{name} {shown}".lower():
        book.skip("a fraction of an accelerator")
        return
    chip = chip_by_name(name, memory_gb, hint=shown) or chip_by_name(shown, memory_gb, hint=name)
    if chip is None:
        book.skip(f"accelerator not in the table: {name or 'without a name'}")
        return
    lowest = mapping(entry.get("lowestPrice"))
    secure = number(entry.get("securePrice"))
    community = number(entry.get("communityPrice"))
    prices: list[tuple[Term, str, float | None]] = [
        ("on-demand", "secure cloud", secure),
        ("marketplace", "community cloud", community),
        ("spot", "secure cloud", number(entry.get("secureSpotPrice"))),
        ("spot", "community cloud", number(entry.get("communitySpotPrice"))),
    ]
    if secure is None and community is None:
        # Only the lowest price of both clouds: an uninterruptible one is what RunPod calls on-demand.
        prices.append(("on-demand", "lowest", number(lowest.get("uninterruptablePrice"))))
    if all(price is None for term, _, price in prices if term == "spot"):
        prices.append(("spot", "lowest bid", number(lowest.get("minimumBidPrice"))))
    if all(not price for _, _, price in prices):
        book.skip("no price")
        return
    count = whole(entry.get("maxGpuCount")) or GPUS_OF_A_NODE
    for term, label, price in prices:
        # RunPod writes 0 for a cloud that does not have the card.
        if not price:
            continue
        is_placeholder = price == PLACEHOLDER_USD and (memory_gb or 0) >= PLACEHOLDER_MEMORY_GB
        book.add(
            accelerator=chip.key, provider="runpod", instance_type=f"{shown or name} ({label})", region="", term=term,
            usd_per_instance_hr=price, chips=1, reference=reference, fabric_chips=max(1, count),
            suspect="0.50 is a placeholder that RunPod prints" if is_placeholder else chip.doubt,
        )  # fmt: skip


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """The one answer about all GPU types; no account is needed."""
    yield client.post(os.environ.get(URL_VARIABLE, DEFAULT_URL), {"query": _QUERY})


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and {"data", "gpuTypes", "memoryInGb"} <= shape.names


SOURCE = PriceSource("runpod", "RunPod GPU types", parse, _recognises, fetch)
