"""Each source's parser on small files in the source's own shape: what it reads, and what it must not be fooled by."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.prices.fake_api import fixture
from tokenopt.errors import PriceSourceError
from tokenopt.prices.sources import offer_defect
from tokenopt.records import Offer, ParsedPrices, PricePage, PriceSource

Sources = dict[str, PriceSource]
Row = tuple[str, str, str, str, float, int]


def parsed(sources: Sources, name: str, *files: str, rates: dict[str, float] | None = None) -> ParsedPrices:
    return sources[name].parse([PricePage(file, fixture(file)) for file in files], rates or {})


def row(offer: Offer) -> Row:
    return (
        offer.accelerator, offer.instance_type, offer.region, offer.term, round(offer.usd_per_chip_hr, 4),
        offer.chips_per_instance,
    )  # fmt: skip


EXPECTED: dict[tuple[str, ...], tuple[set[Row], set[str]]] = {
    # 55.04 / 8; half of 8 x 2.00 x 8,760 h paid upfront beside 2.00 an hour; the All Upfront term stands under OnDemand.
    ("aws", "aws_offer.json"): (
        {
            ("h100-sxm", "p5.48xlarge", "us-east-1", "on-demand", 6.88, 8),
            ("h100-sxm", "p5.48xlarge (Partial Upfront, standard)", "us-east-1", "reserved-1y", 4.0, 8),
            ("h100-sxm", "p5.48xlarge (No Upfront, standard)", "us-east-1", "reserved-3y", 3.01, 8),
            ("trn1", "trn1.32xlarge", "us-east-1", "on-demand", 1.3438, 16),
            ("trn1", "trn1.32xlarge (All Upfront, convertible)", "us-east-1", "reserved-3y", 0.4756, 16),
        },
        {
            "market option CapacityBlock", "operating system Windows", "licence: Bring your own license",
            "Dedicated tenancy", "capacity status UnusedCapacityReservation", "with SQL Ent installed", "no accelerator",
            "accelerator not in the table: g9.48xlarge", "a fraction of an accelerator", "not an instance: Storage",
        },
    ),
    # Each entry is JSON text inside JSON.
    ("aws", "aws_query.json"): (
        {
            ("h100-sxm", "p5.48xlarge", "us-east-1", "on-demand", 6.88, 8),
            ("h100-sxm", "p5.48xlarge (Partial Upfront, standard)", "us-east-1", "reserved-1y", 4.0, 8),
            ("h100-sxm", "p5.48xlarge (No Upfront, standard)", "us-east-1", "reserved-3y", 3.01, 8),
        },
        {"no accelerator"},
    ),
    ("aws-savings", "aws_savings.json"): (
        {("h100-sxm", "p5.48xlarge (3 year No Upfront Compute Savings Plan)", "us-east-1", "reserved-3y", 3.44, 8)},
        {
            "Savings Plan rate of another operating system", "no accelerator",
            "Savings Plan rate of another service or usage", "Savings Plan of another length",
        },
    ),
    # The whole term's amount though the unit says 1 Hour: 350,400 / 8,760 h / 8 = 5.00 and 525,600 / 26,280 h / 8 = 2.50.
    ("azure", "azure_1.json", "azure_2.json"): (
        {
            ("mi300x", "Standard_ND96isr_MI300X_v5", "eastus2", "on-demand", 6.0, 8),
            ("mi300x", "Standard_ND96isr_MI300X_v5", "eastus2", "spot", 1.1088, 8),
            ("mi300x", "Standard_ND96isr_MI300X_v5 (savings plan)", "eastus2", "reserved-1y", 5.1, 8),
            ("mi300x", "Standard_ND96isr_MI300X_v5 (savings plan)", "eastus2", "reserved-3y", 4.2, 8),
            ("mi300x", "Standard_ND96isr_MI300X_v5 (reservation)", "eastus2", "reserved-1y", 5.0, 8),
            ("mi300x", "Standard_ND96isr_MI300X_v5 (reservation)", "eastus2", "reserved-3y", 2.5, 8),
            ("h100-nvl", "Standard_NC80adis_H100_v5", "westeurope", "on-demand", 6.98, 2),
            ("h100-sxm", "Standard_ND96isr_H100_v5", "eastus2", "on-demand", 12.29, 8),
        },
        {
            "Low Priority, replaced by Spot", "Windows", "DevTest price, for development subscriptions only",
            "reservation of 5 years", "a fraction of an accelerator", "no accelerator", "not a virtual machine",
            "accelerators not in the table: Standard_NC999_NEW_v9",
        },
    ),
    # 2.933908 + 12 cores x 0.031611 + 85 GiB x 0.004237 = 3.67338, in two regions of one SKU, over two pages.
    ("gcp", "gcp_1.json", "gcp_2.json"): (
        {
            *(
                ("a100-sxm-40", f"a2-highgpu-{chips}g", region, "on-demand", 3.6734, chips)
                for chips in (1, 2, 4, 8)
                for region in ("us-central1", "us-east1")
            ),
            ("a100-sxm-40", "a2-megagpu-16g", "us-central1", "on-demand", 3.4837, 16),
            ("a100-sxm-40", "a2-megagpu-16g", "us-east1", "on-demand", 3.4837, 16),
            # The pages hold no core of its host: shown with the doubt, never ranked.
            ("h100-sxm", "h100-mega without host", "us-central1", "on-demand", 9.0, 1),
        },
        {
            "another way to buy: reservation, calendar, flex-start or dollar commitment", "accelerator not in the table",
            "no part of a machine with accelerators",
        },
    ),
    ("gcp", "gcp_tpu.json"): (
        {
            ("tpu-v6e", "Cloud TPU", "us-east5", "on-demand", 2.7, 1),
            ("tpu-v6e", "Cloud TPU", "us-east5", "spot", 1.1, 1),
            ("tpu-v5p", "Cloud TPU", "us-east5", "reserved-3y", 1.89, 1),
        },
        set(),
    ),
    ("oci", "oci_1.json", "oci_2.json"): (
        {
            ("h100-sxm", "BM.GPU.H100.8", "", "on-demand", 10.0, 8),
            ("a100-sxm-80", "BM.GPU.A100-v2.8", "", "on-demand", 4.0, 8),
            ("b200-sxm", "B200 (B999999)", "", "on-demand", 14.0, 8),
        },
        {
            "not priced per GPU and hour", "accelerator not in the table: B999998 OCI - Compute - GPU - Z900",
            "price in EUR without a rate", "field metricName is missing",
        },
    ),
    # 2,392 cents / 8; a type without a region is sold out, not free.
    ("lambda", "lambda.json"): (
        {
            ("h100-sxm", "gpu_8x_h100_sxm5", "us-east-1", "on-demand", 2.99, 8),
            ("h100-sxm", "gpu_8x_h100_sxm5", "us-west-2", "on-demand", 2.99, 8),
            ("a100-sxm-40", "gpu_8x_a100", "us-east-1", "on-demand", 1.29, 8),
        },
        {"sold out: no region has capacity", "accelerator not in the table: gpu_1x_z9", "no accelerator"},
    ),
    ("runpod", "runpod.json"): (
        {
            ("h100-sxm", "H100 SXM (secure cloud)", "", "on-demand", 2.99, 1),
            ("h100-sxm", "H100 SXM (community cloud)", "", "marketplace", 2.69, 1),
            ("h100-sxm", "H100 SXM (secure cloud)", "", "spot", 1.75, 1),
            ("h100-sxm", "H100 SXM (community cloud)", "", "spot", 1.5, 1),
            ("mi300x", "MI300X (secure cloud)", "", "on-demand", 2.49, 1),
            ("mi300x", "MI300X (community cloud)", "", "marketplace", 0.5, 1),
            ("a100-pcie-80", "A100 PCIe (lowest)", "", "on-demand", 1.39, 1),
            ("a100-pcie-80", "A100 PCIe (lowest bid)", "", "spot", 1.19, 1),
        },
        {"a fraction of an accelerator", "accelerator not in the table: NVIDIA Z9", "no price"},
    ),
    # 1,250 a month / 730 h = 1.7123; plans of a part of a card are left out.
    ("vultr", "vultr_1.json", "vultr_2.json", "vultr_metal.json"): (
        {
            ("l40s", "vcg-l40s-16c-180g-48vram", "ewr", "on-demand", 1.671, 1),
            ("l40s", "vcg-l40s-16c-180g-48vram", "ams", "on-demand", 1.671, 1),
            ("a40", "vcg-a40-24c-120g-48vram", "ewr", "on-demand", 1.7123, 1),
            ("h100-sxm", "vbm-112c-2048gb-8-h100-gpu", "sea", "on-demand", 3.0, 8),
            # The plan does not say which A100: taken as one with 80 GB, and marked as doubtful.
            ("a100-sxm-80", "vcg-a100-96c-960g-640vram", "ewr", "on-demand", 2.4, 8),
        },
        {"a fraction of an accelerator", "no accelerator"},
    ),
    ("gpuhunt", "gpuhunt_aws.csv", "gpuhunt_gcp.csv"): (
        {
            ("h100-sxm", "p5.48xlarge", "us-east-1", "on-demand", 6.88, 8),
            ("h100-sxm", "p5.48xlarge", "us-east-1a", "spot", 2.5, 8),
            # A v5p name counts cores, two a chip: v5p-8 are 4 chips.
            ("tpu-v5p", "v5p-8", "us-east5", "on-demand", 4.2, 4),
            ("h100-sxm", "a3-highgpu-8g", "us-central1-a", "on-demand", 11.0312, 8),
        },
        {"no accelerator", "accelerator not in the table: Z9", "no price"},
    ),
    ("ec2instances", "ec2instances.json"): (
        {
            ("a100-sxm-40", "p4d.24xlarge", "us-east-1", "on-demand", 2.745, 8),
            ("a100-sxm-40", "p4d.24xlarge", "us-east-1", "spot", 1.1375, 8),
            ("a100-sxm-40", "p4d.24xlarge (No Upfront, standard)", "us-east-1", "reserved-1y", 1.725, 8),
            ("a100-sxm-40", "p4d.24xlarge (All Upfront, convertible)", "us-east-1", "reserved-3y", 1.0125, 8),
        },
        {"reserved price of an unknown kind", "operating system or service mswin", "no accelerator"},
    ),
    ("neuron", "neuron.csv"): (
        {
            ("inf2", "inf2.48xlarge (RI-Effective)", "", "reserved-3y", 0.4667, 12),
            ("inf2", "inf2.xlarge (RI-Effective)", "", "reserved-3y", 0.3, 1),
        },
        {"no accelerator"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED, ids=" ".join)
def test_what_is_read_and_what_is_left_out(price_sources: Sources, case: tuple[str, ...]) -> None:
    rows, skipped = EXPECTED[case]
    result = parsed(price_sources, *case)
    assert {row(offer) for offer in result.offers} == rows
    assert set(result.skipped) == skipped
    assert not [offer_defect(offer) for offer in result.offers if offer_defect(offer)]


def test_skypilot_files_of_several_clouds(price_sources: Sources) -> None:
    result = parsed(
        price_sources, "skypilot", *(f"skypilot_{cloud}.csv" for cloud in ("aws", "azure", "gcp", "lambda"))
    )
    found = {(offer.provider, *row(offer)) for offer in result.offers}
    # Google's accelerators and their host are rows of their own: 23.471264 + 5.91582 = 29.387084, over 8.
    assert ("gcp", "a100-sxm-40", "a2-highgpu-8g", "us-central1", "on-demand", 3.6734, 8) in found
    # TPU rows are whole slices with a count of 1; v5p names count cores.
    assert ("gcp", "tpu-v6e", "tpu-v6e-8", "us-east5", "on-demand", 2.7, 8) in found
    assert ("gcp", "tpu-v5p", "tpu-v5p-8", "us-east5", "on-demand", 4.2, 4) in found
    # One field more than the header ("V1,V2" without quotes), Azure names say which H100.
    assert ("azure", "a100-pcie-80", "Standard_NC24ads_A100_v4", "eastus", "on-demand", 3.673, 1) in found
    assert ("azure", "h100-nvl", "Standard_NC40ads_H100_v5", "eastus", "spot", 1.39, 1) in found
    # Lambda's file lists every type in every region: no region is claimed.
    assert ("lambda", "h100-pcie", "gpu_1x_h100_pcie", "", "on-demand", 3.29, 1) in found
    # One row per availability zone: spot prices are apart, the on-demand price is one.
    assert {price for *_, region, term, price, _ in found if term == "spot" and region.startswith("us-east-1/")} == {
        1.0, 0.9,
    }  # fmt: skip
    assert {
        "a fraction of an accelerator", "TPU slice at the placeholder price", "price is 0: a placeholder, nothing is free",
        "spot price equal to the other price: no market for it was seen",
    } <= set(result.skipped)  # fmt: skip
    alone = [offer for offer in result.offers if "without host" in offer.instance_type]
    assert alone
    assert all("host is sold apart" in offer.suspect for offer in alone)


def test_a_list_of_names_is_refused_with_the_reason(price_sources: Sources) -> None:
    with pytest.raises(PriceSourceError, match="holds no price"):
        parsed(price_sources, "skypilot", "skypilot_accelerators.csv")


def test_caveats_of_hand_collected_lists_are_kept(price_sources: Sources) -> None:
    offers = {
        offer.provider + offer.term: offer for offer in parsed(price_sources, "offerings", "offerings.json").offers
    }
    assert offers["acmeon-demand"].suspect == ""
    assert offers["acmeon-demand"].as_of == "2026-05-24"
    assert "estimated" in offers["acmespot"].suspect
    assert "billed apart" in offers["betaon-demand"].suspect
    assert offers["vast.aimarketplace"].usd_per_chip_hr == 1.5


def test_doubt_is_said(price_sources: Sources) -> None:
    runpod = {row(offer)[1]: offer.suspect for offer in parsed(price_sources, "runpod", "runpod.json").offers}
    assert "placeholder" in runpod["MI300X (community cloud)"]
    azure = [offer for offer in parsed(price_sources, "azure", "azure_1.json", "azure_2.json").offers if offer.suspect]
    assert [offer.suspect for offer in azure] == ["the price ends on 2026-12-31"]
    oci = [offer for offer in parsed(price_sources, "oci", "oci_1.json", "oci_2.json").offers if offer.suspect]
    assert [offer.instance_type for offer in oci] == ["B200 (B999999)"]


def test_another_currency_needs_a_rate(price_sources: Sources) -> None:
    without = parsed(price_sources, "aws", "aws_offer_cny.json")
    assert without.offers == ()
    assert set(without.skipped) == {"price in CNY and no --rate CNY=USD given"}
    (offer,) = parsed(price_sources, "aws", "aws_offer_cny.json", rates={"CNY": 0.14}).offers
    plain = json.loads(fixture("aws_offer_cny.json"))
    (term,) = next(iter(plain["terms"]["OnDemand"].values())).values()
    (dimension,) = term["priceDimensions"].values()
    assert offer.usd_per_chip_hr * offer.chips_per_instance == pytest.approx(
        float(dimension["pricePerUnit"]["CNY"]) * 0.14
    )
    euro = parsed(price_sources, "oci", "oci_1.json", "oci_2.json", rates={"EUR": 1.1})
    assert "price in EUR without a rate" not in euro.skipped
    assert len(euro.offers) == 4


def test_upfront_fees_are_told_apart(price_sources: Sources) -> None:
    offers = {row(offer)[1]: offer for offer in parsed(price_sources, "aws", "aws_offer.json").offers}
    partial = offers["p5.48xlarge (Partial Upfront, standard)"]
    # 140,160 USD over 8 chips, spread over 8,760 h: 2.00 of the 4.00 an hour.
    assert partial.upfront_usd_per_chip == pytest.approx(17_520)
    assert offers["p5.48xlarge (No Upfront, standard)"].upfront_usd_per_chip == 0
    assert {offer.as_of for offer in offers.values()} == {"2026-10-02"}


def test_an_accelerator_without_its_host_is_doubtful(price_sources: Sources) -> None:
    document = json.loads(fixture("gcp_1.json"))
    document["skus"] = [sku for sku in document["skus"] if sku["category"]["resourceGroup"] == "GPU"]
    result = price_sources["gcp"].parse([PricePage("skus.json", json.dumps(document).encode())], {})
    assert result.offers
    assert all("SKUs of its host" in offer.suspect for offer in result.offers)


def test_azure_items_with_fewer_fields(price_sources: Sources) -> None:
    document = json.loads(fixture("azure_1.json"))
    item = next(i for i in document["Items"] if i["type"] == "Consumption" and "Windows" not in i["productName"])
    bare = {name: item[name] for name in ("armSkuName", "armRegionName", "retailPrice", "unitOfMeasure", "type")}
    (offer,) = price_sources["azure"].parse([PricePage("a.json", json.dumps([bare]).encode())], {}).offers
    assert offer.usd_per_chip_hr * offer.chips_per_instance == item["retailPrice"]
    assert "Windows" in offer.suspect


JSON_FILES = sorted({(case[0], file) for case in EXPECTED for file in case[1:] if file.endswith(".json")})


@pytest.mark.parametrize(("name", "file"), JSON_FILES)
def test_order_of_fields_and_new_fields_change_nothing(price_sources: Sources, name: str, file: str) -> None:
    document = json.loads(fixture(file))
    changed = json.dumps(_reordered(document, random.Random(7))).encode()
    before = price_sources[name].parse([PricePage(file, fixture(file))], {})
    after = price_sources[name].parse([PricePage(file, changed)], {})
    assert {row(offer) for offer in after.offers} == {row(offer) for offer in before.offers}


@pytest.mark.parametrize(("name", "file"), JSON_FILES)
def test_a_missing_or_odd_field_costs_its_row_alone(price_sources: Sources, name: str, file: str) -> None:
    for odd in (None, "", [], {}, -1, "1e999", True):
        for document in _each_field_changed(json.loads(fixture(file)), odd, random.Random(3)):
            result = price_sources[name].parse([PricePage(file, json.dumps(document).encode())], {})
            assert not [offer for offer in result.offers if offer_defect(offer)]


@pytest.mark.parametrize(("name", "file"), JSON_FILES)
def test_a_document_cut_short_is_refused(price_sources: Sources, name: str, file: str) -> None:
    content = fixture(file)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(PriceSourceError):
            price_sources[name].parse([PricePage(file, content[: int(len(content) * share)])], {})


@pytest.mark.parametrize("file", ["skypilot_aws.csv", "gpuhunt_aws.csv"])
def test_columns_are_read_by_name(price_sources: Sources, file: str) -> None:
    import csv
    import io

    name = file.partition("_")[0]
    rows = list(csv.reader(io.StringIO(fixture(file).decode())))
    order = list(range(len(rows[0])))
    random.Random(5).shuffle(order)
    text = io.StringIO()
    csv.writer(text).writerows([["New", *(line[i] for i in order)] for line in rows])
    before = price_sources[name].parse([PricePage(file, fixture(file))], {})
    after = price_sources[name].parse([PricePage(file, text.getvalue().encode())], {})
    assert {row(offer) for offer in after.offers} == {row(offer) for offer in before.offers}


def _reordered(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        entries = [(key, _reordered(inner, chance)) for key, inner in value.items()]
        chance.shuffle(entries)
        # A mapping by SKU or region takes no stranger; a record does.
        is_record = any(not isinstance(inner, dict) for _, inner in entries)
        return dict(entries) | ({"aFieldOfNextYear": [1, {"a": None}]} if is_record else {})
    if isinstance(value, list):
        return [_reordered(inner, chance) for inner in value]
    return value


def _each_field_changed(document: Any, odd: Any, chance: random.Random) -> Iterator[Any]:
    """Copies of a document, each with another field set to `odd`, a sample of all."""
    paths = list(_paths(document))
    for path in chance.sample(paths, min(40, len(paths))):
        copy = json.loads(json.dumps(document))
        place = copy
        for key in path[:-1]:
            place = place[key]
        if odd is None:
            del place[path[-1]]
        else:
            place[path[-1]] = odd
        yield copy


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from _paths(inner, (*path, key))
