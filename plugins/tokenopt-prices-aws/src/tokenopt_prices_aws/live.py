"""Where AWS prices come from, and which files are recognised as theirs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from tokenopt.errors import PriceSourceError
from tokenopt.prices.sources import Unchanged, items, load_json, mapping, text
from tokenopt.records import FileShape, PageFetcher, PricePage, PriceSource
from tokenopt_prices_aws.files import parse_instances, parse_neuron
from tokenopt_prices_aws.price_list import instance_table, parse

URL_VARIABLE = "TOKENOPT_AWS_PRICES_URL"
REGIONS_VARIABLE = "TOKENOPT_AWS_REGIONS"
DEFAULT_URL = "https://pricing.us-east-1.amazonaws.com"
DEFAULT_REGIONS = "us-east-1,us-east-2,us-west-2"
"""An offer file is some hundred MB a region; `TOKENOPT_AWS_REGIONS` names others, `all` for every one."""

_OFFER = "/offers/v1.0/aws/AmazonEC2/current/region_index.json"
_SAVINGS = "/savingsPlan/v1.0/aws/AWSComputeSavingsPlan/current/region_index.json"
MAX_PAGES = 200


def fetch_bulk(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:
    """Offer files of the wanted regions, by way of the region index.

    Raises:
        Unchanged: The index is no newer than what is stored.
        PriceSourceError: A wanted region is not in the index.
    """
    base = os.environ.get(URL_VARIABLE, DEFAULT_URL).rstrip("/")
    index = mapping(load_json(client.get(base + _OFFER)))
    _stop_if_known(text(index.get("publicationDate")), since)
    regions = mapping(index.get("regions"))
    for region in _wanted(regions):
        address = text(mapping(regions[region]).get("currentVersionUrl"))
        yield client.get(_joined(base, address), variant=region)


def fetch_savings(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:
    """Compute Savings Plan files of the wanted regions; their index is a list.

    Raises:
        Unchanged: The index is no newer than what is stored.
        PriceSourceError: A wanted region is not in the index.
    """
    base = os.environ.get(URL_VARIABLE, DEFAULT_URL).rstrip("/")
    index = mapping(load_json(client.get(base + _SAVINGS)))
    _stop_if_known(text(index.get("publicationDate")), since)
    regions = {text(mapping(entry).get("regionCode")): mapping(entry) for entry in items(index.get("regions"))}
    for region in _wanted(regions):
        yield client.get(_joined(base, text(regions[region].get("versionUrl"))), variant=region)


def fetch_query(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """Query API answers for each instance type of the table, through boto3.

    Raises:
        PriceSourceError: boto3 is not installed, or AWS refuses.
    """
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError as error:
        raise PriceSourceError("aws-query needs boto3: pip install 'tokenopt-prices-aws[query]'") from error
    endpoint = os.environ.get("TOKENOPT_AWS_QUERY_URL")
    try:
        pricing = boto3.client("pricing", region_name="us-east-1", **({"endpoint_url": endpoint} if endpoint else {}))
        for row in instance_table():
            name = row.columns["instance_type"]
            filters = [
                {"Type": "TERM_MATCH", "Field": field, "Value": value}
                for field, value in (("instanceType", name), ("operatingSystem", "Linux"), ("tenancy", "Shared"))
            ]
            token: dict[str, str] = {}
            for _ in range(MAX_PAGES):
                answer = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters, MaxResults=100, **token)
                entries = answer.get("PriceList") or []
                yield PricePage(f"aws-query:{name}", json.dumps({"PriceList": entries}).encode())
                if not answer.get("NextToken"):
                    break
                token = {"NextToken": answer["NextToken"]}
    except PriceSourceError:
        raise
    except Exception as error:
        # boto3's errors have no common base without importing botocore; each says what AWS answered.
        raise PriceSourceError(f"aws-query: {type(error).__name__}: {error}") from error


def has_credentials() -> bool:
    """Whether boto3 is installed and would find credentials."""
    if importlib.util.find_spec("boto3") is None:
        return False
    files = [Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()]
    return any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE")) or any(
        file.exists() for file in files
    )


def _wanted(regions: Iterable[str]) -> list[str]:
    there = set(regions)
    names = [name.strip() for name in os.environ.get(REGIONS_VARIABLE, DEFAULT_REGIONS).split(",") if name.strip()]
    if names == ["all"]:
        return sorted(there)
    missing = [name for name in names if name not in there]
    if missing:
        raise PriceSourceError(
            f"{REGIONS_VARIABLE} names {', '.join(missing)}, which AWS does not list; it lists {', '.join(sorted(there))}"
        )
    return names


def _joined(base: str, address: str) -> str:
    if not address:
        raise PriceSourceError("the region index of AWS names no file for a region")
    return address if address.startswith(("http://", "https://")) else base + address


def _stop_if_known(published: str, since: datetime | None) -> None:
    if since is None or not published:
        return
    try:
        moment = datetime.fromisoformat(published)
    except ValueError:
        return
    if moment.tzinfo is not None and moment <= since:
        raise Unchanged


def _is_price_list(shape: FileShape) -> bool:
    names = shape.names
    return shape.kind == "json" and (
        {"products", "terms"} <= names
        or "PriceList" in names
        or {"product", "terms"} <= names
        or {"product", "attributes", "serviceCode"} <= names
        or {"terms", "savingsPlan"} <= names
    )


def _is_instances(shape: FileShape) -> bool:
    return shape.kind == "json" and {"instance_type", "pricing", "pretty_name"} <= shape.names


def _is_neuron(shape: FileShape) -> bool:
    return shape.kind == "csv" and {"Inst. Type", "RI-Effective hourly rate"} <= shape.names


def _never(shape: FileShape) -> bool:  # noqa: ARG001
    return False


SOURCES = (
    PriceSource("aws", "AWS Price List, bulk offer files by region", parse, _is_price_list, fetch_bulk),
    PriceSource(
        "aws-query",
        "AWS Price List Query API",
        parse,
        _never,
        fetch_query,
        "boto3 and AWS credentials",
        has_credentials,
    ),
    PriceSource("aws-savings", "AWS Compute Savings Plans", parse, _never, fetch_savings),
    PriceSource("ec2instances", "instance records of ec2instances.info (files)", parse_instances, _is_instances),
    PriceSource("neuron", "price table of the Neuron documentation (files)", parse_neuron, _is_neuron),
)
