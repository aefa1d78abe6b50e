"""Why a record of a plugin cannot be used, in words. Types are checked before, by `tokenopt.catalog.plain`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tokenopt.records import (
    KV_FORMATS,
    PEAK_FORMATS,
    WEIGHT_FORMATS,
    Accelerator,
    Deployer,
    Engine,
    Measurement,
    Model,
    Offer,
    PriceSource,
)

PLAUSIBLE: Mapping[str, tuple[float, float]] = {
    "hbm_bytes": (1e8, 1e13),
    "hbm_bytes_per_s": (1e11, 1e17),
    "tdp_w": (20.0, 50_000.0),
    "system_w": (20.0, 100_000.0),
    "capex_usd": (50.0, 1e7),
    "matmul_flops": (1e12, 1e17),
    "scale_up_bytes_per_s": (0.0, 1e13),
    "scale_out_bytes_per_s": (0.0, 1e13),
    "chips_per_node": (1, 1024),
    "scale_up_domain_chips": (1, 100_000),
    "launch_year": (2015, 2035),
}
"""Bounds of an accelerator's figures; outside them a unit was mistaken (GB for bytes, Gbit for GB)."""

PLAUSIBLE_PEAK = (1e12, 1e17)
"""Bounds of a dense peak, FLOP/s."""

MAX_USD_PER_CHIP_HR = 100_000.0

FIGURES = (
    "hbm_bytes",
    "hbm_bytes_per_s",
    "peak_flops",
    "scale_up_bytes_per_s",
    "scale_up_domain_chips",
    "scale_out_bytes_per_s",
    "chips_per_node",
    "tdp_w",
    "system_w",
    "capex_usd",
    "matmul_flops",
)
"""Fields of an accelerator that need a source."""

_KEY = re.compile(r"[a-z0-9][a-z0-9._+-]*")


def accelerator_refusal(record: Accelerator) -> str:
    """Why an accelerator record cannot be used; empty when it can."""
    if not _KEY.fullmatch(record.key):
        return f"key {record.key!r} must be lower case, of letters, digits, dots and dashes"
    for name in ("vendor", "name", "family"):
        if not getattr(record, name).strip():
            return f"{record.key}: {name} is empty"
    for name, (low, high) in PLAUSIBLE.items():
        value = getattr(record, name)
        if value is None:
            continue
        if low > 0 and value <= 0:
            return f"{record.key}: {name} is {value}, expected a finite number above 0"
        if not low <= value <= high:
            return f"{record.key}: {name} is {value:g}, outside {low:g} to {high:g}: is the unit right?"
    return _peak_refusal(record) or _source_refusal(record)


def _peak_refusal(record: Accelerator) -> str:
    if "bf16" not in record.peak_flops:
        return f"{record.key}: peak_flops has no bf16 figure"
    if record.matmul_flops is not None and record.matmul_flops > record.peak_flops["bf16"]:
        return f"{record.key}: matmul_flops is {record.matmul_flops:g}, above its 16-bit peak"
    low, high = PLAUSIBLE_PEAK
    for name, value in record.peak_flops.items():
        if name not in PEAK_FORMATS:
            return f"{record.key}: peak_flops has the unknown format {name!r}, known are {', '.join(PEAK_FORMATS)}"
        if value <= 0:
            return f"{record.key}: peak_flops.{name} is {value}, expected a finite number above 0"
        if not low <= value <= high:
            return (
                f"{record.key}: peak_flops.{name} is {value:g}, outside {low:g} to {high:g} FLOP/s: is the unit right?"
            )
    return ""


def _source_refusal(record: Accelerator) -> str:
    named = set(record.sources)
    unknown = sorted(named - {"*", *FIGURES, *(f"peak_flops.{name}" for name in record.peak_flops)})
    if unknown:
        return f"{record.key}: a source is given for {unknown[0]!r}, which is no figure of it"
    if "*" in named:
        return ""
    missing = [name for name in FIGURES if getattr(record, name) is not None and name not in named]
    if missing == ["peak_flops"] and all(f"peak_flops.{name}" in named for name in record.peak_flops):
        return ""
    return f"{record.key}: no source for {missing[0]}; a figure without a source is refused" if missing else ""


def offer_refusal(record: Offer) -> str:
    """Why an offer cannot be used; empty when it can."""
    where = f"{record.provider} {record.instance_type} for {record.accelerator}"
    if not record.accelerator.strip() or not record.provider.strip():
        return f"{where}: an offer needs an accelerator and a provider"
    if not 0 < record.usd_per_chip_hr <= MAX_USD_PER_CHIP_HR:
        return (
            f"{where}: usd_per_chip_hr is {record.usd_per_chip_hr}, "
            f"expected a finite number above 0 and at most {MAX_USD_PER_CHIP_HR:,.0f}"
        )
    if record.chips_per_instance < 1 or record.minimum_instances < 1:
        return f"{where}: chips_per_instance and minimum_instances must be at least 1"
    if record.fabric_chips is not None and record.fabric_chips < 1:
        return f"{where}: fabric_chips is {record.fabric_chips}, expected at least 1"
    for name in ("upfront_usd_per_chip", "egress_usd_per_gb", "storage_usd_per_gb_month"):
        value = getattr(record, name)
        if value is not None and value < 0:
            return f"{where}: {name} is {value}, expected at least 0"
    return "" if record.as_of.strip() else f"{where}: as_of is empty, say when the price was seen"


def engine_refusal(record: Engine) -> str:
    """Why an engine cannot be used; empty when it can."""
    if not _KEY.fullmatch(record.name):
        return f"engine name {record.name!r} must be lower case, of letters, digits, dots and dashes"
    if not record.vendor.strip() or not record.as_of.strip():
        return f"{record.name}: vendor and as_of must not be empty"
    for name, formats, known in (
        ("weight_formats", record.weight_formats, WEIGHT_FORMATS),
        ("kv_formats", record.kv_formats, KV_FORMATS),
    ):
        unknown = [item for item in formats if item not in known]
        if unknown or not formats:
            return f"{record.name}: {name} is {', '.join(formats) or 'empty'}, expected some of {', '.join(known)}"
    return ""


def model_refusal(record: Model) -> str:
    """Why a model cannot be used; empty when it can. Asks the core to count it."""
    from tokenopt.catalog.models import count_parameters
    from tokenopt.errors import TokenoptError

    if not _KEY.fullmatch(record.key):
        return f"key {record.key!r} must be lower case, of letters, digits, dots and dashes"
    try:
        total = count_parameters(record.architecture)["total_parameters"]
    except TokenoptError as error:
        return f"{record.key}: the architecture cannot be counted: {error.message}"
    return "" if total > 0 else f"{record.key}: the architecture has no parameters"


def measurement_refusal(record: Measurement) -> str:
    """Why a measurement cannot be used; empty when it can."""
    return "" if record.id.strip() else "a measurement has no id"


def deployer_refusal(record: Deployer) -> str:
    """Why a deployer cannot be used; empty when it can."""
    return "" if _KEY.fullmatch(record.name) else f"deployer name {record.name!r} must be lower case"


def price_source_refusal(record: PriceSource) -> str:
    """Why a price source cannot be used; empty when it can."""
    return "" if _KEY.fullmatch(record.name) else f"price source name {record.name!r} must be lower case"
