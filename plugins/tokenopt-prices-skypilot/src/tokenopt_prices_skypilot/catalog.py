"""SkyPilot's catalogue files (`vms.csv` of each cloud): parsing and fetching.

Traps handled: the order of columns differs by cloud; Google's GPU rows price the accelerator without its host, which has
a row of its own; one row per availability zone; an empty spot price is none; TPU rows are whole slices with a count
of 1, some at a placeholder price; rows of the Azure file have one field more than the header; GpuInfo is a Python
literal or a bare name; counts below one are parts of a card.
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.errors import PriceSourceError
from tokenopt.prices.names import Chip, chip_by_name, chip_of_slice
from tokenopt.prices.sources import OfferBook, csv_rows, items, mapping, number, text
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource, Term

URL_VARIABLE = "TOKENOPT_SKYPILOT_URL"
CLOUDS_VARIABLE = "TOKENOPT_SKYPILOT_CLOUDS"
DEFAULT_URL = "https://raw.githubusercontent.com/skypilot-org/skypilot-catalog/master/catalogs/v8"
DEFAULT_CLOUDS = "aws,azure,gcp,lambda,oci,nebius,runpod"
KNOWN_CLOUDS = frozenset(
    [
        "aws",
        "azure",
        "cudo",
        "daytona",
        "do",
        "fluidstack",
        "gcp",
        "hyperbolic",
        "hyperstack",
        "ibm",
        "jarvislabs",
        "lambda",
        "lium",
        "mithril",
        "nebius",
        "oci",
        "ovhcloud",
        "paperspace",
        "primeintellect",
        "runpod",
        "scaleway",
        "scp",
        "seeweb",
        "shadeform",
        "simplepod",
        "spheron",
        "vast",
        "verda",
        "vsphere",
        "yotta",
    ]
)
TPU_PLACEHOLDER_USD = 700.0
MIB_PER_GIB = 1024
_NEEDED = ("AcceleratorName", "AcceleratorCount", "Price", "Region")
_MARKETPLACES = frozenset({"vast", "vast.ai"})


@dataclass(frozen=True, slots=True)
class _Cloud:
    name: str
    pattern: re.Pattern[str]
    form: str


@dataclass(frozen=True, slots=True)
class _Tables:
    clouds: tuple[_Cloud, ...]
    instances: tuple[tuple[re.Pattern[str], str], ...]
    fractions: tuple[re.Pattern[str], ...]
    machines: Mapping[tuple[str, int], str]
    memory_gb: Mapping[str, float]
    providers: Mapping[str, str]
    regionless: frozenset[str]


@cache
def _tables() -> _Tables:
    with (Path(__file__).parent / "clouds.toml").open("rb") as file:
        data = tomllib.load(file)
    return _Tables(
        tuple(_Cloud(row["name"], re.compile(row["instance_type"]), row.get("form", "")) for row in data["cloud"]),
        tuple((re.compile(row["pattern"]), row["accelerator"]) for row in data["instance"]),
        tuple(re.compile(pattern) for pattern in data["fractions"]["patterns"]),
        {
            (row["accelerator"], int(count)): machine
            for row in data["machine"]
            for count, machine in row["counts"].items()
        },
        data["memory_gb"],
        data["providers"],
        frozenset(data["regionless"]["clouds"]),
    )


@dataclass(slots=True)
class _Row:
    """One row with what the parser reads of it."""

    instance_type: str
    accelerator: str
    count: float | None
    info: str
    region: str
    zone: str
    usd: float | None
    spot_usd: float | None


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers in catalogue files.

    Args:
        pages: Files; `variant` names the cloud, otherwise its rows or the file's name tell it. Files of Google's hosts
            and accelerators are joined when they come together.
        rates: Not needed, the catalogue is in USD.

    Returns:
        Offers per region, spot offers per zone.

    Raises:
        PriceSourceError: A file is no table with prices, or nothing tells which cloud it is of.
    """
    book = OfferBook("third-party")
    google: list[tuple[str, _Row]] = []
    for page in pages:
        rows = list(_rows(page, book))
        if not rows:
            continue
        cloud = page.variant or _cloud_of(rows, page.name)
        for row in rows:
            if cloud == "gcp":
                google.append((page.name, row))
            else:
                _take(row, cloud, page.name, book)
    _join(google, book)
    return book.result()


def _rows(page: PricePage, book: OfferBook) -> Iterator[_Row]:
    for fields, surplus in csv_rows(page):
        missing = [name for name in _NEEDED if name not in fields]
        if missing:
            if {"AcceleratorName", "Providers"} <= set(fields):
                raise PriceSourceError(
                    f"{page.name} lists which provider sells which accelerator and holds no price; import the provider's vms.csv"
                )
            book.skip(f"field {missing[0]} is missing")
            continue
        if surplus and next(reversed(fields)) != "Generation":
            # "V1,V2" without quotes spills over the last column; anywhere else the columns would be shifted.
            book.skip("more fields than the header has")
            continue
        yield _Row(
            text(fields.get("InstanceType")), text(fields["AcceleratorName"]), number(fields["AcceleratorCount"]),
            text(fields.get("GpuInfo")), text(fields["Region"]), text(fields.get("AvailabilityZone")),
            number(fields["Price"]), number(fields.get("SpotPrice")),
        )  # fmt: skip


def _cloud_of(rows: Sequence[_Row], name: str) -> str:
    votes: Counter[str] = Counter()
    for row in rows:
        if not row.instance_type or row.instance_type == "TPU-VM":
            votes["gcp"] += bool(row.accelerator)
            continue
        for cloud in _tables().clouds:
            if cloud.pattern.fullmatch(row.instance_type):
                votes[cloud.name] += 1
                break
    if votes:
        cloud, count = votes.most_common(1)[0]
        if count * 2 > len(rows):
            return cloud
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in KNOWN_CLOUDS]
    if words:
        return words[-1]
    raise PriceSourceError(
        f"nothing in {name} tells which cloud it is of: name the file after it (CLOUD-vms.csv) or say --provider CLOUD"
    )


def _take(row: _Row, cloud: str, name: str, book: OfferBook) -> None:
    chip = _chip(row, cloud, book)
    if chip is None or row.count is None:
        return
    tables = _tables()
    provider = tables.providers.get(cloud, cloud)
    note = ""
    if cloud in tables.regionless:
        row = replace(row, region="", zone="")
        note = "the catalogue lists every type in every region, so no region is claimed"
    is_market = cloud in _MARKETPLACES or row.instance_type.endswith("_COMMUNITY")
    _add(
        book, chip, provider, row.instance_type or row.accelerator, row, int(row.count), row.usd, row.spot_usd, name,
        term="marketplace" if is_market else "on-demand", note=note,
    )  # fmt: skip


def _chip(row: _Row, cloud: str, book: OfferBook) -> Chip | None:
    """The accelerator of a row, None (and counted) where there is none to price."""
    if not row.accelerator or not row.count:
        book.skip("no accelerator")
        return None
    tables = _tables()
    if row.count != int(row.count) or any(pattern.fullmatch(row.instance_type) for pattern in tables.fractions):
        book.skip("a fraction of an accelerator")
        return None
    if not row.region:
        book.skip("field Region is missing")
        return None
    for pattern, key in tables.instances:
        if pattern.fullmatch(row.instance_type):
            return Chip(key)
    info_name, memory_gb = _info(row.info)
    memory_gb = memory_gb or tables.memory_gb.get(row.accelerator)
    chip = chip_by_name(row.accelerator, memory_gb, hint=f"{row.instance_type} {info_name}")
    form = next((known.form for known in tables.clouds if known.name == cloud), "")
    if chip is not None and chip.doubt and form:
        chip = chip_by_name(row.accelerator, memory_gb, hint=form)
    if chip is None:
        book.skip(f"accelerator not in the table: {row.accelerator}")
    return chip


def _info(info: str) -> tuple[str, float | None]:
    """Name and memory (GB) of one GPU in a GpuInfo field: a Python literal, or a bare name."""
    if not info.startswith("{"):
        return info, None
    try:
        document: Any = ast.literal_eval(info) if len(info) <= 4096 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "", None
    gpu = mapping(next(iter(items(mapping(document).get("Gpus"))), None))
    size = number(mapping(gpu.get("MemoryInfo")).get("SizeInMiB"))
    if size is None:
        return text(gpu.get("Name")), None
    # Some files write GB into the field of MiB.
    return text(gpu.get("Name")), size / MIB_PER_GIB if size >= MIB_PER_GIB else size


def _add(
    book: OfferBook, chip: Chip, provider: str, instance_type: str, row: _Row, chips: int, usd: float | None,
    spot_usd: float | None, name: str, *, term: Term = "on-demand", suspect: str = "", note: str = "",
) -> None:  # fmt: skip
    if usd is None and spot_usd is None:
        book.skip("no price")
        return
    doubt = "; ".join(filter(None, (suspect, chip.doubt)))
    if usd is not None:
        book.add(
            accelerator=chip.key, provider=provider, instance_type=instance_type, region=row.region, term=term,
            usd_per_instance_hr=usd, chips=chips, reference=name, suspect=doubt, note=note,
        )  # fmt: skip
    if spot_usd is not None and spot_usd != usd:
        zone = f"{row.region}/{row.zone}" if row.zone and row.zone != row.region else row.region
        book.add(
            accelerator=chip.key, provider=provider, instance_type=instance_type, region=zone, term="spot",
            usd_per_instance_hr=spot_usd, chips=chips, reference=name, suspect=doubt, note=note,
        )  # fmt: skip
    elif spot_usd is not None:
        book.skip("spot price equal to the other price: no market for it was seen")


def _join(rows: Sequence[tuple[str, _Row]], book: OfferBook) -> None:
    """Google's rows: TPU slices, accelerators, and the hosts they need."""
    hosts = {(row.instance_type, row.zone): row for _, row in rows if not row.accelerator}
    used: set[str] = set()
    for name, row in rows:
        if not row.accelerator:
            continue
        slice_ = chip_of_slice(row.accelerator) if row.accelerator.lower().startswith("tpu") else None
        if slice_ is not None:
            if TPU_PLACEHOLDER_USD in (row.usd, row.spot_usd):
                book.skip("TPU slice at the placeholder price")
                continue
            key, chips = slice_
            _add(book, Chip(key), "gcp", row.accelerator, row, chips, row.usd, row.spot_usd, name)
            continue
        chip = _chip(row, "gcp", book)
        if chip is None or row.count is None:
            continue
        chips = int(row.count)
        machine = row.instance_type or _tables().machines.get((row.accelerator, chips), "")
        host = hosts.get((machine, row.zone)) if machine else None
        if host is not None:
            used.add(machine)
            usd = row.usd + host.usd if row.usd is not None and host.usd is not None else None
            spot = row.spot_usd + host.spot_usd if row.spot_usd is not None and host.spot_usd is not None else None
            _add(book, chip, "gcp", machine, row, chips, usd, spot, name, note="accelerators and host machine summed")
        elif row.instance_type:
            _add(book, chip, "gcp", machine, row, chips, row.usd, row.spot_usd, name)
        elif machine and hosts:
            book.skip(f"no row of its host {machine} in the same zone")
        else:
            _add(
                book, chip, "gcp", f"{chips}x {row.accelerator} without host", row, chips, row.usd, row.spot_usd, name,
                suspect="price of the accelerators alone, their host is sold apart"
                + (f": import the catalogue's host rows ({machine}) together with this file" if machine else ""),
            )  # fmt: skip
    spare = sum(1 for _, row in rows if not row.accelerator and row.instance_type not in used)
    if spare:
        book.skip("machine without accelerator, or host row whose accelerator rows are not in the file", spare)


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """The catalogue file of each wanted cloud; no account is needed."""
    base = os.environ.get(URL_VARIABLE, DEFAULT_URL).rstrip("/")
    for cloud in os.environ.get(CLOUDS_VARIABLE, DEFAULT_CLOUDS).split(","):
        if cloud.strip():
            yield client.get(f"{base}/{cloud.strip()}/vms.csv", expects="csv", variant=cloud.strip())


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "csv" and (
        {"InstanceType", "AcceleratorName", "AcceleratorCount", "Price"} <= shape.names
        or {"AcceleratorName", "Providers"} <= shape.names
    )


SOURCES = (PriceSource("skypilot", "SkyPilot catalogue of several clouds", parse, _recognises, fetch),)
