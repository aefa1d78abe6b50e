"""What price sources share: reading fields that may not be there, and collecting offers with reasons for the rest.

Part of what plugins may import.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from tokenopt.catalog.plain import plain_record
from tokenopt.errors import PriceSourceError
from tokenopt.records import Confidence, Offer, ParsedPrices, PricePage, Source, Term

HOURS_PER_YEAR = 8760
"""Hours that providers count in a year of commitment (365 days)."""
HOURS_PER_MONTH = 730
"""Hours that providers count in a month where they price by the month."""

RESERVED_TERMS: Mapping[int, Term] = {1: "reserved-1y", 3: "reserved-3y"}

_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class Unchanged(Exception):
    """Raised by a source's `fetch` when nothing is new since the last time; not an error."""


class OfferBook:
    """Offers as they are read, one per thing that is sold, with the rows left out counted by reason."""

    def __init__(self, confidence: Confidence) -> None:
        self._confidence: Confidence = confidence
        self._offers: dict[tuple[Any, ...], Offer] = {}
        self._sources: dict[tuple[str, str, str], Source] = {}
        self.skipped: Counter[str] = Counter()

    def skip(self, reason: str, rows: int = 1) -> None:
        """Counts rows left out."""
        self.skipped[reason] += rows

    def add(
        self,
        *,
        accelerator: str,
        provider: str,
        instance_type: str,
        region: str,
        term: Term,
        usd_per_instance_hr: float,
        chips: int,
        reference: str,
        as_of: str = "",
        note: str = "",
        suspect: str = "",
        minimum_instances: int = 1,
        fabric_chips: int | None = None,
        upfront_usd_per_instance: float = 0.0,
        egress_usd_per_gb: float | None = None,
        storage_usd_per_gb_month: float | None = None,
    ) -> None:
        """Takes one row. A price that is no price is counted as skipped.

        Of two prices for the same thing the higher is kept: a buyer is never quoted less than the list may charge.
        """
        if not math.isfinite(usd_per_instance_hr) or usd_per_instance_hr < 0:
            self.skip("price is not a number")
            return
        if usd_per_instance_hr == 0:
            self.skip("price is 0: a placeholder, nothing is free")
            return
        if chips < 1:
            self.skip("no accelerator in it")
            return
        source_key = (reference, as_of, note)
        source = self._sources.get(source_key)
        if source is None:
            source = self._sources[source_key] = Source(reference, self._confidence, as_of=as_of, note=note)
        offer = Offer(
            accelerator=accelerator,
            provider=provider,
            instance_type=instance_type,
            region=region,
            term=term,
            usd_per_chip_hr=usd_per_instance_hr / chips,
            chips_per_instance=chips,
            as_of=as_of,
            source=source,
            suspect=suspect,
            minimum_instances=minimum_instances,
            fabric_chips=fabric_chips,
            upfront_usd_per_chip=upfront_usd_per_instance / chips,
            egress_usd_per_gb=egress_usd_per_gb,
            storage_usd_per_gb_month=storage_usd_per_gb_month,
        )
        identity = (accelerator, provider, instance_type, region, term, minimum_instances)
        known = self._offers.get(identity)
        if known is None:
            self._offers[identity] = offer
        elif math.isclose(known.usd_per_chip_hr, offer.usd_per_chip_hr, rel_tol=1e-9):
            self.skip("the same price again")
            if known.suspect and not offer.suspect:
                self._offers[identity] = offer
        else:
            self.skip("another price for the same offer, the higher is kept")
            if (bool(offer.suspect), -offer.usd_per_chip_hr) < (bool(known.suspect), -known.usd_per_chip_hr):
                self._offers[identity] = offer

    def result(self) -> ParsedPrices:
        """What was read."""
        return ParsedPrices(tuple(self._offers.values()), self.skipped)


def offer_defect(offer: object) -> str:
    """Why a record that a source handed over is not a usable offer; empty when it is."""
    if not isinstance(offer, Offer):
        return f"a {type(offer).__name__} instead of an offer"
    texts = (offer.accelerator, offer.provider, offer.instance_type, offer.region, offer.as_of, offer.suspect)
    if not all(isinstance(value, str) for value in texts) or not offer.accelerator or not offer.provider:
        return "an offer whose names are not text, or empty"
    if offer.term not in get_args(Term):
        return f"an offer with the unknown term {offer.term!r}"
    numbers = [offer.usd_per_chip_hr, offer.upfront_usd_per_chip]
    numbers += [value for value in (offer.egress_usd_per_gb, offer.storage_usd_per_gb_month) if value is not None]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in numbers):
        return "an offer with a price that is not a finite number"
    if offer.usd_per_chip_hr <= 0:
        return "an offer at a price of 0"
    counts = [offer.chips_per_instance, offer.minimum_instances]
    counts += [offer.fabric_chips] if offer.fabric_chips is not None else []
    if not all(isinstance(value, int) and 1 <= value < 2**31 for value in counts):
        return "an offer whose counts are not whole numbers above 0"
    if not isinstance(offer.source, Source) or not offer.source.reference:
        return "an offer without a source"
    return ""


def usable(parsed: ParsedPrices) -> ParsedPrices:
    """The offers that the store can take; the others are counted."""
    skipped = Counter(parsed.skipped)
    kept: list[Offer] = []
    for offer in parsed.offers:
        defect = offer_defect(offer)
        if defect:
            skipped[f"the source made {defect}"] += 1
            continue
        try:
            kept.append(plain_record(offer))
        except ValueError as error:
            skipped[f"the source made an offer whose {error}"] += 1
    return ParsedPrices(tuple(kept), skipped)


def reasons(skipped: Mapping[str, int], most: int = 3) -> str:
    """The most frequent reasons in one line."""
    rows = Counter(skipped).most_common()
    shown = "; ".join(f"{count:,} x {reason}" for reason, count in rows[:most])
    return f"{shown}; and {len(rows) - most} more reasons" if len(rows) > most else shown


def load_json(page: PricePage) -> Any:
    """The JSON document of a page.

    Raises:
        PriceSourceError: It is not JSON, or cut short.
    """
    try:
        return json.loads(page.content)
    except (UnicodeDecodeError, ValueError) as error:
        raise PriceSourceError(f"{page.name} is not whole JSON: {error}") from error


def csv_rows(page: PricePage) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Rows by column name, each with the fields beyond the header.

    Raises:
        PriceSourceError: It is not UTF-8 text with a header.
    """
    try:
        text = page.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PriceSourceError(f"{page.name} is not UTF-8 text: {error}") from error
    reader = csv.reader(io.StringIO(text))
    header = next(reader, None)
    if not header:
        raise PriceSourceError(f"{page.name} has no header row")
    names = [name.strip() for name in header]
    for fields in reader:
        if fields:
            yield dict(zip(names, fields, strict=False)), fields[len(names) :]


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object, else an empty one: a missing branch is a missing field."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """`value` if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """`value` if it is text, without spaces around it, else nothing."""
    return value.strip() if isinstance(value, str) else ""


def number(value: Any) -> float | None:
    """`value` as a finite number, also when it is written as text; None when it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def whole(value: Any) -> int | None:
    """`value` as a whole number, None when it is not one."""
    parsed = number(value)
    return int(parsed) if parsed is not None and parsed == int(parsed) else None


def iso_date(value: Any) -> str:
    """The date at the start of a time stamp, empty where there is none."""
    match = _ISO_DATE.match(text(value))
    return match.group() if match else ""


def concatenated(parts: Iterable[ParsedPrices]) -> ParsedPrices:
    """Several results as one."""
    offers: list[Offer] = []
    skipped: Counter[str] = Counter()
    for part in parts:
        offers.extend(part.offers)
        skipped.update(part.skipped)
    return ParsedPrices(tuple(offers), skipped)
