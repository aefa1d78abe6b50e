"""gpuhunt's catalogue (CSV per provider, published as archives), and gpuhunt itself where it is installed.

Prices are USD per instance-hour. The provider is not a column: it is the file's name.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path, PurePath

from tokenopt.errors import PriceSourceError
from tokenopt.prices.names import Chip, chip_by_name, chip_of_slice
from tokenopt.prices.sources import OfferBook, csv_rows, number, text, whole
from tokenopt.records import FileShape, PageFetcher, ParsedPrices, PricePage, PriceSource, Term

URL_VARIABLE = "TOKENOPT_GPUHUNT_URL"
PROVIDERS_VARIABLE = "TOKENOPT_GPUHUNT_PROVIDERS"
DEFAULT_URL = "https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3"
DEFAULT_PROVIDERS = "aws,azure,gcp,lambdalabs,nebius,oci,runpod,verda"
ONLINE_PROVIDERS = ("hotaisle", "vastai", "vultr")
"""Providers that gpuhunt asks live. Crusoe is left out: its prices are written into gpuhunt's code by hand."""
KNOWN_PROVIDERS = frozenset(
    [
        "aws",
        "azure",
        "cloudrift",
        "crusoe",
        "cudo",
        "datacrunch",
        "digitalocean",
        "gcp",
        "hotaisle",
        "jarvislabs",
        "lambdalabs",
        "nebius",
        "oci",
        "runpod",
        "seeweb",
        "tensordock",
        "vastai",
        "verda",
        "vultr",
    ]
)
MAX_UNPACKED_BYTES = 512 * 1024**2
COLUMNS = (
    "instance_name", "location", "price", "cpu", "memory", "gpu_count", "gpu_name", "gpu_memory", "spot", "disk_size",
    "gpu_vendor", "flags", "cpu_arch", "provider_data",
)  # fmt: skip

_PROVIDER_NAMES = {"lambdalabs": "lambda", "vastai": "vast.ai", "datacrunch": "verda"}
_MARKETPLACES = frozenset({"vast.ai", "tensordock"})
_VERSION = re.compile(r"[\w.\-]{1,64}")


@cache
def _instances() -> tuple[tuple[str, re.Pattern[str], str], ...]:
    with (Path(__file__).parent / "instances.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            (row["provider"], re.compile(row["instance_type"]), row["accelerator"]) for row in csv.DictReader(file)
        )


def parse(pages: Sequence[PricePage], rates: Mapping[str, float]) -> ParsedPrices:  # noqa: ARG001
    """Offers in gpuhunt CSV files or the archives that hold them.

    Args:
        pages: Files; `variant` names the provider, otherwise the file's name does.
        rates: Not needed, the catalogue is in USD.

    Returns:
        On-demand, spot and marketplace offers per location.

    Raises:
        PriceSourceError: An archive is damaged, or nothing names the provider.
    """
    book = OfferBook("third-party")
    for page in pages:
        for table in _unpacked(page):
            named = table.variant
            for fields, _ in csv_rows(table):
                # gpuhunt's own files have no such column; tables made from its answers do.
                provider = table.variant or text(fields.get("provider")).lower()
                if not provider:
                    provider = named = named or _provider_of(table.name)
                _row(fields, provider, page.name, book)
    return book.result()


def _unpacked(page: PricePage) -> Iterator[PricePage]:
    if not page.content.startswith(b"PK\x03\x04"):
        yield page
        return
    try:
        with zipfile.ZipFile(io.BytesIO(page.content)) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".csv"):
                    continue
                if entry.file_size > MAX_UNPACKED_BYTES:
                    raise PriceSourceError(
                        f"{entry.filename} in {page.name} is longer than {MAX_UNPACKED_BYTES:,} bytes"
                    )
                yield PricePage(entry.filename, archive.read(entry), page.variant)
    except zipfile.BadZipFile as error:
        raise PriceSourceError(f"{page.name} is not a whole archive: {error}") from error


def _provider_of(name: str) -> str:
    stem = PurePath(name).stem.lower()
    words = [word for word in re.split(r"[^a-z]+", stem) if word in KNOWN_PROVIDERS]
    if not words:
        raise PriceSourceError(
            f"nothing tells whose prices {name} holds: name it PROVIDER.csv or say --provider PROVIDER"
        )
    return words[-1]


def _row(fields: Mapping[str, str], provider: str, reference: str, book: OfferBook) -> None:
    missing = [name for name in ("instance_name", "price", "gpu_count", "gpu_name", "spot") if name not in fields]
    if missing:
        book.skip(f"field {missing[0]} is missing")
        return
    name = text(fields["gpu_name"])
    count = whole(fields["gpu_count"])
    usd = number(fields["price"])
    if not name or not count:
        book.skip("no accelerator")
        return
    if usd is None:
        book.skip("no price")
        return
    instance_type = text(fields["instance_name"])
    is_tpu = text(fields.get("gpu_vendor")).lower() == "google" or name.lower().startswith("tpu")
    slice_ = chip_of_slice(name) or chip_of_slice(instance_type) if is_tpu else None
    if slice_ is not None:
        chip: Chip | None = Chip(slice_[0])
        count = slice_[1]
    else:
        chip = _chip(name, number(fields.get("gpu_memory")), provider, instance_type)
    if chip is None:
        book.skip(f"accelerator not in the table: {name}")
        return
    seller = _PROVIDER_NAMES.get(provider, provider)
    is_spot = text(fields["spot"]).lower() in ("true", "1")
    term: Term = "spot" if is_spot else "marketplace" if seller in _MARKETPLACES else "on-demand"
    book.add(
        accelerator=chip.key, provider=seller, instance_type=instance_type, region=text(fields.get("location")), term=term,
        usd_per_instance_hr=usd, chips=count, reference=reference,
        suspect="written into gpuhunt by hand" if provider == "crusoe" else chip.doubt,
    )  # fmt: skip


def _chip(name: str, memory_gb: float | None, provider: str, instance_type: str) -> Chip | None:
    form = ""
    for owner, pattern, meaning in _instances():
        if owner == provider and pattern.fullmatch(instance_type):
            if meaning != "SXM":
                return Chip(meaning)
            form = "sxm"
    return chip_by_name(name, memory_gb, hint=f"{instance_type} {form}")


def fetch(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """The published archive of each wanted provider; no account is needed.

    Raises:
        PriceSourceError: A version file does not hold a version.
    """
    base = os.environ.get(URL_VARIABLE, DEFAULT_URL).rstrip("/")
    for provider in os.environ.get(PROVIDERS_VARIABLE, DEFAULT_PROVIDERS).split(","):
        provider = provider.strip()
        if not provider:
            continue
        answer = client.get(f"{base}/{provider}/version", expects="text")
        version = answer.content.decode("utf-8", "replace").strip()
        if not _VERSION.fullmatch(version):
            raise PriceSourceError(f"{answer.name} does not hold a version")
        yield client.get(f"{base}/{provider}/{version}/catalog.zip", expects="zip", variant=provider)


def fetch_online(client: PageFetcher, since: datetime | None) -> Iterator[PricePage]:  # noqa: ARG001
    """What gpuhunt's live providers answer, as pages of the same columns.

    Raises:
        PriceSourceError: gpuhunt is not installed, or a provider fails.
    """
    try:
        gpuhunt = importlib.import_module("gpuhunt")
    except ImportError as error:
        raise PriceSourceError("gpuhunt-online needs gpuhunt: pip install 'tokenopt-prices-gpuhunt[online]'") from error
    catalog = gpuhunt.Catalog(auto_reload=False)
    for provider in ONLINE_PROVIDERS:
        try:
            found = catalog.query(provider=[provider])
        except Exception as error:
            # Each provider raises what its client library raises.
            raise PriceSourceError(f"gpuhunt could not ask {provider}: {type(error).__name__}: {error}") from error
        rows = io.StringIO()
        writer = csv.writer(rows)
        writer.writerow(COLUMNS)
        for item in found:
            writer.writerow([getattr(item, column, "") for column in COLUMNS])
        yield PricePage(f"gpuhunt:{provider}", rows.getvalue().encode(), provider)


def _recognises(shape: FileShape) -> bool:
    return shape.kind == "csv" and {"instance_name", "location", "price", "gpu_name", "gpu_count"} <= shape.names


def _never(shape: FileShape) -> bool:  # noqa: ARG001
    return False


SOURCES = (
    PriceSource("gpuhunt", "gpuhunt catalogue of several clouds", parse, _recognises, fetch),
    PriceSource(
        "gpuhunt-online", "clouds that gpuhunt asks live", parse, _never, fetch_online, "the gpuhunt package",
        lambda: importlib.util.find_spec("gpuhunt") is not None,
    ),
)  # fmt: skip
