"""Parsing of two kinds of file about EC2 prices: instance records of ec2instances.info and Neuron's price table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenopt.prices.sources import RESERVED_TERMS, OfferBook, csv_rows, load_json, mapping, number, text
from tokenopt.records import ParsedPrices, PricePage
from tokenopt_prices_aws.price_list import instance_table

_RESERVED_KEY = re.compile(r"yrTerm([13])(Standard|Convertible|Savings)\.(\w+)")
_PURCHASE = {"noUpfront": "No Upfront", "partialUpfront": "Partial Upfront", "allUpfront": "All Upfront"}


def parse_instances(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers in instance records of ec2instances.info: `pricing.<region>.linux`, strings in USD per instance-hour.

    Reserved figures there already hold the upfront fee spread over the term.
    """
    book = OfferBook("third-party")
    for page in pages:
        document = load_json(page)
        for record in document if isinstance(document, list) else [document]:
            _instance(mapping(record), page.name, book)
    return book.result()


def _instance(record: Mapping[str, Any], name: str, book: OfferBook) -> None:
    instance_type = text(record.get("instance_type"))
    row = instance_table().find(instance_type)
    if row is None:
        gpus = number(record.get("GPU"))
        book.skip(f"accelerator not in the table: {instance_type}" if gpus else "no accelerator")
        return
    if row.chips < 1:
        book.skip("a fraction of an accelerator")
        return
    for region, systems in mapping(record.get("pricing")).items():
        for system, prices in mapping(systems).items():
            if system != "linux":
                book.skip(f"operating system or service {system}")
                continue
            prices = mapping(prices)
            rows: list[tuple[str, Any, Any]] = [("on-demand", instance_type, prices.get("ondemand"))]
            rows.append(("spot", instance_type, prices.get("spot_avg") or prices.get("spot_max")))
            for key, value in mapping(prices.get("reserved")).items():
                match = _RESERVED_KEY.fullmatch(key)
                if match is None:
                    book.skip("reserved price of an unknown kind")
                    continue
                kind = "savings plan" if match.group(2) == "Savings" else match.group(2).lower()
                label = f"{instance_type} ({_PURCHASE.get(match.group(3), match.group(3))}, {kind})"
                rows.append((RESERVED_TERMS[int(match.group(1))], label, value))
            for term, label, value in rows:
                usd = number(value)
                if usd is None:
                    book.skip(f"no {term} price")
                    continue
                book.add(
                    accelerator=row.accelerator, provider="aws", instance_type=label, region=region,
                    term=term,  # type: ignore[arg-type]
                    usd_per_instance_hr=usd, chips=int(row.chips), reference=name,
                )  # fmt: skip


def parse_neuron(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers in the Neuron documentation's price table: instance type and "RI-Effective" USD per instance-hour.

    The rates are those of a reserved instance, not on-demand; the length of the reservation is not in the file, so the
    offers are marked.
    """
    book = OfferBook("third-party")
    for page in pages:
        for fields, _ in csv_rows(page):
            instance_type = text(fields.get("Inst. Type")).lower()
            usd = number(fields.get("RI-Effective hourly rate"))
            row = instance_table().find(instance_type)
            if row is None or usd is None:
                book.skip("no accelerator" if row is None else "price is not a number")
                continue
            book.add(
                accelerator=row.accelerator, provider="aws", instance_type=f"{instance_type} (RI-Effective)", region="",
                term="reserved-3y", usd_per_instance_hr=usd, chips=int(row.chips), reference=page.name,
                suspect="reserved-instance rate whose length and region the table does not give; taken as three years",
            )  # fmt: skip
    return book.result()
