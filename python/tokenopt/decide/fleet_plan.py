"""What a fleet must serve and what it may be built from, read from a plan file and a demand curve."""

from __future__ import annotations

import csv
import fnmatch
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from tokenopt.errors import SpecError
from tokenopt.plugins import PluginRegistry
from tokenopt.records import Offer, Source, Term
from tokenopt.request import SURE_TERMS, UNSURE_TERMS, SearchRequest

COMMITTED_TERMS: tuple[Term, ...] = ("reserved-1y", "reserved-3y", "rental", "owned")
"""Terms whose chips are paid for in every hour of the plan, used or not; the others are paid by the hour."""

DEFAULT_SPOT_RISK = 0.1
"""Share of spot and marketplace capacity taken as lost to interruptions when the plan does not say. An assumption:
published interruption rates run from under 5% to over 20% a month, by region and type."""

_ANYWHERE = {"", "-"}
_REQUEST_FIELDS = frozenset(field.name for field in fields(SearchRequest)) - {
    "hardware", "vendor", "provider", "region", "term", "spot", "price", "target_tps", "target_rps", "top", "objective",
    "exhaustive", "max_chips",
}  # fmt: skip
_MAX_HOURS = 8784
_MAX_TPS = 1e12


@dataclass(frozen=True, slots=True)
class FleetWorkload:
    """One kind of traffic.

    Attributes:
        name: Name in the plan.
        request: Model, lengths and limits, as a search takes them.
        demand_tps: Output tokens/s wanted in each hour.
        regions: Globs of the regions that may serve it; empty = any.
    """

    name: str
    request: SearchRequest
    demand_tps: tuple[float, ...]
    regions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetOffer:
    """One source of capacity.

    Attributes:
        offer: Price and unit.
        max_instances: Most instances to be had, None = no limit known.
        usable_share: Share of its capacity that can be counted on (below 1 for spot).
    """

    offer: Offer
    max_instances: int | None = None
    usable_share: float = 1.0

    @property
    def is_committed(self) -> bool:
        """Whether it is paid in every hour."""
        return self.offer.term in COMMITTED_TERMS

    @property
    def label(self) -> str:
        """Name for people."""
        offer = self.offer
        parts = [offer.accelerator, offer.provider, offer.term, offer.region if offer.region not in _ANYWHERE else ""]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Everything a fleet decision needs.

    Attributes:
        workloads: What must be served.
        offers: What may be taken.
        hours: Hours of the plan.
        budget_usd: Most that the whole plan may cost, None = no limit.
        min_vendors: Least number of vendors with a share of at least `min_vendor_share`.
        min_vendor_share: Share of all delivered tokens that makes a vendor count.
        max_vendor_share: Most of the capacity that one vendor may hold, 1 = no limit.
        headroom: Extra capacity over demand in every hour, as a share.
    """

    workloads: tuple[FleetWorkload, ...]
    offers: tuple[FleetOffer, ...]
    hours: int
    budget_usd: float | None = None
    min_vendors: int = 1
    min_vendor_share: float = 0.1
    max_vendor_share: float = 1.0
    headroom: float = 0.0


def load_plan(file: Path, registry: PluginRegistry, demand: Path | None = None) -> FleetPlan:
    """Reads a plan.

    Args:
        file: TOML with `[plan]`, `[[workload]]` and, where wanted, `[offers]`, `[[offer]]`, `[[availability]]`.
        registry: Plugins that know accelerators and prices.
        demand: CSV with one line an hour and a column of output tokens/s for each workload.

    Returns:
        The plan, every name and number checked.

    Raises:
        SpecError: Names the file, the entry and what is legal.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"plan {file} cannot be read: {error}") from error
    _known(data, {"plan", "workload", "offers", "offer", "availability"}, file.name)
    plan = _table(data, "plan", file.name)
    _known(
        plan,
        {"hours", "budget_usd", "min_vendors", "min_vendor_share", "max_vendor_share", "headroom", "spot_risk"},
        f"{file.name} [plan]",
    )
    curves = _demand_curves(demand) if demand else {}
    hours = len(next(iter(curves.values()))) if curves else int(_number(plan, "hours", 1, 1, _MAX_HOURS, file.name))
    workloads = _workloads(data, curves, hours, file.name)
    spot_risk = _number(plan, "spot_risk", DEFAULT_SPOT_RISK, 0.0, 0.95, file.name)
    offers = _own_offers(data, registry, spot_risk, file.name) + _catalogue_offers(data, registry, spot_risk, file.name)
    offers = _limited(offers, data, file.name)
    if not offers:
        raise SpecError(f"{file.name}: no offer is left by [offers]", ["`tokenopt prices` lists what is known"])
    budget = plan.get("budget_usd")
    return FleetPlan(
        workloads=workloads,
        offers=offers,
        hours=hours,
        budget_usd=None if budget is None else _number(plan, "budget_usd", 0, 0.0, 1e15, file.name),
        min_vendors=int(_number(plan, "min_vendors", 1, 1, 100, file.name)),
        min_vendor_share=_number(plan, "min_vendor_share", 0.1, 1e-6, 1.0, file.name),
        max_vendor_share=_number(plan, "max_vendor_share", 1.0, 1e-6, 1.0, file.name),
        headroom=_number(plan, "headroom", 0.0, 0.0, 10.0, file.name),
    )


def _workloads(
    data: Mapping[str, Any], curves: Mapping[str, tuple[float, ...]], hours: int, where: str
) -> tuple[FleetWorkload, ...]:
    entries = data.get("workload")
    if not isinstance(entries, list) or not entries:
        raise SpecError(f"{where} has no [[workload]]")
    workloads: list[FleetWorkload] = []
    for index, entry in enumerate(entries):
        name = str(entry.get("name", f"workload-{index + 1}"))
        place = f"{where} workload {name}"
        _known(entry, _REQUEST_FIELDS | {"name", "demand_tps", "regions"}, place)
        if any(known.name == name for known in workloads):
            raise SpecError(f"{where} names workload {name!r} twice")
        demand = curves.get(name)
        if demand is None:
            given = entry.get("demand_tps")
            values = given if isinstance(given, list) else [given] * hours
            if given is None:
                raise SpecError(f"{place} has no demand_tps and the demand file no column of that name")
            if len(values) != hours:
                raise SpecError(f"{place}: demand_tps has {len(values)} entries for {hours} hours")
            demand = tuple(_number({"demand_tps": value}, "demand_tps", 0, 0.0, _MAX_TPS, place) for value in values)
        wanted = {key: value for key, value in entry.items() if key in _REQUEST_FIELDS}
        try:
            request = SearchRequest(**wanted)
        except TypeError as error:
            raise SpecError(f"{place}: {error}") from error
        workloads.append(FleetWorkload(name, request, demand, tuple(entry.get("regions", ()))))
    unknown = sorted(set(curves) - {workload.name for workload in workloads})
    if unknown:
        raise SpecError(f"the demand file has a column {unknown[0]!r}, but {where} has no such workload")
    return tuple(workloads)


def _demand_curves(file: Path) -> dict[str, tuple[float, ...]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"demand {file} cannot be read: {error}") from error
    if not rows or len(rows) > _MAX_HOURS:
        raise SpecError(f"demand {file} has {len(rows)} hours, expected 1 to {_MAX_HOURS}")
    names = [name for name in rows[0] if name and name.lower() not in ("hour", "time", "timestamp")]
    curves = {}
    for name in names:
        values = []
        for line, row in enumerate(rows, start=2):
            try:
                values.append(_number({name: float(row[name] or "nan")}, name, 0, 0.0, _MAX_TPS, f"{file} line {line}"))
            except (TypeError, ValueError):
                raise SpecError(f"{file} line {line}: {name} is {row[name]!r}, expected output tokens/s") from None
        curves[name] = tuple(values)
    if not curves:
        raise SpecError(f"demand {file} has no column besides the hour: one column a workload is expected")
    return curves


def _catalogue_offers(
    data: Mapping[str, Any], registry: PluginRegistry, spot_risk: float, where: str
) -> tuple[FleetOffer, ...]:
    scope = _table(data, "offers", where)
    _known(scope, {"hardware", "provider", "region", "terms", "catalogue"}, f"{where} [offers]")
    if scope.get("catalogue") is False:
        return ()
    terms = tuple(scope.get("terms", SURE_TERMS))
    unknown = [term for term in terms if term not in get_args(Term)]
    if unknown:
        raise SpecError(f"{where} [offers] terms holds {unknown[0]!r}, expected {', '.join(get_args(Term))}")
    cheapest: dict[tuple[str, str, int, int, str], Offer] = {}
    regional = bool(scope.get("region")) or any(entry.get("regions") for entry in data.get("workload", ()))
    for offer in registry.offers:
        chip = registry.accelerators.get(offer.accelerator)
        if chip is None or offer.suspect or offer.term not in terms or chip.status != "shipping":
            continue
        if not (
            _fits(offer.accelerator, scope.get("hardware", ()))
            and _fits(offer.provider, scope.get("provider", ()))
            and (offer.region in _ANYWHERE or _fits(offer.region, scope.get("region", ())))
        ):
            continue
        region = offer.region if regional else ""
        unit = (offer.accelerator, offer.term, offer.chips_per_instance, offer.fabric_chips or 0, region)
        known = cheapest.get(unit)
        if known is None or offer.usd_per_chip_hr < known.usd_per_chip_hr:
            cheapest[unit] = offer
    return tuple(_fleet_offer(cheapest[unit], None, spot_risk) for unit in sorted(cheapest))


def _own_offers(
    data: Mapping[str, Any], registry: PluginRegistry, spot_risk: float, where: str
) -> tuple[FleetOffer, ...]:
    offers = []
    for index, entry in enumerate(data.get("offer", ())):
        place = f"{where} offer {index + 1}"
        _known(
            entry,
            {"accelerator", "provider", "region", "term", "usd_per_chip_hr", "chips_per_instance", "max_instances",
             "minimum_instances", "as_of"},
            place,
        )  # fmt: skip
        chip = registry.accelerators.get(str(entry.get("accelerator", "")))
        if chip is None:
            raise SpecError(f"{place}: accelerator {entry.get('accelerator')!r} is not known")
        term = entry.get("term", "rental")
        if term not in get_args(Term):
            raise SpecError(f"{place}: term is {term!r}, expected {', '.join(get_args(Term))}")
        chips = int(_number(entry, "chips_per_instance", chip.chips_per_node, 1, 100_000, place))
        offer = Offer(
            accelerator=chip.key,
            provider=str(entry.get("provider", "own")),
            instance_type="",
            region=str(entry.get("region", "")),
            term=term,
            # What is owned may have been paid for long ago: its price may be 0.
            usd_per_chip_hr=_number(entry, "usd_per_chip_hr", math.nan, 0.0, 1e6, place),
            chips_per_instance=chips,
            as_of=str(entry.get("as_of", "")),
            source=Source(where, "assumed"),
            minimum_instances=int(_number(entry, "minimum_instances", 1, 1, 1_000_000, place)),
        )
        limit = entry.get("max_instances")
        most = None if limit is None else int(_number(entry, "max_instances", 0, 0, 10_000_000, place))
        offers.append(_fleet_offer(offer, most, spot_risk))
    return tuple(offers)


def _fleet_offer(offer: Offer, most: int | None, spot_risk: float) -> FleetOffer:
    return FleetOffer(offer, most, 1.0 - spot_risk if offer.term in UNSURE_TERMS else 1.0)


def _limited(offers: Sequence[FleetOffer], data: Mapping[str, Any], where: str) -> tuple[FleetOffer, ...]:
    limited = list(offers)
    for index, rule in enumerate(data.get("availability", ())):
        place = f"{where} availability {index + 1}"
        _known(rule, {"accelerator", "provider", "region", "term", "max_chips"}, place)
        most = _number(rule, "max_chips", math.nan, 0.0, 1e9, place)
        hits = 0
        for number, entry in enumerate(limited):
            offer = entry.offer
            if all(
                _fits(value, (rule[name],) if name in rule else ())
                for name, value in (
                    ("accelerator", offer.accelerator), ("provider", offer.provider), ("region", offer.region),
                    ("term", offer.term),
                )
            ):  # fmt: skip
                hits += 1
                limit = int(most // offer.chips_per_instance)
                known = entry.max_instances
                limited[number] = replace(entry, max_instances=limit if known is None else min(limit, known))
        if not hits:
            raise SpecError(f"{place} matches no offer")
    return tuple(limited)


def _fits(value: str, patterns: Sequence[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return not patterns or any(fnmatch.fnmatch(value.lower(), str(pattern).lower()) for pattern in patterns)


def may_serve(workload: FleetWorkload, entry: FleetOffer) -> bool:
    """Whether the region of an offer suits a workload."""
    return entry.offer.region in _ANYWHERE or _fits(entry.offer.region, workload.regions)


def _table(data: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: {name} is not a table")
    return value


def _known(entry: Any, legal: frozenset[str] | set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise SpecError(f"{where} is not a table")
    unknown = sorted(set(entry) - legal)
    if unknown:
        raise SpecError(f"{where} has no field {unknown[0]!r}", [f"fields: {', '.join(sorted(legal))}"])


def _number(entry: Mapping[str, Any], name: str, default: float, low: float, high: float, where: str) -> float:
    value = entry.get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise SpecError(f"{where}: {name} is {value!r}, expected a number from {low:g} to {high:g}")
    return float(value)
