"""Owned hardware: what a chip-hour costs its owner. Names, defaults and their sources; the core computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from tokenopt.errors import MissingDataError, SpecError
from tokenopt.records import Accelerator

Convention = Literal["annuity", "straight_line"]
W_PER_KW = 1000.0


@dataclass(frozen=True, slots=True)
class Input:
    """One figure that goes in.

    Attributes:
        value: The figure, in the unit of its name.
        origin: Where it comes from: `yours`, or the source in words.
    """

    value: float | str
    origin: str


DEFAULTS: Mapping[str, Input] = {
    "networking_share": Input(0.0, "default: the purchase price is taken as all-in"),
    "spares_share": Input(0.0, "default: none"),
    "residual_share": Input(0.0, "default: none"),
    "years": Input(4.0, "default: InferenceMAX v1, owners of four years"),
    "wacc": Input(0.10, "default: within the 9% to 13% of neoclouds, recalled"),
    "convention": Input("annuity", "default"),
    "pue": Input(1.25, "default: between 1.2 and 1.3 of published calculators"),
    "idle_power_share": Input(0.35, "default: gpu-price-index calculator"),
    "usd_per_kwh": Input(0.08, "default: gpu-price-index calculator, 0.06 to 0.12 published"),
    "colocation_usd_per_kw_month": Input(0.0, "default: own facility inside PUE; published colocation 150 to 250"),
    "operations_share_per_year": Input(0.02, "default: assumed; 0.08 with support, network and staff published"),
    "operations_usd_per_year": Input(0.0, "default: none"),
    "repairs_share_per_year": Input(0.0, "default: under warranty"),
    "availability": Input(1.0, "default: no hour lost"),
    "utilization": Input(1.0, "default: every available hour used"),
}
"""Inputs that have a default, each with where it comes from. Purchase price and power have none: they are the chip's."""

TERMS = ("hardware", "networking", "spares", "financing", "energy", "colocation", "operations", "repairs")
"""Terms of the sum, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class TcoBreakdown:
    """What an available chip-hour costs; each term in USD per chip-hour.

    Attributes:
        hardware: Loss of value of chip and server.
        networking: Loss of value of network, storage and installation.
        spares: Loss of value of spares.
        financing: Cost of the capital that is tied up.
        energy: Electricity, facility overhead included.
        colocation: Rent of space, power and cooling.
        operations: Staff, support and maintenance.
        repairs: Failures that no warranty covers.
        usd_per_chip_hr: Sum of the terms.
        usd_per_used_chip_hr: The same per hour in which the chip is used.
        purchase_usd: The whole purchase per chip in service, USD.
        utility_kwh_per_hr: Electricity of one available hour, kWh.
    """

    hardware: float
    networking: float
    spares: float
    financing: float
    energy: float
    colocation: float
    operations: float
    repairs: float
    usd_per_chip_hr: float
    usd_per_used_chip_hr: float
    purchase_usd: float
    utility_kwh_per_hr: float


@dataclass(frozen=True, slots=True)
class TcoAnswer:
    """Inputs with their origins, the terms, and what a published rate implies.

    Attributes:
        inputs: Every figure that went in.
        breakdown: Every term that came out.
        implied_capex_usd: Purchase price at which the published rate would come out, USD per chip, None where none was
            asked about.
    """

    inputs: Mapping[str, Input]
    breakdown: TcoBreakdown
    implied_capex_usd: float | None = None


def owned_inputs(chip: Accelerator, given: Mapping[str, float | str]) -> dict[str, Input]:
    """All inputs for a chip: the caller's, else the catalogue's, else the default.

    Args:
        chip: Accelerator.
        given: Figures by name of the core's `TcoInputs`.

    Returns:
        Every input with its origin.

    Raises:
        SpecError: A name is unknown.
        MissingDataError: The catalogue has no purchase price or power of the chip and none is given.
    """
    legal = ("capex_usd", "kw", *DEFAULTS)
    unknown = sorted(set(given) - set(legal))
    if unknown:
        raise SpecError(f"unknown cost input {unknown[0]!r}", [f"inputs: {', '.join(legal)}"])
    inputs: dict[str, Input] = {}
    if "capex_usd" not in given:
        if chip.capex_usd is None:
            raise MissingDataError(
                f"nobody publishes a purchase price of {chip.key}", ["give it per chip with --capex USD"]
            )
        inputs["capex_usd"] = Input(chip.capex_usd, _catalogue(chip, "capex_usd"))
    if "kw" not in given:
        if chip.system_w is None:
            raise MissingDataError(
                f"nobody publishes the all-in power of {chip.key}",
                ["give it per chip with --kw, server and network included"],
            )
        inputs["kw"] = Input(chip.system_w / W_PER_KW, _catalogue(chip, "system_w"))
    for name, default in DEFAULTS.items():
        inputs.setdefault(name, default)
    inputs.update({name: Input(value, "yours") for name, value in given.items()})
    return {name: inputs[name] for name in legal}


def owned_cost(inputs: Mapping[str, Input], published_usd_per_chip_hr: float | None = None) -> TcoAnswer:
    """What an owned chip-hour costs, term by term.

    Args:
        inputs: From :func:`owned_inputs`.
        published_usd_per_chip_hr: A published rate to explain, USD per chip-hour.

    Returns:
        The answer.

    Raises:
        SpecError: An input cannot be used; names it and its range.
    """
    from tokenopt import _core

    problem = {
        "inputs": {name: item.value for name, item in inputs.items()},
        "published_usd_per_chip_hr": published_usd_per_chip_hr,
    }
    try:
        text = json.dumps(problem, allow_nan=False)
    except ValueError:
        bad = next(
            (name for name, item in inputs.items() if item.value != item.value or abs(float(item.value)) > 1e300), ""
        )
        raise SpecError(f"{bad or 'published_usd_per_chip_hr'} is not a finite number") from None
    answer: dict[str, Any] = json.loads(_core.tco(text))
    names = {field.name for field in fields(TcoBreakdown)}
    terms = {name: value for name, value in answer["breakdown"].items() if name in names}
    return TcoAnswer(dict(inputs), TcoBreakdown(**terms), answer["implied_capex_usd"])


def _catalogue(chip: Accelerator, field: str) -> str:
    source = chip.sources.get(field) or chip.sources.get("*")
    return f"catalogue: {source.reference} ({source.confidence})" if source else "catalogue"
