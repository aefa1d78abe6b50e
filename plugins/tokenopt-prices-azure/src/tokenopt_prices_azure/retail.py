"""The Azure Retail Prices API: parsing and fetching.

Traps handled: Reservation rows hold the amount of the whole term though their unit says 1 Hour; Spot and Low Priority
stand in meter names only, Windows in product names only; DevTest prices; the API does not say how many accelerators a
size holds; rows whose end is already announced; meters of other services and per-token meters.
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
from tokenopt.prices.names import InstanceRow, InstanceTable
from tokenopt.prices.sources import (
    HOURS_PER_YEAR,
    RESERVED_TERMS,
    OfferBook,
    iso_date,
    items,
    load_json,
    mapping,
    number,
    text,
)
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource

URL_VARIABLE = "TOKENOPT_AZURE_PRICES_URL"
DEFAULT_URL = "https://prices.azure.com/api/retail/prices"
API_VERSION = "2023-01-01-preview"
MAX_PAGES = 2000

_FILTER = "serviceName eq 'Virtual Machines' and contains(armSkuName, 'Standard_N')"
_SERVICE = "Virtual Machines"
_YEARS = re.compile(r"(\d+) Years?", re.IGNORECASE)
_ACCELERATED = re.compile(r"(Standard_)?N[CDGPV]", re.IGNORECASE)


@cache
def instance_table() -> InstanceTable:
    """Accelerators of each size; the API gives none."""
    return InstanceTable(Path(__file__).parent / "instances.csv")


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:
    """Offers in Retail Prices answers, with their envelope or as plain lists of items.

    Args:
        pages: Answers.
        rates: USD per unit of a currency, from the user.

    Returns:
        Offers per region: on-demand, spot, reservations and savings plans of one and three years.

    Raises:
        PriceSourceError: A page is not whole JSON.
    """
    book = OfferBook("vendor-datasheet")
    for page in pages:
        document = load_json(page)
        for item in document if isinstance(document, list) else items(mapping(document).get("Items")):
            _item(mapping(item), page.name, book, rates)
    return book.result()


def _item(item: Mapping[str, Any], name: str, book: OfferBook, rates: Mapping[str, float]) -> None:
    size = text(item.get("armSkuName"))
    # Some projects keep fewer fields: a size with accelerators is a machine unless the item says otherwise.
    if text(item.get("serviceName")) not in (_SERVICE, "" if size else _SERVICE):
        book.skip("not a virtual machine")
        return
    row = instance_table().find(size)
    if row is None:
        book.skip(f"accelerators not in the table: {size}" if _ACCELERATED.match(size) else "no accelerator")
        return
    kind, meter, product = (text(item.get(field)) for field in ("type", "meterName", "productName"))
    labels = f"{meter} {text(item.get('skuName'))}"
    region = text(item.get("armRegionName"))
    price = number(item.get("retailPrice"))
    reason = (
        "a fraction of an accelerator" if row.chips < 1
        else "field retailPrice is missing" if price is None
        else "field armRegionName is missing" if not region
        else "Windows" if "windows" in product.lower()
        else "dedicated host" if "dedicated host" in product.lower()
        else "cloud service, not a virtual machine" if "cloudservices" in product.lower().replace(" ", "")
        else "DevTest price, for development subscriptions only" if kind == "DevTestConsumption"
        else "Low Priority, replaced by Spot" if "Low Priority" in labels
        else f"priced per {text(item.get('unitOfMeasure')) or 'nothing'}" if item.get("unitOfMeasure") != "1 Hour"
        else "price of a volume tier" if number(item.get("tierMinimumUnits"))
        else "not the primary meter of its region" if item.get("isPrimaryMeterRegion") is False
        else ""
    )  # fmt: skip
    if reason:
        book.skip(reason)
        return
    currency = text(item.get("currencyCode")) or "USD"
    ends = iso_date(item.get("effectiveEndDate"))
    doubts = [f"the price ends on {ends}"] if ends else []
    if not product:
        doubts.append("without a product name it may be a Windows price")
    taker = _Taker(book, rates, row, size, region, currency, name, "; ".join(doubts))
    if kind == "Reservation":
        match = _YEARS.fullmatch(text(item.get("reservationTerm")))
        years = int(match.group(1)) if match else 0
        # The amount is for the whole term, whatever the unit says.
        taker.take(
            "reservation",
            years,
            number(price),
            hours=years * HOURS_PER_YEAR,
            note="amount of the whole term over its hours",
        )
    elif kind == "Consumption":
        taker.take("spot" if "Spot" in labels else "on-demand", 0, price)
        for plan in items(item.get("savingsPlan")):
            plan = mapping(plan)
            match = _YEARS.fullmatch(text(plan.get("term")))
            taker.take("savings plan", int(match.group(1)) if match else 0, number(plan.get("retailPrice")))
    else:
        book.skip(f"type {kind or 'not given'}")


class _Taker:
    """Writes the prices of one item into the book."""

    def __init__(
        self, book: OfferBook, rates: Mapping[str, float], row: InstanceRow, size: str, region: str, currency: str,
        name: str, suspect: str,
    ) -> None:  # fmt: skip
        self._book, self._rates, self._row, self._suspect = book, rates, row, suspect
        self._size, self._region, self._currency, self._name = size, region, currency, name

    def take(self, kind: str, years: int, amount: float | None, hours: int = 1, note: str = "") -> None:
        """One price: `amount` for `hours` hours."""
        if kind in ("reservation", "savings plan") and years not in RESERVED_TERMS:
            self._book.skip(f"{kind} of {years or 'no stated number of'} years")
            return
        usd = to_usd(amount, self._currency, self._rates) if amount is not None else None
        if usd is None:
            self._book.skip(
                f"no price of the {kind}" if amount is None
                else f"price in {self._currency} and no --rate {self._currency}=USD given"
            )  # fmt: skip
            return
        self._book.add(
            accelerator=self._row.accelerator,
            provider="azure",
            instance_type=f"{self._size} ({kind})" if years else self._size,
            region=self._region,
            term=RESERVED_TERMS[years] if years else "spot" if kind == "spot" else "on-demand",
            usd_per_instance_hr=usd / hours,
            chips=int(self._row.chips),
            reference=self._name,
            note=note,
            suspect=self._suspect,
        )


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """All pages about sizes with accelerators.

    Raises:
        PriceSourceError: The pages do not end.
    """
    params: dict[str, str] | None = {"api-version": API_VERSION, "$filter": _FILTER}
    address = os.environ.get(URL_VARIABLE, DEFAULT_URL)
    for _ in range(MAX_PAGES):
        page = client.get(address, params=params)
        yield page
        address, params = text(mapping(load_json(page)).get("NextPageLink")), None
        if not address:
            return
    raise PriceSourceError(f"Azure sent more than {MAX_PAGES} pages")


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and {"meterName", "retailPrice", "unitOfMeasure"} <= shape.names


SOURCES = (PriceSource("azure", "Azure Retail Prices API", parse, _recognises, fetch),)
