"""The user's own prices: `prices.toml` with regions, tiers, commitments and currencies, and what replaces what."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import answer_of
from tokenopt.errors import SpecError
from tokenopt.prices.currency import parse_rates, to_usd
from tokenopt.prices.merge import newest_offers
from tokenopt.prices.quotes import load_user_prices
from tokenopt.records import Offer, Source

Run = Callable[..., subprocess.CompletedProcess[str]]

WHOLE = """
[rates]
EUR = 1.10

[[offer]]
accelerator = "B200-SXM"
provider = "north"
instance_type = "8x B200"
regions = ["eu-1", "eu-2"]
currency = "eur"
chips = 8
per_instance_hr = 24.0
commitment_years = 3
upfront = 87600
egress_usd_per_gb = 0.05
storage_usd_per_gb_month = 0.02
as_of = 2026-11-01
note = "mail of 1 November"
tiers = [
    { minimum_chips = 64, per_instance_hr = 20.0 },
    { minimum_instances = 32, per_chip_hr = 2.0 },
]

[[offer]]
accelerator = "h100-sxm"
usd_per_chip_hr = 1.75
"""


@pytest.fixture
def prices(tmp_path: Path) -> Callable[[str], list[Offer]]:
    def load(text: str) -> list[Offer]:
        file = tmp_path / "prices.toml"
        file.write_text(text)
        return load_user_prices(file)

    return load


def test_tiers_regions_commitment_and_currency(prices: Callable[[str], list[Offer]]) -> None:
    offers = prices(WHOLE)
    b200 = [offer for offer in offers if offer.accelerator == "b200-sxm"]
    assert {(offer.region, offer.minimum_instances) for offer in b200} == {
        (region, least) for region in ("eu-1", "eu-2") for least in (1, 8, 32)
    }
    # 24 EUR x 1.10 / 8 = 3.30; upfront 87,600 EUR x 1.10 / 8 chips / 26,280 h = 0.458333.
    by_tier = {offer.minimum_instances: offer.usd_per_chip_hr for offer in b200}
    assert by_tier == {1: pytest.approx(3.758333), 8: pytest.approx(3.208333), 32: pytest.approx(2.658333)}
    first = b200[0]
    assert first.term == "reserved-3y"
    assert first.upfront_usd_per_chip == pytest.approx(12_045)
    assert (first.as_of, first.egress_usd_per_gb, first.storage_usd_per_gb_month) == ("2026-11-01", 0.05, 0.02)
    assert first.source.note == "mail of 1 November"
    (h100,) = [offer for offer in offers if offer.accelerator == "h100-sxm"]
    assert (h100.provider, h100.term, h100.usd_per_chip_hr, h100.chips_per_instance) == (
        "your quote",
        "rental",
        1.75,
        1,
    )


FAULTS = {
    "no accelerator": ("usd_per_chip_hr = 1", "accelerator is missing"),
    "no price": ('accelerator = "a"', "no price given"),
    "two prices": ('accelerator = "a"\nusd_per_chip_hr = 1\nper_chip_hr = 1', "usd_per_chip_hr and per_chip_hr given"),
    "unknown field": ('accelerator = "a"\nusd_per_hour = 1', "unknown field 'usd_per_hour'"),
    "negative": ('accelerator = "a"\nusd_per_chip_hr = -1', "expected a finite number"),
    "zero": ('accelerator = "a"\nusd_per_chip_hr = 0', "expected a number above 0"),
    "not a number": ('accelerator = "a"\nusd_per_chip_hr = nan', "expected a finite number"),
    "no rate": ('accelerator = "a"\ncurrency = "GBP"\nper_chip_hr = 1', "no rate for GBP"),
    "usd in euro": ('accelerator = "a"\ncurrency = "EUR"\nusd_per_chip_hr = 1', "is in USD but currency is EUR"),
    "instance without chips": ('accelerator = "a"\nusd_per_instance_hr = 8', "needs chips"),
    "upfront without years": ('accelerator = "a"\nusd_per_chip_hr = 1\nupfront_usd = 5', "needs commitment_years"),
    "odd term": ('accelerator = "a"\nusd_per_chip_hr = 1\nterm = "weekly"', "term is 'weekly'"),
    "terms disagree": ('accelerator = "a"\nusd_per_chip_hr = 1\nterm = "reserved-1y"\ncommitment_years = 3',
                       "commitment_years is 3"),
    "tiers": ('accelerator = "a"\nusd_per_chip_hr = 1\ntiers = 5', "tiers must be a list"),
    "date": ('accelerator = "a"\nusd_per_chip_hr = 1\nas_of = 5', "expected a date"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place(fault: str, prices: Callable[[str], list[Offer]]) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(SpecError, match=r"prices\.toml, offer 1") as caught:
        prices(f"[[offer]]\n{text}\n")
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["x = 1", "[[offers]]", "not toml at all [", "[rates]\nEUR = 0", "[rates]\nEUR = 'x'"])
def test_a_file_of_another_form_is_refused(text: str, prices: Callable[[str], list[Offer]]) -> None:
    with pytest.raises(SpecError, match=r"prices\.toml"):
        prices(text)


def test_own_prices_are_ranked_and_a_broken_file_is_told(tokenopt: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    env = {"TOKENOPT_PRICES_FILE": str(file)}
    base = ("search", "--model", "llama-3.1-8b", "--hardware", "h100-sxm", "--format", "json")
    missing = tokenopt(*base, env=env)
    assert "mine.toml cannot be read" in missing.stderr
    assert tokenopt(*base, "--strict", env=env).returncode == 1
    without = answer_of(missing)
    file.write_text('[[offer]]\naccelerator = "h100-sxm"\nprovider = "north"\nusd_per_chip_hr = 0.10\nchips = 8\n'
                    'tiers = [{ minimum_chips = 800, usd_per_chip_hr = 0.05 }]\n')  # fmt: skip
    small = answer_of(tokenopt(*base, "--target-tps", "1000", env=env))["best"][0]
    assert (small["offer"]["provider"], small["offer"]["usd_per_chip_hr"]) == ("north", 0.10)
    large = answer_of(tokenopt(*base, "--target-tps", "1e7", env=env))["best"][0]
    assert large["offer"]["usd_per_chip_hr"] == 0.05
    assert large["chips"] >= 800
    file.write_text('[[offer]]\naccelerator = "h100-sxm"\nusd_per_hour = 1\n')
    broken = tokenopt(*base, env=env)
    assert broken.returncode == 0
    assert "unknown field 'usd_per_hour'" in broken.stderr
    assert answer_of(broken)["best"] == without["best"]
    strict = tokenopt(*base, "--strict", env=env)
    assert strict.returncode == 1


def test_a_quote_on_the_command_line_comes_before_all(tokenopt: Run) -> None:
    found = answer_of(tokenopt("search", "--hardware", "b200-sxm", "--price", "b200-sxm=2.10", "--format", "json"))
    assert found["best"][0]["offer"]["usd_per_chip_hr"] == 2.10
    assert found["best"][0]["offer"]["provider"] == "your quote"


def test_rates_come_from_the_user_then_from_the_list() -> None:
    assert parse_rates(["eur=1.1", "CNY=0.14"]) == {"EUR": 1.1, "CNY": 0.14}
    assert to_usd(10, "USD", {"USD": 5.0}) == 10
    assert to_usd(10, "EUR", {"EUR": 1.1}, units_per_usd=0.5) == pytest.approx(11)
    assert to_usd(10, "EUR", {}, units_per_usd=0.5) == 20
    assert to_usd(10, "EUR", {}) is None
    for text in ("EUR", "EUR=0", "EUR=nan", "EURO=1", "=1", "EUR=-1"):
        with pytest.raises(SpecError, match="--rate"):
            parse_rates([text])


OFFER = Offer("h100-sxm", "aws", "p5", "us", "on-demand", 5.0, 8, "2026-11-01", Source("a", "third-party"))


def test_of_several_prices_of_one_thing_the_newest_counts() -> None:
    newer = replace(OFFER, usd_per_chip_hr=6.0, as_of="2026-11-02")
    vague = replace(OFFER, usd_per_chip_hr=1.0, as_of="2026")
    assert newest_offers([OFFER, newer, vague]) == [newer]
    assert newest_offers([newer, OFFER]) == [newer]
    assert newest_offers([replace(OFFER, provider="AWS"), newer]) == [newer]
    others = [replace(OFFER, region="eu"), replace(OFFER, term="spot"), replace(OFFER, chips_per_instance=1),
              replace(OFFER, minimum_instances=4)]  # fmt: skip
    assert newest_offers([OFFER, *others]) == [OFFER, *others]


def test_a_doubtful_price_never_takes_the_place_of_a_sure_one() -> None:
    doubtful = replace(OFFER, usd_per_chip_hr=0.5, as_of="2026-11-09", suspect="placeholder")
    assert newest_offers([OFFER, doubtful]) == [OFFER, doubtful]
