"""Lambda's instance-types answer. Prices are in cents per instance-hour; a type without a region is sold out, not free."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.sources import OfferBook, items, load_json, mapping, number, text
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource

URL_VARIABLE = "TOKENOPT_LAMBDA_URL"
KEY_VARIABLE = "LAMBDA_API_KEY"
DEFAULT_URL = "https://cloud.lambdalabs.com/api/v1/instance-types"
CENTS_PER_USD = 100

_NAME = re.compile(r"gpu_(\d+)x_(\w+)")


@cache
def _instances() -> tuple[tuple[re.Pattern[str], str], ...]:
    with (Path(__file__).parent / "lambda_instances.csv").open(encoding="utf-8", newline="") as file:
        return tuple((re.compile(row["instance_type"]), row["accelerator"]) for row in csv.DictReader(file))


def accelerator_of(instance_type: str) -> tuple[str, int] | None:
    """Accelerator key and chips of an instance type such as `gpu_8x_h100_sxm5`; None where the table has none."""
    match = _NAME.fullmatch(instance_type)
    if match is None:
        return None
    chips = int(match.group(1))
    if match.group(2) == "a100" and chips == 8:
        # Eight A100 are the SXM node; one, two and four are PCIe cards.
        return "a100-sxm-40", chips
    for pattern, key in _instances():
        if pattern.fullmatch(match.group(2)):
            return key, chips
    return None


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers per region that has capacity.

    Raises:
        PriceSourceError: A page is not whole JSON.
    """
    book = OfferBook("vendor-datasheet")
    for page in pages:
        for name, entry in mapping(mapping(load_json(page)).get("data")).items():
            _entry(name, mapping(entry), page.name, book)
    return book.result()


def _entry(name: str, entry: Mapping[str, Any], reference: str, book: OfferBook) -> None:
    instance = mapping(entry.get("instance_type"))
    instance_type = text(instance.get("name")) or name
    if not instance_type.startswith("gpu_"):
        book.skip("no accelerator")
        return
    found = accelerator_of(instance_type)
    if found is None:
        book.skip(f"accelerator not in the table: {instance_type}")
        return
    accelerator, chips = found
    stated = number(mapping(instance.get("specs")).get("gpus"))
    if stated is not None and stated != chips:
        book.skip("its name and its specification give different numbers of GPUs")
        return
    cents = number(instance.get("price_cents_per_hour"))
    if cents is None:
        book.skip("field price_cents_per_hour is missing")
        return
    regions = [text(mapping(region).get("name")) for region in items(entry.get("regions_with_capacity_available"))]
    if not any(regions):
        book.skip("sold out: no region has capacity")
    for region in filter(None, regions):
        book.add(
            accelerator=accelerator, provider="lambda", instance_type=instance_type, region=region, term="on-demand",
            usd_per_instance_hr=cents / CENTS_PER_USD, chips=chips, reference=reference,
        )  # fmt: skip


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """The one page of instance types.

    Raises:
        PriceSourceError: There is no key.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise PriceSourceError(f"Lambda needs an API key: set {KEY_VARIABLE}")
    yield client.get(os.environ.get(URL_VARIABLE, DEFAULT_URL), headers={"Authorization": f"Bearer {key}"})


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "json" and {"data", "price_cents_per_hour"} <= shape.names


SOURCE = PriceSource(
    "lambda", "Lambda instance types", parse, _recognises, fetch, f"an API key in {KEY_VARIABLE}",
    lambda: bool(os.environ.get(KEY_VARIABLE)),
)  # fmt: skip
