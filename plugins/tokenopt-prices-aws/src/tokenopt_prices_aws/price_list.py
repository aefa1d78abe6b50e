"""Parsing of AWS Price List documents: bulk offer files, Query API answers, Savings Plan files.

Traps handled: several SKUs for one instance type (Windows, licences brought along, dedicated tenancy, unused
reservations), Capacity Blocks at price 0, reserved terms with an upfront fee beside the hourly rate, a reserved term that
stands under OnDemand, prices in CNY, entries that are JSON text inside JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.currency import to_usd
from tokenopt.prices.names import InstanceTable
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
from tokenopt.records import ParsedPrices, PricePage

WHOLE_FILE_BYTES = 64 * 1024**2
"""Longer bulk files are walked member by member instead of being built in memory as a whole."""

_OPENED = {(), ("products",), ("terms",), ("terms", "OnDemand"), ("terms", "Reserved")}
_SPACE = re.compile(r"[ \t\r\n]*")
_BOX_USAGE = re.compile(r"(?:[A-Z0-9]+-)?BoxUsage:(\S+)")
_HOURS = frozenset({"hrs", "hr", "hours", "hour"})
_LEASE_YEARS = {"1yr": 1, "1 yr": 1, "3yr": 3, "3 yr": 3}


@cache
def instance_table() -> InstanceTable:
    """Accelerators of each EC2 instance type."""
    return InstanceTable(Path(__file__).parent / "instances.csv")


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:
    """Offers in Price List documents of any of the three shapes.

    Args:
        pages: Documents; `variant` may name the region of a Savings Plan file.
        rates: USD per unit of a currency, from the user.

    Returns:
        Offers per region; on-demand, reserved (upfront spread over the term) and Savings Plans.

    Raises:
        PriceSourceError: A document is not whole JSON.
    """
    book = OfferBook("vendor-datasheet")
    for page in pages:
        if len(page.content) > WHOLE_FILE_BYTES:
            _Bulk(book, rates, page.name).walk(page.content.decode("utf-8"))
            continue
        _document(load_json(page), page, book, rates)
    return book.result()


def _document(document: Any, page: PricePage, book: OfferBook, rates: Mapping[str, float]) -> None:
    if isinstance(document, str):
        # The Query API sends each entry as JSON text.
        try:
            document = json.loads(document)
        except ValueError:
            book.skip("entry is not JSON")
            return
    if isinstance(document, list):
        for part in document:
            _document(part, page, book, rates)
        return
    if not isinstance(document, Mapping):
        book.skip("entry is not an object")
        return
    terms = mapping(document.get("terms"))
    if "savingsPlan" in terms:
        _savings_plans(document, page, book, rates)
    elif "products" in document:
        bulk = _Bulk(book, rates, page.name)
        bulk.member(("publicationDate",), document.get("publicationDate"))
        for sku, product in mapping(document["products"]).items():
            bulk.member(("products", sku), product)
        for kind in ("OnDemand", "Reserved"):
            for sku, offers in mapping(terms.get(kind)).items():
                bulk.member(("terms", kind, sku), offers)
    elif "PriceList" in document:
        _document(document["PriceList"], page, book, rates)
    elif "product" in document:
        product = mapping(document["product"])
        bulk = _Bulk(book, rates, page.name)
        bulk.member(("publicationDate",), document.get("publicationDate"))
        sku = text(product.get("sku"))
        bulk.member(("products", sku), product)
        for kind in ("OnDemand", "Reserved"):
            bulk.member(("terms", kind, sku), terms.get(kind))
    elif document and all(isinstance(value, Mapping) and "product" in value for value in document.values()):
        for entry in document.values():
            _document(entry, page, book, rates)
    else:
        book.skip("not a price list document")


class _Bulk:
    """One offer file: products first, then their terms."""

    def __init__(self, book: OfferBook, rates: Mapping[str, float], name: str) -> None:
        self._book = book
        self._rates = rates
        self._name = name
        self._as_of = ""
        self._products: dict[str, tuple[str, str, str, int]] = {}

    def walk(self, document: str) -> None:
        """Reads a document of any length member by member."""
        for path, value in walk_members(document, self._name):
            self.member(path, value)

    def member(self, path: tuple[str, ...], value: Any) -> None:
        """Takes one product or the terms of one SKU."""
        if path == ("publicationDate",):
            self._as_of = iso_date(value)
        elif len(path) == 2 and path[0] == "products":
            self._product(path[1], mapping(value))
        elif len(path) == 3 and path[2] in self._products:
            for term in mapping(value).values():
                self._term(path[1], self._products[path[2]], mapping(term))

    def _product(self, sku: str, product: Mapping[str, Any]) -> None:
        attributes = mapping(product.get("attributes"))
        instance_type = text(attributes.get("instanceType"))
        reason = _refusal(product, attributes, instance_type)
        if reason:
            self._book.skip(reason)
            return
        row = instance_table().find(instance_type)
        region = text(attributes.get("regionCode")) or text(attributes.get("location"))
        if row is None or not region:
            self._book.skip("field regionCode is missing")
            return
        self._products[sku] = (instance_type, row.accelerator, region, int(row.chips))

    def _term(self, kind: str, product: tuple[str, str, str, int], term: Mapping[str, Any]) -> None:
        instance_type, accelerator, region, chips = product
        attributes = mapping(term.get("termAttributes"))
        hourly = upfront = 0.0
        has_rate = False
        for dimension in mapping(term.get("priceDimensions")).values():
            unit = text(mapping(dimension).get("unit"))
            amount = self._amount(mapping(mapping(dimension).get("pricePerUnit")))
            if amount is None:
                return
            if unit.lower() in _HOURS:
                hourly += amount
                has_rate = True
            elif unit.lower() == "quantity":
                upfront += amount
                has_rate = True
            else:
                self._book.skip(f"priced per {unit or 'nothing'}, not per hour")
                return
        if not has_rate:
            self._book.skip("field priceDimensions is missing")
            return
        lease = text(attributes.get("LeaseContractLength"))
        if not lease and kind == "OnDemand" and not upfront:
            self._book.add(
                accelerator=accelerator, provider="aws", instance_type=instance_type, region=region, term="on-demand",
                usd_per_instance_hr=hourly, chips=chips, reference=self._name, as_of=self._as_of,
            )  # fmt: skip
            return
        # A term with a lease is a commitment wherever it stands in the file.
        years = _LEASE_YEARS.get(lease)
        if years is None:
            self._book.skip(f"commitment of {lease or 'no stated length'}")
            return
        option = ", ".join(
            filter(None, (text(attributes.get("PurchaseOption")), text(attributes.get("OfferingClass"))))
        )
        self._book.add(
            accelerator=accelerator, provider="aws", instance_type=f"{instance_type} ({option})" if option else instance_type,
            region=region, term=RESERVED_TERMS[years], usd_per_instance_hr=hourly + upfront / (years * HOURS_PER_YEAR),
            chips=chips, reference=self._name, as_of=self._as_of, upfront_usd_per_instance=upfront,
            note=f"{lease} commitment, upfront fee spread over {HOURS_PER_YEAR} h a year" if upfront else "",
        )  # fmt: skip

    def _amount(self, price_per_unit: Mapping[str, Any]) -> float | None:
        currency = "USD" if "USD" in price_per_unit else next(iter(price_per_unit), "")
        amount = number(price_per_unit.get(currency))
        if amount is None:
            self._book.skip("field pricePerUnit is missing")
            return None
        usd = to_usd(amount, currency, self._rates)
        if usd is None:
            self._book.skip(f"price in {currency} and no --rate {currency}=USD given")
        return usd


def _refusal(product: Mapping[str, Any], attributes: Mapping[str, Any], instance_type: str) -> str:
    """Why a product is not a Linux instance with accelerators on shared hosts; empty when it is."""
    family = text(product.get("productFamily"))
    if not family.startswith("Compute Instance"):
        return f"not an instance: {family or 'no productFamily'}"
    row = instance_table().find(instance_type)
    if row is None:
        if number(attributes.get("gpu")):
            return f"accelerator not in the table: {instance_type}"
        return "no accelerator"
    if row.chips < 1:
        return "a fraction of an accelerator"
    wanted: tuple[tuple[str, Callable[[str], bool], str], ...] = (
        ("operatingSystem", lambda value: value == "Linux", "operating system {}"),
        ("licenseModel", lambda value: value in ("", "No License required", "NA"), "licence: {}"),
        ("tenancy", lambda value: value == "Shared", "{} tenancy"),
        ("preInstalledSw", lambda value: value in ("", "NA"), "with {} installed"),
        ("capacitystatus", lambda value: value in ("", "Used"), "capacity status {}"),
        ("marketoption", lambda value: value in ("", "OnDemand"), "market option {}"),
    )
    for name, is_right, reason in wanted:
        value = text(attributes.get(name))
        if not is_right(value):
            return reason.format(value or f"not given ({name})")
    return ""


def _savings_plans(document: Mapping[str, Any], page: PricePage, book: OfferBook, rates: Mapping[str, float]) -> None:
    as_of = iso_date(document.get("publicationDate"))
    for plan in items(mapping(document.get("terms")).get("savingsPlan")):
        plan = mapping(plan)
        lease = mapping(plan.get("leaseContractLength"))
        years = number(lease.get("duration"))
        if text(lease.get("unit")).rstrip("s") != "year" or years not in RESERVED_TERMS:
            book.skip("Savings Plan of another length")
            continue
        label = text(plan.get("description")) or "Savings Plan"
        for rate in items(plan.get("rates")):
            rate = mapping(rate)
            usage = _BOX_USAGE.fullmatch(text(rate.get("discountedUsageType")))
            if text(rate.get("discountedServiceCode")) != "AmazonEC2" or usage is None:
                book.skip("Savings Plan rate of another service or usage")
                continue
            if text(rate.get("discountedOperation")) != "RunInstances":
                book.skip("Savings Plan rate of another operating system")
                continue
            row = instance_table().find(usage.group(1))
            if row is None or row.chips < 1:
                book.skip("no accelerator" if row is None else "a fraction of an accelerator")
                continue
            region = text(rate.get("discountedRegionCode")) or page.variant
            discounted = mapping(rate.get("discountedRate"))
            amount = number(discounted.get("price"))
            usd = to_usd(amount, text(discounted.get("currency")) or "USD", rates) if amount is not None else None
            if usd is None or not region:
                book.skip("Savings Plan rate without a price in USD or without a region")
                continue
            book.add(
                accelerator=row.accelerator, provider="aws", instance_type=f"{usage.group(1)} ({label})", region=region,
                term=RESERVED_TERMS[int(years)], usd_per_instance_hr=usd, chips=int(row.chips), reference=page.name,
                as_of=as_of,
            )  # fmt: skip


def walk_members(document: str, name: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Members of a bulk offer file one after the other, so that only one of them is in memory as objects.

    Args:
        document: JSON text.
        name: For messages.

    Yields:
        Path and value of each member below `products` and `terms`, and of the scalars at the top.

    Raises:
        PriceSourceError: The text ends early or is not JSON.
    """
    decoder = json.JSONDecoder()

    def space(at: int) -> int:
        match = _SPACE.match(document, at)
        return match.end() if match else at

    def members(at: int, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, int]]:
        at = space(at + 1)
        if document[at : at + 1] == "}":
            yield path, None, at + 1
            return
        while True:
            key, at = decoder.raw_decode(document, at)
            at = space(at)
            if document[at : at + 1] != ":":
                raise ValueError("a colon is missing")
            at = space(at + 1)
            below = (*path, str(key))
            if below in _OPENED and document[at : at + 1] == "{":
                for inner, value, end in members(at, below):
                    at = end
                    if inner != below:
                        yield inner, value, at
            else:
                value, at = decoder.raw_decode(document, at)
                yield below, value, at
            at = space(at)
            mark = document[at : at + 1]
            at = space(at + 1)
            if mark == "}":
                # The object itself, so that the caller knows where it ends.
                yield path, None, at
                return
            if mark != ",":
                raise ValueError("a comma is missing")

    try:
        start = space(0)
        if document[start : start + 1] != "{":
            raise ValueError("no object")
        for path, value, _ in members(start, ()):
            if path:
                yield path, value
    except ValueError as error:
        raise PriceSourceError(f"{name} is not a whole offer file: {error}") from error
