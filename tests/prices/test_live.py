"""Live sources against a local server that answers as the real API does, and misbehaves as it may."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.prices.fake_api import Answer, FakeApi, Request, fixture
from tokenopt.errors import PriceSourceError
from tokenopt.prices.fetch import HttpFetcher
from tokenopt.prices.store import last_snapshots, read_offers
from tokenopt.prices.update import SourceResult, choose_sources, update_source
from tokenopt.records import Offer, ParsedPrices, PricePage, PriceSource, Source

Sources = dict[str, PriceSource]


class Waits:
    """A fetcher that notes how long it would have waited."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, **options: Any) -> HttpFetcher:
        return HttpFetcher(sleep=self.seconds.append, jitter=lambda: 1.0, **options)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def update(price_store: Path, waits: Waits) -> Callable[..., SourceResult]:
    def run(source: PriceSource, **options: Any) -> SourceResult:
        return update_source(source, path=price_store, fetcher=waits, **options)

    return run


def serve(name: str, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `api` answer as the source's API, and the source ask it."""
    SERVERS[name](api, monkeypatch)


def _aws(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_AWS_PRICES_URL", api.url)
    monkeypatch.setenv("TOKENOPT_AWS_REGIONS", "us-east-1")
    base = "/offers/v1.0/aws/AmazonEC2"
    index = {
        "formatVersion": "v1.0", "publicationDate": "2026-10-02T10:00:00Z",
        "regions": {
            region: {"regionCode": region, "currentVersionUrl": f"{base}/20261002/{region}/index.json"}
            for region in ("us-east-1", "eu-west-1")
        },
    }  # fmt: skip
    api.serve({
        f"{base}/current/region_index.json": json.dumps(index).encode(),
        f"{base}/20261002/us-east-1/index.json": fixture("aws_offer.json"),
    })  # fmt: skip


def _aws_savings(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_AWS_PRICES_URL", api.url)
    monkeypatch.setenv("TOKENOPT_AWS_REGIONS", "us-east-1")
    base = "/savingsPlan/v1.0/aws/AWSComputeSavingsPlan"
    index = {
        "publicationDate": "2026-10-02T10:00:00Z",
        "regions": [{"regionCode": "us-east-1", "versionUrl": f"{base}/20261002/us-east-1/index.json"}],
    }
    api.serve({
        f"{base}/current/region_index.json": json.dumps(index).encode(),
        f"{base}/20261002/us-east-1/index.json": fixture("aws_savings.json"),
    })  # fmt: skip


def _azure(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_AZURE_PRICES_URL", f"{api.url}/api/retail/prices")
    pages = [json.loads(fixture(f"azure_{number}.json")) for number in (1, 2)]
    pages[0]["NextPageLink"] = f"{api.url}/api/retail/prices?$skip=1000"
    pages[1]["NextPageLink"] = None

    def route(request: Request) -> Answer:
        if "$skip" not in request.query:
            assert "Virtual Machines" in request.query["$filter"][0]
        return Answer(json.dumps(pages["$skip" in request.query]).encode())

    api.route = route


def _gcp(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_GCP_PRICES_URL", api.url)
    monkeypatch.setenv("TOKENOPT_GCP_API_KEY", "secret-key")
    pages = [json.loads(fixture(f"gcp_{number}.json")) for number in (1, 2)]
    pages[0]["nextPageToken"], pages[1]["nextPageToken"] = "next", ""

    def route(request: Request) -> Answer:
        assert request.query["key"] == ["secret-key"]
        if "E000-3F24-B8AA" in request.path:
            return Answer(fixture("gcp_tpu.json"))
        return Answer(json.dumps(pages["pageToken" in request.query]).encode())

    api.route = route


def _oci(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_OCI_PRICES_URL", f"{api.url}/products/")
    pages = [json.loads(fixture(f"oci_{number}.json")) for number in (1, 2)]
    pages[0]["hasMore"], pages[1]["hasMore"] = True, False
    api.route = lambda request: Answer(json.dumps(pages["offset" in request.query]).encode())


def _lambda(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_LAMBDA_URL", f"{api.url}/instance-types")
    monkeypatch.setenv("LAMBDA_API_KEY", "secret-key")

    def route(request: Request) -> Answer:
        assert request.headers["Authorization"] == "Bearer secret-key"
        return Answer(fixture("lambda.json"))

    api.route = route


def _runpod(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_RUNPOD_URL", f"{api.url}/graphql")

    def route(request: Request) -> Answer:
        assert request.method == "POST"
        assert "gpuTypes" in json.loads(request.body)["query"]
        return Answer(fixture("runpod.json"))

    api.route = route


def _vultr(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_VULTR_URL", api.url)
    pages = [json.loads(fixture(f"vultr_{number}.json")) for number in (1, 2)]
    pages[0]["meta"] = {"links": {"next": "cursor-2", "prev": ""}}
    pages[1]["meta"] = {"links": {"next": "", "prev": "cursor-1"}}

    def route(request: Request) -> Answer:
        if request.path == "/plans-metal":
            return Answer(fixture("vultr_metal.json"))
        return Answer(json.dumps(pages["cursor" in request.query]).encode())

    api.route = route


def _skypilot(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_SKYPILOT_URL", api.url)
    monkeypatch.setenv("TOKENOPT_SKYPILOT_CLOUDS", "aws, gcp")
    api.serve({f"/{cloud}/vms.csv": fixture(f"skypilot_{cloud}.csv") for cloud in ("aws", "gcp")})


def _gpuhunt(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_GPUHUNT_URL", api.url)
    monkeypatch.setenv("TOKENOPT_GPUHUNT_PROVIDERS", "aws,gcp")
    pages = {}
    for provider in ("aws", "gcp"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(f"{provider}.csv", fixture(f"gpuhunt_{provider}.csv"))
        pages[f"/{provider}/version"] = b"20261002-7\n"
        pages[f"/{provider}/20261002-7/catalog.zip"] = packed.getvalue()
    api.serve(pages)


SERVERS: dict[str, Callable[[FakeApi, pytest.MonkeyPatch], None]] = {
    "aws": _aws, "aws-savings": _aws_savings, "azure": _azure, "gcp": _gcp, "oci": _oci, "lambda": _lambda,
    "runpod": _runpod, "vultr": _vultr, "skypilot": _skypilot, "gpuhunt": _gpuhunt,
}  # fmt: skip
REQUESTS = {"aws": 2, "aws-savings": 2, "azure": 2, "gcp": 3, "oci": 2, "lambda": 1, "runpod": 1, "vultr": 3,
            "skypilot": 2, "gpuhunt": 4}  # fmt: skip
FILES = {
    "aws": ["aws_offer.json"], "aws-savings": ["aws_savings.json"], "azure": ["azure_1.json", "azure_2.json"],
    "gcp": ["gcp_1.json", "gcp_2.json", "gcp_tpu.json"], "oci": ["oci_1.json", "oci_2.json"], "lambda": ["lambda.json"],
    "runpod": ["runpod.json"], "vultr": ["vultr_1.json", "vultr_2.json", "vultr_metal.json"],
    "skypilot": ["skypilot_aws.csv", "skypilot_gcp.csv"], "gpuhunt": ["gpuhunt_aws.csv", "gpuhunt_gcp.csv"],
}  # fmt: skip


def facts(offers: list[Offer]) -> set[tuple[Any, ...]]:
    return {(o.accelerator, o.provider, o.instance_type, o.region, o.term, round(o.usd_per_chip_hr, 6)) for o in offers}


@pytest.fixture(params=sorted(SERVERS))
def live(
    request: pytest.FixtureRequest, price_api: FakeApi, price_sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> PriceSource:
    serve(request.param, price_api, monkeypatch)
    return price_sources[request.param]


def expected(source: PriceSource) -> set[tuple[Any, ...]]:
    pages = [PricePage(file, fixture(file)) for file in FILES[source.name]]
    return facts(list(source.parse(pages, {}).offers))


def test_every_live_source_is_tested(price_sources: Sources) -> None:
    live = {name for name, source in price_sources.items() if source.fetch is not None}
    assert live == set(SERVERS) | {"aws-query", "gpuhunt-online"}


def test_all_pages_reach_the_store(
    live: PriceSource, price_api: FakeApi, price_store: Path, update: Callable[..., SourceResult], waits: Waits
) -> None:
    result = update(live)
    assert (result.status, result.message) == ("updated", "")
    assert facts(read_offers(path=price_store)) == expected(live)
    assert result.requests == len(price_api.requests) == REQUESTS[live.name]
    assert result.retries == 0
    assert waits.seconds == []
    assert last_snapshots(price_store)[live.name].skipped == dict(result.skipped)


@pytest.mark.parametrize("fault", ["429", "503", "429 with a date", "cut short", "not JSON", "connection closed"])
def test_trouble_that_passes_costs_a_retry(
    fault: str,
    live: PriceSource,
    price_api: FakeApi,
    price_store: Path,
    update: Callable[..., SourceResult],
    waits: Waits,
) -> None:
    body = fixture(FILES[live.name][0])
    in_two_seconds = (datetime.now(UTC) + timedelta(seconds=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    price_api.faults = [{
        "429": Answer(b"slow down", 429, {"Retry-After": "7"}),
        "503": Answer(b"<html>busy</html>", 503),
        "429 with a date": Answer(b"", 429, {"Retry-After": in_two_seconds}),
        "cut short": Answer(body, cut=True),
        "not JSON": Answer(b"", 500),
        "connection closed": Answer(b"x" * 100, cut=True),
    }[fault]]  # fmt: skip
    result = update(live)
    assert (result.status, result.message) == ("updated", "")
    assert result.retries == 1
    assert len(waits.seconds) == 1
    if fault == "429":
        assert waits.seconds == [7.0]
    elif fault == "429 with a date":
        assert 0 <= waits.seconds[0] <= 2
    else:
        assert 0.25 <= waits.seconds[0] <= 1
    assert facts(read_offers(path=price_store)) == expected(live)


@pytest.mark.parametrize("fault", ["500", "cut short", "401", "another shape", "empty object"])
def test_trouble_that_stays_leaves_what_was_stored(
    fault: str,
    live: PriceSource,
    price_api: FakeApi,
    price_store: Path,
    update: Callable[..., SourceResult],
    waits: Waits,
) -> None:
    assert update(live).status == "updated"
    before = read_offers(path=price_store)
    good = price_api.route
    bad: dict[str, Callable[[Request], Answer]] = {
        "500": lambda request: Answer(b"", 500),
        "cut short": lambda request: Answer(good(request).body + b" " * 10, cut=True),
        "401": lambda request: Answer(b"", 401),
        "another shape": lambda request: Answer(b'{"version": 3, "results": [{"sku": 1}]}'),
        "empty object": lambda request: Answer(b"{}"),
    }
    price_api.route = bad[fault]
    result = update(live, full=True)
    assert result.status == "failed"
    assert result.message
    assert "secret-key" not in result.message
    assert read_offers(path=price_store) == before
    if fault == "401":
        assert result.retries == 0, "asking again does not help"
    if fault == "500":
        assert result.requests == 5
        assert waits.seconds == [0.5, 1.0, 2.0, 4.0]


def test_keys_are_in_no_name(
    price_api: FakeApi,
    price_sources: Sources,
    price_store: Path,
    update: Callable[..., SourceResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("gcp", "lambda"):
        serve(name, price_api, monkeypatch)
        assert update(price_sources[name]).status == "updated"
    assert b"secret-key" not in b"".join(path.read_bytes() for path in price_store.parent.iterdir())


@pytest.mark.parametrize("name", ["azure", "skypilot"])
def test_what_has_not_changed_is_not_sent_again(
    name: str, price_api: FakeApi, price_sources: Sources, price_store: Path, update: Callable[..., SourceResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    serve(name, price_api, monkeypatch)
    plain = price_api.route

    def route(request: Request) -> Answer:
        answer = plain(request)
        etag = f'"{hash(answer.body)}"'
        return (
            Answer(status=304)
            if request.headers.get("If-None-Match") == etag
            else Answer(answer.body, headers={"ETag": etag})
        )

    price_api.route = route
    assert update(price_sources[name]).not_modified == 0
    before = facts(read_offers(path=price_store))
    again = update(price_sources[name])
    assert (again.status, again.not_modified) == ("unchanged", REQUESTS[name])
    assert facts(read_offers(path=price_store)) == before
    assert update(price_sources[name], full=True).not_modified == 0


def test_a_list_that_is_no_newer_is_not_fetched(
    price_api: FakeApi,
    price_sources: Sources,
    price_store: Path,
    update: Callable[..., SourceResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve("aws", price_api, monkeypatch)
    assert update(price_sources["aws"]).requests == 2
    again = update(price_sources["aws"])
    assert (again.status, again.requests) == ("unchanged", 1)
    assert read_offers(path=price_store)


def test_packed_answers_are_unpacked(
    price_api: FakeApi, price_sources: Sources, update: Callable[..., SourceResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("lambda", price_api, monkeypatch)
    price_api.route = lambda request: Answer(
        gzip.compress(fixture("lambda.json")), headers={"Content-Encoding": "gzip"}
    )
    assert update(price_sources["lambda"]).status == "updated"


def test_pages_that_never_end_are_stopped(
    price_api: FakeApi, price_sources: Sources, update: Callable[..., SourceResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("azure", price_api, monkeypatch)
    import tokenopt_prices_azure.retail as azure

    monkeypatch.setattr(azure, "MAX_PAGES", 5)
    page = json.loads(fixture("azure_1.json")) | {"NextPageLink": f"{price_api.url}/again"}
    price_api.route = lambda request: Answer(json.dumps(page).encode())
    result = update(price_sources["azure"])
    assert (result.status, result.requests) == ("failed", 5)
    assert "more than 5 pages" in result.message


def _source(offers: int, **changes: Any) -> PriceSource:
    chip = Offer("h100-sxm", "p", "t", "r", "on-demand", 2.0, 8, "", Source("s", "third-party"))
    made = [
        Offer(**{**{name: getattr(chip, name) for name in chip.__slots__}, "region": f"r{i}"}) for i in range(offers)
    ]
    return PriceSource(
        "mine", "d", lambda pages, rates: ParsedPrices(made), lambda shape: False,
        changes.pop("fetch", lambda client, since: []), **changes,
    )  # fmt: skip


def test_a_list_that_shrinks_to_nothing_is_not_believed(price_store: Path, update: Callable[..., SourceResult]) -> None:
    assert update(_source(100)).status == "updated"
    shrunk = update(_source(10))
    assert shrunk.status == "failed"
    assert "may have changed form" in shrunk.message
    assert len(read_offers(path=price_store)) == 100
    assert update(_source(30)).status == "updated"
    assert update(_source(0)).status == "failed"
    assert update(_source(1), accept_fewer=True).status == "updated"


def test_a_source_that_raises_is_told(price_store: Path, update: Callable[..., SourceResult]) -> None:
    def fetch(client: Any, since: Any) -> Any:
        raise ZeroDivisionError("oops")

    result = update(_source(1, fetch=fetch))
    assert (result.status, result.change) == ("failed", None)
    assert "ZeroDivisionError: oops" in result.message
    assert read_offers(path=price_store) == []


def test_a_source_that_hangs_is_left(
    price_store: Path, update: Callable[..., SourceResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenopt.prices import update as module

    monkeypatch.setattr(module, "FETCH_LIMIT_S", 0.3)
    monkeypatch.setattr(module, "PARSE_LIMIT_S", 0.3)

    def forever(*_: Any) -> Any:
        while True:
            pass

    for source in (_source(1, fetch=forever), replace(_source(1), parse=forever)):
        result = update(source)
        assert result.status == "failed"
        assert "took longer than 0.3 s" in result.message
    assert read_offers(path=price_store) == []


def test_a_source_that_cannot_say_whether_it_is_ready_hides_no_other(price_sources: Sources) -> None:
    def broken() -> bool:
        raise OSError("no keyring")

    chosen, others = choose_sources({**price_sources, "mine": replace(_source(1), needs="luck", is_ready=broken)}, ())
    assert "azure" in {source.name for source in chosen}
    (told,) = [result for result in others if result.name == "mine"]
    assert told.status == "failed"
    assert "no keyring" in told.message


def test_records_of_foreign_classes_are_stored_plain(price_store: Path, update: Callable[..., SourceResult]) -> None:
    class Loud(str):
        def __str__(self) -> str:
            raise RuntimeError("runs")

    plain = _source(1).parse([], {}).offers[0]
    odd = replace(plain, provider=Loud("'; DROP TABLE offers; --"), usd_per_chip_hr=np.float64(2.5))
    result = update(
        replace(_source(1), parse=lambda pages, rates: ParsedPrices([odd, "no offer", replace(plain, term="x")]))
    )
    assert result.status == "updated"
    assert sum(result.skipped.values()) == 2
    (stored,) = read_offers(path=price_store)
    assert (type(stored.provider), stored.provider) == (str, "'; DROP TABLE offers; --")
    assert (type(stored.usd_per_chip_hr), stored.usd_per_chip_hr) == (float, 2.5)


class _Pricing:
    """Stands in for boto3's client: answers of two pages for one type, nothing for the others."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.asked: list[tuple[str, str]] = []

    def get_products(self, **request: Any) -> dict[str, Any]:
        if self.fails:
            raise RuntimeError("AccessDenied")
        assert request["ServiceCode"] == "AmazonEC2"
        name = next(f["Value"] for f in request["Filters"] if f["Field"] == "instanceType")
        self.asked.append((name, request.get("NextToken", "")))
        if name != "p5.48xlarge":
            return {"PriceList": []}
        entries = json.loads(fixture("aws_query.json"))["PriceList"]
        return (
            {"PriceList": entries[:1], "NextToken": "2"} if "NextToken" not in request else {"PriceList": entries[1:]}
        )


@pytest.mark.parametrize("fails", [False, True])
def test_the_query_api_through_boto3(
    fails: bool,
    price_sources: Sources,
    price_store: Path,
    update: Callable[..., SourceResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pricing = _Pricing(fails)
    stand_in = ModuleType("boto3")
    stand_in.client = lambda service, **options: pricing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "boto3", stand_in)
    result = update(price_sources["aws-query"])
    if fails:
        assert (result.status, read_offers(path=price_store)) == ("failed", [])
        assert "AccessDenied" in result.message
        return
    assert result.status == "updated"
    assert [token for name, token in pricing.asked if name == "p5.48xlarge"] == ["", "2"]
    assert {offer.term for offer in read_offers(path=price_store)} == {"on-demand", "reserved-1y", "reserved-3y"}


def test_optional_packages_are_asked_for(
    price_sources: Sources, update: Callable[..., SourceResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, name in (("boto3", "aws-query"), ("gpuhunt", "gpuhunt-online")):
        monkeypatch.setitem(sys.modules, package, None)
        result = update(price_sources[name])
        assert result.status == "failed"
        assert f"needs {package}: pip install" in result.message


def test_gpuhunt_asks_its_live_providers(
    price_sources: Sources, price_store: Path, update: Callable[..., SourceResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Item:
        instance_name, location, price, gpu_count, gpu_name, gpu_memory = "8x MI300X", "us", 15.92, 8, "MI300X", 192.0
        spot, gpu_vendor = False, "amd"

    class Catalog:
        def __init__(self, auto_reload: bool) -> None:
            assert not auto_reload, "a reload would ask the network for everything"

        def query(self, provider: list[str]) -> list[Item]:
            return [Item()] if provider == ["hotaisle"] else []

    stand_in = ModuleType("gpuhunt")
    stand_in.Catalog = Catalog  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpuhunt", stand_in)
    assert update(price_sources["gpuhunt-online"]).status == "updated"
    (offer,) = read_offers(path=price_store)
    assert (offer.accelerator, offer.provider, offer.usd_per_chip_hr) == ("mi300x", "hotaisle", 1.99)


def test_sources_without_credentials_are_left_out_unless_named(
    price_sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LAMBDA_API_KEY", "TOKENOPT_GCP_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    chosen, left_out = choose_sources(price_sources, ())
    assert {"lambda", "gcp"} <= {result.name for result in left_out}
    assert {"aws", "azure", "oci", "runpod", "vultr", "skypilot", "gpuhunt"} <= {source.name for source in chosen}
    (named,), none = choose_sources(price_sources, ("lambda",))
    assert (named.name, none) == ("lambda", [])
    with pytest.raises(PriceSourceError, match="no live price source 'neuron', it is read from files"):
        choose_sources(price_sources, ("neuron",))
