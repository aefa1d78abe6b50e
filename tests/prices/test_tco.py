"""The owner's cost: every input visible, published costs worked out again, ranked with `--term owned`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import date

import pytest

import tokenopt as package
from tests.conftest import answer_of
from tokenopt.errors import MissingDataError, SpecError
from tokenopt.plugins import PluginRegistry
from tokenopt.prices.tco import DEFAULTS, TERMS, owned_cost, owned_inputs, owned_offer, published_cases

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("case", published_cases(), ids=lambda case: case.accelerator)
def test_published_costs_with_public_inputs_come_out_again(case) -> None:  # type: ignore[no-untyped-def]
    # The publication counts 730 hours a month (8,760 a year), tokenopt 8,766: 0.07% apart and not more.
    assert case.answer.breakdown.usd_per_used_chip_hr == pytest.approx(case.usd_per_used_chip_hr, rel=8e-4)


def test_every_input_is_shown_with_where_it_comes_from(registry: PluginRegistry, tokenopt: Run) -> None:
    shown = tokenopt("tco", "--hardware", "h100-sxm", "--kwh", "0.05", width=200)
    assert shown.returncode == 0, shown.stderr
    for name in (*DEFAULTS, "capex_usd", "kw"):
        (line,) = [line for line in shown.stdout.splitlines() if line.split() and line.split()[0] == name]
        assert "--" in line
        assert any(word in line for word in ("default", "catalogue", "yours")), line
    for term in TERMS:
        assert any(line.split() and line.split()[0] == term for line in shown.stdout.splitlines())
    assert "street price of the GPU alone" in " ".join(shown.stdout.split())


def test_every_input_can_be_overridden(tokenopt: Run) -> None:
    command = ("tco", "--hardware", "b200-sxm", "--format", "json")
    # Power when idle matters only to a chip that sometimes is.
    base = answer_of(tokenopt(*command, "--utilization", "0.8"))
    assert base["inputs"]["usd_per_kwh"]["origin"].startswith("default")
    flags = {
        "--capex": 50000, "--network-share": 0.2, "--spares-share": 0.05, "--residual": 0.1, "--years": 5, "--wacc": 0.12,
        "--kw": 2.0, "--pue": 1.4, "--idle-power": 0.5, "--kwh": 0.2, "--colo": 150, "--operations": 0.08,
        "--operations-usd": 500, "--repairs": 0.03, "--availability": 0.95, "--utilization": 0.6,
    }  # fmt: skip
    for flag, value in flags.items():
        changed = answer_of(tokenopt(*command, "--utilization", "0.8", flag, str(value)))
        assert changed["breakdown"] != base["breakdown"], flag
        assert value in [item["value"] for item in changed["inputs"].values() if item["origin"] == "yours"]
    straight = answer_of(tokenopt(*command, "--utilization", "0.8", "--convention", "straight-line"))
    assert straight["breakdown"]["financing"] < base["breakdown"]["financing"]
    assert straight["breakdown"]["hardware"] == base["breakdown"]["hardware"]
    assert set(flags) | {"--convention"} == {
        line.split()[0] for line in tokenopt("tco", "--help").stdout.splitlines() if line.strip().startswith("--")
    } - {"--hardware", "--published", "--format", "--debug"}  # fmt: skip


def test_utilization_and_availability_are_kept_apart(registry: PluginRegistry) -> None:
    chip = registry.accelerators["h100-sxm"]

    def cost(**given: float):  # type: ignore[no-untyped-def]
        return owned_cost(owned_inputs(chip, given)).breakdown

    half_used = cost(utilization=0.5, idle_power_share=1.0)
    full = cost(idle_power_share=1.0)
    assert half_used.usd_per_chip_hr == full.usd_per_chip_hr, "an available hour costs the same, used or not"
    assert half_used.usd_per_used_chip_hr == pytest.approx(2 * full.usd_per_used_chip_hr)
    half_up = cost(availability=0.5)
    assert half_up.energy == cost().energy, "no energy is drawn in hours out of service"
    assert half_up.hardware == pytest.approx(2 * cost().hardware)


def test_rates_whose_inputs_are_not_public_are_said_to_be_so(tokenopt: Run) -> None:
    shown = tokenopt("tco", "--hardware", "mi300x", "--capex", "25524", "--published", width=200)
    assert "semianalysis-tco owned (hyperscaler)" in shown.stdout
    assert "cannot be worked out again" in shown.stdout
    assert "12 GPUs in 2 servers" in shown.stdout
    both = answer_of(tokenopt("tco", "--hardware", "h100-sxm", "--published", "--format", "json"))
    assert {rate["usd_per_chip_hr"] for rate in both["published"]} == {1.3, 1.69}
    assert [case["case"] for case in both["published_with_inputs"]] == ["64 GPUs in 8 servers, used 70% of the time"]
    alone = answer_of(tokenopt("tco", "--published", "--format", "json"))
    assert len(alone["published_with_inputs"]) == 5


def test_what_is_missing_is_asked_for(registry: PluginRegistry, tokenopt: Run) -> None:
    with pytest.raises(MissingDataError, match="nobody publishes a purchase price of mi355x"):
        owned_inputs(registry.accelerators["mi355x"], {})
    with pytest.raises(SpecError, match="unknown cost input 'kwatt'"):
        owned_inputs(registry.accelerators["h100-sxm"], {"kwatt": 1.0})
    assert tokenopt("tco").returncode == 2
    assert tokenopt("tco", "--hardware", "h1000").returncode == 1
    bad = tokenopt("tco", "--hardware", "h100-sxm", "--years", "0")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "years" in bad.stderr
    for flag in ("--kwh", "--pue", "--utilization"):
        refused = tokenopt("tco", "--hardware", "h100-sxm", flag, "nan")
        assert refused.returncode == 2
        assert "is not a finite number" in refused.stderr


def test_power_that_nobody_publishes_is_assumed_in_the_open(registry: PluginRegistry) -> None:
    chip = registry.accelerators["gaudi3"]
    assert chip.system_w is None
    kw = owned_inputs(chip, {})["kw"]
    assert "assumed" in kw.origin
    assert float(kw.value) > chip.tdp_w / 1000


def test_the_owners_cost_is_ranked(registry: PluginRegistry) -> None:
    published = package.search(model="llama-3.1-70b", term="owned", slo_ms=100)
    providers = {solution.accelerator: solution.offer.provider for solution in published.by_accelerator}
    assert providers["mi355x"] == "semianalysis-tco"
    assert providers["gaudi3"] == "TCO model"
    yours = package.search(model="llama-3.1-70b", term="owned", slo_ms=100, tco={"usd_per_kwh": 0.05})
    offers = {solution.accelerator: solution.offer for solution in yours.by_accelerator}
    assert {offer.provider for offer in offers.values()} == {"your TCO"}
    assert "mi355x" in yours.without_price
    expected = owned_cost(owned_inputs(registry.accelerators["h100-sxm"], {"usd_per_kwh": 0.05}))
    assert offers["h100-sxm"].usd_per_chip_hr == pytest.approx(expected.breakdown.usd_per_chip_hr)
    own = package.search(
        model="llama-3.1-70b", term="owned", slo_ms=100, hardware=["mi355x", "h100-sxm"],
        tco={"mi355x:capex_usd": 33000.0},
    )  # fmt: skip
    assert {solution.accelerator for solution in own.by_accelerator} == {"mi355x", "h100-sxm"}


def test_flags_and_their_faults(tokenopt: Run) -> None:
    base = ("search", "--model", "llama-3.1-8b", "--hardware", "h100-sxm", "--format", "json")
    cheap = answer_of(
        tokenopt(*base, "--term", "owned", "--tco", "usd_per_kwh=0.01", "--tco", "h100-sxm:capex_usd=9000")
    )
    dear = answer_of(tokenopt(*base, "--term", "owned", "--tco", "convention=straight-line"))
    assert cheap["best"][0]["usd_per_m_tokens"] < dear["best"][0]["usd_per_m_tokens"]
    assert dear["problem"]["scope"]["tco"] == {"convention": "straight_line"}
    for flags, message in (
        (("--tco", "years=5"), "add --term owned"),
        (("--term", "owned", "--tco", "years"), "expected NAME=VALUE"),
        (("--term", "owned", "--tco", "yeers=5"), "unknown cost input 'yeers'"),
        (("--term", "owned", "--tco", "h1000:years=5"), "unknown accelerator 'h1000'"),
        (("--term", "owned", "--tco", "years=nan"), "years"),
    ):
        process = tokenopt(*base, *flags)
        assert process.returncode == 2, flags
        assert message in process.stderr
        assert "Traceback" not in process.stderr


def test_an_owned_offer_is_for_whole_nodes(registry: PluginRegistry) -> None:
    offer = owned_offer(registry.accelerators["h100-sxm"], {}, date(2026, 11, 1))
    assert offer is not None
    assert (offer.chips_per_instance, offer.term, offer.as_of) == (8, "owned", "2026-11-01")
    assert "30,000 USD" in offer.source.note
    assert owned_offer(registry.accelerators["tpu-v7"], {}, date(2026, 11, 1)) is None
    assert json.dumps(offer.source.note)
