"""Oracle's public price list: parsing and fetching.

The price is per GPU and hour, one USD price for all commercial regions; the shapes are sold whole, so the chips that
must be taken together come from `parts.csv`. Parts of other metrics (OCPU, storage, ...) hold no accelerator.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.currency import to_usd
from tokenopt.prices.names import chip_by_name
from tokenopt.prices.sources import OfferBook, items, load_json, mapping, number, text, whole
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource

URL_VARIABLE = "TOKENOPT_OCI_PRICES_URL"
DEFAULT_URL = "https://apexapps.oracle.com/pls/apex/cetools/api/v1/products/"
MAX_PAGES = 500
_SOLD_WHOLE = 8
"""Chips of a shape whose part is not in the table: Oracle's bare-metal shapes hold eight."""


@cache
def _parts() -> dict[str, dict[str, str]]:
    with (Path(__file__).parent / "parts.csv").open(encoding="utf-8", newline="") as file:
        return {row["part_number"]: row for row in csv.DictReader(file)}


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:
    """Offers in price list answers.

    Args:
        pages: Answers.
        rates: USD per unit of a currency, from the user; needed where the list is not in USD.

    Returns:
        On-demand offers for all commercial regions.

    Raises:
        PriceSourceError: A page is not whole JSON.
    """
    book = OfferBook("vendor-datasheet")
    for page in pages:
        for item in items(mapping(load_json(page)).get("items")):
            _item(mapping(item), page.name, book, rates)
    return book.result()


def _item(item: Mapping[str, Any], name: str, book: OfferBook, rates: Mapping[str, float]) -> None:
    metric = text(item.get("metricName"))
    if metric != "GPU Per Hour":
        book.skip("not priced per GPU and hour" if metric else "field metricName is missing")
        return
    part = text(item.get("partNumber"))
    title = text(item.get("displayName"))
    row = _parts().get(part)
    suspect = ""
    if row is not None:
        accelerator, shape, chips = row["accelerator"], row["shape"], int(row["chips"])
    else:
        chip = chip_by_name(title.rsplit(" - ", 1)[-1], hint="sxm")
        if chip is None:
            book.skip(f"accelerator not in the table: {part} {title}")
            return
        accelerator, shape, chips = chip.key, f"{title.rsplit(' - ', 1)[-1]} ({part})", _SOLD_WHOLE
        suspect = chip.doubt or "the size of the shape is not in the table; taken as 8 GPUs"
    usd = _price(item, book, rates)
    if usd is not None:
        book.add(
            accelerator=accelerator, provider="oci", instance_type=shape, region="", term="on-demand",
            usd_per_instance_hr=usd * chips, chips=chips, reference=name, suspect=suspect,
            note=f"part {part}, one price for all commercial regions",
        )  # fmt: skip


def _price(item: Mapping[str, Any], book: OfferBook, rates: Mapping[str, float]) -> float | None:
    """USD per GPU-hour; of several tiers the dearest, since the buyer's volume is not known."""
    found: dict[str, float] = {}
    for localization in items(item.get("currencyCodeLocalizations")):
        localization = mapping(localization)
        values = [
            value
            for price in items(localization.get("prices"))
            if text(mapping(price).get("model")) == "PAY_AS_YOU_GO"
            and (value := number(mapping(price).get("value"))) is not None
        ]
        if values:
            found[text(localization.get("currencyCode"))] = max(values)
    for currency in sorted(found, key=lambda code: code != "USD"):
        usd = to_usd(found[currency], currency, rates)
        if usd is not None:
            return usd
    book.skip(f"price in {', '.join(sorted(found))} without a rate" if found else "no pay-as-you-go price")
    return None


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """The list in USD, with further pages where the answer says that there are more.

    Raises:
        PriceSourceError: The pages do not end.
    """
    address = os.environ.get(URL_VARIABLE, DEFAULT_URL)
    offset = 0
    for _ in range(MAX_PAGES):
        page = client.get(address, params={"currencyCode": "USD", **({"offset": str(offset)} if offset else {})})
        yield page
        document = mapping(load_json(page))
        rows = len(items(document.get("items")))
        if document.get("hasMore") is not True or not rows:
            return
        offset += whole(document.get("count")) or rows
    raise PriceSourceError(f"Oracle sent more than {MAX_PAGES} pages")


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and {"items", "partNumber", "currencyCodeLocalizations"} <= shape.names


SOURCES = (PriceSource("oci", "Oracle Cloud price list", parse, _recognises, fetch),)
