"""Files on disk: told apart by their shape, read into the store, priced in a search."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import answer_of
from tests.prices.fake_api import fixture
from tokenopt.errors import PriceSourceError
from tokenopt.prices.importer import ImportResult, import_files, shape_of
from tokenopt.prices.store import last_snapshots, read_offers
from tokenopt.records import PriceSource

Run = Callable[..., subprocess.CompletedProcess[str]]
Sources = dict[str, PriceSource]

KINDS = {
    "aws_offer.json": "aws", "aws_query.json": "aws", "ec2instances.json": "ec2instances", "neuron.csv": "neuron",
    "azure_1.json": "azure", "gcp_1.json": "gcp", "gcp_tpu.json": "gcp", "oci_1.json": "oci", "lambda.json": "lambda",
    "runpod.json": "runpod", "vultr_1.json": "vultr", "vultr_metal.json": "vultr", "offerings.json": "offerings",
    "gpuhunt_aws.csv": "gpuhunt", "skypilot_aws.csv": "skypilot", "skypilot_azure.csv": "skypilot",
    "skypilot_lambda.csv": "skypilot", "aws_savings.json": "aws",
}  # fmt: skip


@pytest.fixture
def load(tmp_path: Path, price_sources: Sources, price_store: Path) -> Callable[..., list[ImportResult]]:
    def run(*names: str, content: bytes | None = None, **options: Any) -> list[ImportResult]:
        paths = []
        for name in names:
            path = tmp_path / name
            path.write_bytes(fixture(name) if content is None else content)
            paths.append(path)
        return import_files(paths, price_sources, store=price_store, today=date(2026, 11, 20), **options)

    return run


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_told_by_its_shape(name: str, load: Callable[..., list[ImportResult]], price_store: Path) -> None:
    (result,) = load(name)
    assert (result.format, result.message) == (KINDS[name], "")
    assert result.offers
    stored = read_offers(path=price_store)
    assert len(stored) == len(result.offers)
    assert set(last_snapshots(price_store)) == {f"file:{name}"}
    dated = {offer.as_of for offer in stored}
    assert all(day == "undated, imported 2026-11-20" or len(day) == 10 for day in dated)


def test_the_day_and_the_provider_can_be_stated(load: Callable[..., list[ImportResult]]) -> None:
    (result,) = load("lambda.json", as_of="2026-11-01")
    assert {offer.as_of for offer in result.offers} == {"2026-11-01"}
    (dated,) = load("aws_offer.json", as_of="2026-11-01")
    assert {offer.as_of for offer in dated.offers} == {"2026-10-02"}, "the file's own day comes first"
    rows = fixture("gpuhunt_aws.csv")
    (refused,) = load("prices.csv", content=rows)
    assert "--provider" in refused.message
    (named,) = load("prices.csv", content=rows, provider="aws")
    assert {offer.provider for offer in named.offers} == {"aws"}


def test_files_of_one_format_are_read_together(load: Callable[..., list[ImportResult]]) -> None:
    # The GPU is on the first page of the catalogue, its host on the second.
    (together,) = load("gcp_1.json", "gcp_2.json")
    assert any(offer.instance_type == "a2-highgpu-8g" for offer in together.offers)


def test_reading_again_replaces(load: Callable[..., list[ImportResult]], price_store: Path) -> None:
    (first,) = load("lambda.json")
    document = json.loads(fixture("lambda.json"))
    document["data"]["gpu_8x_h100_sxm5"]["instance_type"]["price_cents_per_hour"] = 4000
    (second,) = load("lambda.json", content=json.dumps(document).encode())
    (change,) = second.changes.values()
    assert (change.new, change.gone, change.unchanged) == (2, 2, len(first.offers) - 2)
    assert {o.usd_per_chip_hr for o in read_offers(path=price_store) if o.accelerator == "h100-sxm"} == {5.0}


@pytest.mark.parametrize("encoding", ["gzip", "byte order mark", "crlf"])
def test_other_wrappings(encoding: str, load: Callable[..., list[ImportResult]]) -> None:
    plain = fixture("skypilot_aws.csv")
    content = {
        "gzip": gzip.compress(plain), "byte order mark": b"\xef\xbb\xbf" + plain, "crlf": plain.replace(b"\n", b"\r\n"),
    }[encoding]  # fmt: skip
    (wrapped,) = load("aws-vms.csv", content=content)
    (expected,) = load("skypilot_aws.csv")
    assert wrapped.message == ""
    assert {(o.instance_type, o.usd_per_chip_hr) for o in wrapped.offers} == {
        (o.instance_type, o.usd_per_chip_hr) for o in expected.offers
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html></html>", "neither JSON nor a table"),
        (b'{"a": 1', "not whole JSON"),
        (b'{"a": 1}', "not a price file of a known shape"),
        (b"a,b\n1,2\n", "not a price file of a known shape"),
        (b"PK\x03\x04garbage", "not a whole archive"),
        (b"\x1f\x8b\x99garbage", "cannot be read"),
        (gzip.compress(b"a,b")[:-6], "not a whole gzip file"),
    ],
)
def test_what_is_no_price_file_is_refused(
    content: bytes, message: str, load: Callable[..., list[ImportResult]], price_store: Path
) -> None:
    (result,) = load("odd.dat", content=content)
    assert message in result.message
    assert not result.is_empty
    assert not price_store.exists()


def test_a_format_can_be_named(load: Callable[..., list[ImportResult]]) -> None:
    (result,) = load("aws_savings.json", file_format="aws-savings")
    assert result.format == "aws-savings"
    with pytest.raises(PriceSourceError, match="no price file format 'nonsense'"):
        load("aws_savings.json", file_format="nonsense")


def test_no_two_sources_claim_one_file(price_sources: Sources) -> None:
    for name in KINDS:
        shape = shape_of(name, fixture(name))
        assert [source for source, record in price_sources.items() if record.recognises(shape)] == [KINDS[name]]


def test_imported_prices_are_ranked_listed_and_compared(tokenopt: Run, tmp_path: Path) -> None:
    data = {"TOKENOPT_DATA_DIR": str(tmp_path / "data")}
    file = tmp_path / "lambda.json"
    document = json.loads(fixture("lambda.json"))
    document["data"]["gpu_8x_h100_sxm5"]["instance_type"]["price_cents_per_hour"] = 16
    file.write_text(json.dumps(document))
    imported = tokenopt("prices", "import", str(file), "--as-of", "2026-11-20", "--format", "json", env=data)
    (entry,) = json.loads(imported.stdout)["imports"]
    assert (imported.returncode, entry["format"], entry["offers"], entry["refused"]) == (0, "lambda", 3, False)
    found = answer_of(
        tokenopt("search", "--hardware", "h100-sxm", "--model", "llama-3.1-8b", "--format", "json", env=data)
    )
    offer = found["best"][0]["offer"]
    assert (offer["provider"], offer["usd_per_chip_hr"], offer["as_of"]) == ("lambda", 0.02, "2026-11-20")
    listed = answer_of(tokenopt("prices", "h100-sxm", "--provider", "lambda", "--format", "json", env=data))
    assert 0.02 in {offer["usd_per_chip_hr"] for offer in listed["offers"]}
    fresh = answer_of(tokenopt("prices", "list", "h100*", "--max-age", "100000", "--format", "json", env=data))
    assert len(fresh["offers"]) > 2
    stale = tokenopt("search", "--hardware", "h100-sxm", "--prices-max-age", "0", "--provider", "lambda", env=data)
    assert stale.returncode in (1, 2)
    history = answer_of(tokenopt("prices", "history", "--accelerator", "h100-sxm", "--format", "json", env=data))
    assert {row["store_source"] for row in history["history"]} == {"file:lambda.json"}
    document["data"]["gpu_8x_h100_sxm5"]["instance_type"]["price_cents_per_hour"] = 32
    file.write_text(json.dumps(document))
    tokenopt("prices", "import", str(file), "--as-of", "2026-11-20", env=data)
    since = answer_of(tokenopt("prices", "diff", "--since", "2020-01-01", "--format", "json", env=data))
    assert {row["is_usd_per_chip_hr"] for row in since["changes"] if row["offer"]["accelerator"] == "h100-sxm"} == {
        0.04
    }
    shown = tokenopt("prices", "sources", env=data, width=200)
    assert "file:lambda.json" in shown.stdout
    forgotten = tokenopt("prices", "forget", "file:lambda.json", env=data)
    assert forgotten.stdout.startswith("3 offers of file:lambda.json taken out")
    then = answer_of(tokenopt("prices", "history", "--accelerator", "h100-sxm", "--format", "json", env=data))
    assert all(row["gone_on"] for row in then["history"])


def test_exit_codes_of_import(tokenopt: Run, tmp_path: Path) -> None:
    data = {"TOKENOPT_DATA_DIR": str(tmp_path / "data")}
    good, cpu, odd = tmp_path / "lambda.json", tmp_path / "cpu.json", tmp_path / "odd.json"
    good.write_bytes(fixture("lambda.json"))
    document = json.loads(fixture("aws_offer.json"))
    document["products"] = {"X": next(p for p in document["products"].values()
                                      if p["attributes"].get("instanceType", "").startswith("m5"))}  # fmt: skip
    cpu.write_text(json.dumps(document))
    odd.write_text('{"a": 1}')
    mixed = tokenopt("prices", "import", str(good), str(cpu), env=data)
    assert mixed.returncode == 0, "a file without accelerators is no mistake beside one with"
    assert "cpu.json holds no price of an accelerator" in mixed.stderr
    assert tokenopt("prices", "import", str(cpu), env=data).returncode == 1
    refused = tokenopt("prices", "import", str(good), str(odd), env=data)
    assert refused.returncode == 1
    assert "refused: odd.json" in refused.stderr
    assert tokenopt("prices", "import", str(tmp_path / "none.json"), env=data).returncode == 2


def test_the_group_keeps_its_short_form(tokenopt: Run) -> None:
    short, long = tokenopt("prices", "h100-sxm"), tokenopt("prices", "list", "h100-sxm")
    assert short.stdout == long.stdout != ""
    assert tokenopt("prices", "--provider", "aws").returncode == 0
    assert "Commands" in tokenopt("prices", "--help").stdout
    assert tokenopt("prices", "update", "--source", "neuron").returncode == 1
    assert tokenopt("prices", "diff", "--since", "yesterday").returncode == 2
    assert tokenopt("prices", "history", "--accelerator", "h100-sxm").returncode == 1


def test_a_card_of_a_family_with_several_memories_is_the_one_that_the_provider_has(
    load: Callable[..., list[ImportResult]],
) -> None:
    plans = [
        {
            "id": f"vcg-{memory}",
            "hourly_cost": cost,
            "locations": ["ewr"],
            "gpu_vram_gb": memory,
            "gpu_type": "NVIDIA_A100",
            "vcpu_count": 12,
        }
        for memory, cost in ((80, 2.4), (160, 4.8), (10, 0.3))
    ]
    (result,) = load("vultr_1.json", content=json.dumps({"plans": plans, "meta": {"total": 3}}).encode())
    found = {(offer.accelerator, offer.chips_per_instance, offer.usd_per_chip_hr) for offer in result.offers}
    assert found == {("a100-sxm-80", 1, 2.4), ("a100-sxm-80", 2, 2.4)}, result.message
    assert all(offer.suspect for offer in result.offers), "an A100 of which form is not said"


def test_accelerators_of_a_cloud_by_their_short_names(load: Callable[..., list[ImportResult]]) -> None:
    header = b"instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,gpu_vendor\n"
    row = b"trn2.48xlarge,us-east-2,44.8,192,2048,16,trn2,96,False,,aws\n"
    (result,) = load("gpuhunt_aws.csv", content=header + row, provider="aws")
    assert [(offer.accelerator, offer.usd_per_chip_hr) for offer in result.offers] == [("trn2", 2.8)]
