"""Owned hardware: what a chip-hour costs its owner. Names, defaults and their sources; the core computes."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Literal

from tokenopt.errors import MissingDataError, SpecError
from tokenopt.records import Accelerator, Offer, Source

Convention = Literal["annuity", "straight_line"]
W_PER_KW = 1000.0
SYSTEM_OVER_TDP = 1.5
"""All-in power of a chip with its share of host and network over the chip alone, where nobody publishes it. Published
pairs (1,370 W for a 700 W chip, 1,710 W for 1,000 W, 2,120 W for 1,400 W) lie between 1.5 and 2."""
_PUBLISHED = Path(__file__).parent / "data" / "published_tco.toml"


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
        MissingDataError: The catalogue has no purchase price of the chip and none is given.
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
        if chip.system_w is not None:
            inputs["kw"] = Input(chip.system_w / W_PER_KW, _catalogue(chip, "system_w"))
        else:
            assumed = f"assumed: {SYSTEM_OVER_TDP:g} x TDP, nobody publishes the all-in power"
            inputs["kw"] = Input(chip.tdp_w * SYSTEM_OVER_TDP / W_PER_KW, assumed)
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
            (name for name, item in inputs.items() if isinstance(item.value, float) and not math.isfinite(item.value)),
            "",
        )
        raise SpecError(f"{bad or 'published_usd_per_chip_hr'} is not a finite number") from None
    answer: dict[str, Any] = json.loads(_core.tco(text))
    names = {field.name for field in fields(TcoBreakdown)}
    terms = {name: value for name, value in answer["breakdown"].items() if name in names}
    return TcoAnswer(dict(inputs), TcoBreakdown(**terms), answer["implied_capex_usd"])


@dataclass(frozen=True, slots=True)
class PublishedCase:
    """An ownership cost that was published with every input.

    Attributes:
        accelerator: Accelerator key.
        name: What was worked out.
        source: Where it was read.
        usd_per_used_chip_hr: As published, USD per chip-hour in which the chip is used.
        answer: The same inputs, worked out here.
    """

    accelerator: str
    name: str
    source: str
    usd_per_used_chip_hr: float
    answer: TcoAnswer


def published_cases() -> list[PublishedCase]:
    """Every published cost whose inputs are public, worked out again."""
    document = tomllib.loads(_PUBLISHED.read_text(encoding="utf-8"))
    cases: list[PublishedCase] = []
    for entry in document["case"]:
        stated = {**document["common"], **entry["inputs"]}
        inputs = {name: Input(value, "published") for name, value in stated.items()}
        # What the publication does not have is nothing, not our default.
        for name, default in DEFAULTS.items():
            neutral = default.value if isinstance(default.value, str) else _NEUTRAL.get(name, 0.0)
            inputs.setdefault(name, Input(neutral, "not in the publication"))
        cases.append(
            PublishedCase(
                entry["accelerator"],
                entry["name"],
                document["source"],
                entry["usd_per_used_chip_hr"],
                owned_cost(inputs),
            )
        )
    return cases


_NEUTRAL = {"pue": 1.0, "idle_power_share": 1.0, "availability": 1.0, "utilization": 1.0}


def owned_offer(chip: Accelerator, given: Mapping[str, float | str], today: date) -> Offer | None:
    """What a chip costs its owner, as an offer for whole nodes; None where its purchase price is not known.

    Args:
        chip: Accelerator.
        given: The user's inputs, by name; those written `KEY:NAME` are for one accelerator alone.
        today: Day of the offer.

    Returns:
        An offer of term `owned` at the price of an available chip-hour.

    Raises:
        SpecError: An input is unknown or out of range.
    """
    mine = {name: value for name, value in given.items() if ":" not in name}
    own = {name.partition(":")[2]: value for name, value in given.items() if name.partition(":")[0] == chip.key}
    try:
        inputs = owned_inputs(chip, {**mine, **own})
    except MissingDataError:
        return None
    capex, kw = inputs["capex_usd"], inputs["kw"]
    words = f"{capex.value:,g} USD and {kw.value:g} kW per chip ({capex.origin})"
    return Offer(
        accelerator=chip.key, provider="your TCO" if given else "TCO model", instance_type="owned", region="",
        term="owned", usd_per_chip_hr=owned_cost(inputs).breakdown.usd_per_chip_hr,
        chips_per_instance=chip.chips_per_node, as_of=today.isoformat(),
        source=Source("tokenopt tco", "derived", as_of=today.isoformat(), note=words),
    )  # fmt: skip


def _catalogue(chip: Accelerator, field: str) -> str:
    source = chip.sources.get(field) or chip.sources.get("*")
    if source is None:
        return "catalogue"
    return f"catalogue: {source.reference} ({source.confidence})" + (f"; {source.note}" if source.note else "")
