"""`tokenopt tco`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tokenopt.cli.options import debug_option

if TYPE_CHECKING:
    from tokenopt.prices.tco import Input, PublishedCase, TcoAnswer
    from tokenopt.records import Offer

_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("--capex", "capex_usd", "Purchase price per chip with its share of the server, USD."),
    ("--network-share", "networking_share", "Network, storage and installation, share of the purchase price."),
    ("--spares-share", "spares_share", "Chips kept as spares, share of those in service."),
    ("--residual", "residual_share", "Value at the end, share of the purchase."),
    ("--years", "years", "Economic life, years."),
    ("--wacc", "wacc", "Weighted average cost of capital, per year."),
    ("--kw", "kw", "Power per chip with its share of server and network, kW."),
    ("--pue", "pue", "Facility power over IT power; 1 where --kw is utility power."),
    ("--idle-power", "idle_power_share", "Power when idle, share of --kw."),
    ("--kwh", "usd_per_kwh", "Electricity, USD per kWh."),
    ("--colo", "colocation_usd_per_kw_month", "Colocation, USD per kW and month, electricity apart."),
    ("--operations", "operations_share_per_year", "Staff, support, maintenance: share of the purchase per year."),
    ("--operations-usd", "operations_usd_per_year", "The same as a sum beside it, USD per chip and year."),
    ("--repairs", "repairs_share_per_year", "Failures outside warranty, share of the purchase price per year."),
    ("--availability", "availability", "Hours in which the chip works over all hours."),
    ("--utilization", "utilization", "Hours in which it is used over hours in which it works."),
)


def _cost_options(function: Any) -> Any:
    for flag, name, text in reversed(_OPTIONS):
        function = click.option(flag, name, type=float, help=text)(function)
    return function


@click.command("tco")
@click.option("--hardware", metavar="KEY", help="Accelerator key; needed unless --published is asked for alone.")
@_cost_options
@click.option("--convention", type=click.Choice(["annuity", "straight-line"]), help="How the purchase is spread.")
@click.option("--published", is_flag=True, help="Compare with published costs of owners: worked out again where their "
              "inputs are public, what they imply where they are not.")  # fmt: skip
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def command(
    hardware: str | None,
    convention: str | None,
    published: bool,
    output_format: str,
    debug: bool,  # noqa: ARG001
    **figures: float | None,
) -> None:
    """Work out what an owned chip costs per hour, every term visible.

    What you do not give comes from the catalogue or a default, and is shown with its source.
    """
    from tokenopt.errors import MissingDataError, SpecError
    from tokenopt.plugins import default_registry
    from tokenopt.prices.tco import owned_cost, owned_inputs, published_cases

    cases = published_cases() if published else []
    if hardware is None:
        if not published:
            raise SpecError("--hardware is missing: say which accelerator, or --published for published costs alone")
        if output_format == "json":
            click.echo(
                json.dumps({"schema": 1, "published_with_inputs": [_case_as_json(case) for case in cases]}, indent=2)
            )
        else:
            _print_cases(cases)
        return
    registry = default_registry()
    key = hardware.lower()
    cases = [case for case in cases if case.accelerator == key]
    if key not in registry.accelerators:
        raise MissingDataError(f"no accelerator {hardware!r}", ["`tokenopt hardware` lists them"])
    given: dict[str, float | str] = {name: value for name, value in figures.items() if value is not None}
    if convention:
        given["convention"] = convention.replace("-", "_")
    inputs = owned_inputs(registry.accelerators[key], given)
    answer = owned_cost(inputs)
    rates = (
        [offer for offer in registry.offers if offer.accelerator == key and offer.term == "owned"] if published else []
    )
    compared = [(offer, _implied(inputs, offer.usd_per_chip_hr)) for offer in rates]
    if output_format == "json":
        body = {"schema": 1, "hardware": key, **_as_json(answer, compared)}
        body["published_with_inputs"] = [_case_as_json(case) for case in cases]
        click.echo(json.dumps(body, indent=2))
        return
    _print(key, answer)
    if published:
        _print_published(key, answer, compared)
        if cases:
            _print_cases(cases)


def _implied(inputs: Mapping[str, Input], rate: float) -> float | None:
    from tokenopt.errors import SpecError
    from tokenopt.prices.tco import owned_cost

    try:
        return owned_cost(inputs, rate).implied_capex_usd
    except SpecError:
        # The published rate is below what all but the purchase costs here: no purchase price explains it.
        return None


def _as_json(answer: TcoAnswer, compared: list[tuple[Offer, float | None]]) -> dict[str, Any]:
    return {
        "inputs": {name: {"value": item.value, "origin": item.origin} for name, item in answer.inputs.items()},
        "breakdown": asdict(answer.breakdown),
        "published": [
            {
                "provider": offer.provider, "what": offer.instance_type, "usd_per_chip_hr": offer.usd_per_chip_hr,
                "source": offer.source.reference, "implied_capex_usd": implied,
            }
            for offer, implied in compared
        ],
    }  # fmt: skip


def _case_as_json(case: PublishedCase) -> dict[str, Any]:
    return {
        "accelerator": case.accelerator, "case": case.name, "source": case.source,
        "published_usd_per_used_chip_hr": case.usd_per_used_chip_hr, **_as_json(case.answer, []),
    }  # fmt: skip


def _print_cases(cases: Sequence[PublishedCase]) -> None:
    from tokenopt.report.tables import listing_console, plain_table

    console = listing_console()
    console.print(
        plain_table(
            [("published with its inputs", "left"), ("case", "left"), ("$/used chip-hr", "right"), ("here", "right"),
             ("difference", "right")],
            [
                [case.accelerator, case.name, f"{case.usd_per_used_chip_hr:.4f}",
                 f"{case.answer.breakdown.usd_per_used_chip_hr:.4f}",
                 f"{case.answer.breakdown.usd_per_used_chip_hr / case.usd_per_used_chip_hr - 1:+.2%}"]
                for case in cases
            ],
            console.width,
        )
    )  # fmt: skip
    for source in dict.fromkeys(case.source for case in cases):
        console.print(f"source: {source}; it counts 8,760 hours a year, tokenopt 8,766", soft_wrap=True)


def _print(key: str, answer: TcoAnswer) -> None:
    from tokenopt.prices.tco import TERMS
    from tokenopt.report.tables import listing_console, plain_table

    console = listing_console()
    flags = {name: flag for flag, name, _ in _OPTIONS} | {"convention": "--convention"}
    console.print(
        plain_table(
            [("input", "left"), ("value", "right"), ("change with", "left"), ("from", "left")],
            [
                [
                    name,
                    f"{item.value:,g}" if isinstance(item.value, float | int) else item.value,
                    flags[name],
                    item.origin,
                ]
                for name, item in answer.inputs.items()
            ],
            console.width,
        )
    )
    terms = asdict(answer.breakdown)
    total = answer.breakdown.usd_per_chip_hr
    console.print(
        plain_table(
            [("term", "left"), ("$/chip-hr", "right"), ("share", "right")],
            [[name, f"{terms[name]:.4f}", f"{terms[name] / total:.1%}"] for name in TERMS]
            + [["sum", f"{total:.4f}", ""]],
        )
    )
    console.print(
        f"{key}: ${total:.4f} per available chip-hour, ${answer.breakdown.usd_per_used_chip_hr:.4f} per used one; "
        f"purchase ${answer.breakdown.purchase_usd:,.0f} per chip, {answer.breakdown.utility_kwh_per_hr:.3f} kWh an hour",
        soft_wrap=True,
    )
    # The search has its own --utilization; the price of a used hour would count it twice.
    yours = " ".join(f"--tco {name}={item.value}" for name, item in answer.inputs.items() if item.origin == "yours")
    console.print(
        f"search with it: --term owned {yours}".rstrip() if yours else f"search with it: --price {key}={total:.4f}"
    )


def _print_published(key: str, answer: TcoAnswer, compared: list[tuple[Offer, float | None]]) -> None:
    from tokenopt.report.tables import listing_console, plain_table

    console = listing_console()
    if not compared:
        console.print(f"no published rate of owners of {key} is known")
        return
    console.print(
        plain_table(
            [("published", "left"), ("$/chip-hr", "right"), ("here", "right"), ("purchase that would give it", "right"),
             ("source", "left")],
            [
                [f"{offer.provider} {offer.instance_type}", f"{offer.usd_per_chip_hr:.3f}",
                 f"{answer.breakdown.usd_per_chip_hr:.3f}", f"${implied:,.0f}" if implied else "none",
                 offer.source.reference]
                for offer, implied in compared
            ],
            console.width,
        )
    )  # fmt: skip
    console.print(
        "Of these rates only the power and the life of four years are public; purchase price, cost of capital and power "
        "price are not, so they cannot be worked out again. The purchase price shown is what the inputs above would imply.",
        soft_wrap=True,
    )
