"""The measured basis of a search: what was measured within the limits, at the prices of the search.

Points come from the bundled measurements, from plugins, and from the user's own store. Between the points of one stack
operation is interpolated, never beyond them; fleets and money are the core's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenopt.errors import InfeasibleError, MissingDataError
from tokenopt.measured.bundled import bundled_points
from tokenopt.measured.curves import Limits, MeasuredPoint, Operation, matching_points, operations, shapes
from tokenopt.measured.store import read_points
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import CompiledProblem, SearchRequest

_PREFIX_TOLERANCE = 0.05
_MOST_SHAPES = 6


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A measured point that an answer rests on.

    Attributes:
        layout: Degrees or workers; empty where the source prints none.
        chips: Chips of the deployment, None where not printed.
        concurrency: Requests in flight, None where not printed.
        tps_per_user: Output tokens/s of a user.
        output_tps_per_chip: Output tokens/s per chip.
        source: Who published it.
        source_ref: Row, run or address.
        measured_on: Day, empty where not known.
    """

    layout: str
    chips: float | None
    concurrency: float | None
    tps_per_user: float
    output_tps_per_chip: float
    source: str
    source_ref: str
    measured_on: str


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """The cheapest measured operation of one accelerator within the limits.

    Attributes:
        accelerator, vendor: Which chip.
        provider, instance_type, term, usd_per_chip_hr, price_as_of: The price it was costed with.
        engine, engine_version, weight_precision, mode, speculative: The stack as it was measured.
        layout: Of the slower neighbour; empty where the source prints none.
        concurrency: Requests in flight, None where not printed or between layouts.
        replicas, instances, chips: The fleet, whole instances.
        output_tps, output_tps_per_chip, tps_per_user: Throughput.
        ttft_ms, tpot_ms, e2e_ms: Latency; None where the source prints no time to first token.
        usd_per_m_output_tokens, usd_per_m_tokens, usd_per_m_input_tokens, usd_per_request, usd_per_hr: Money.
        kwh_per_m_tokens: Energy.
        is_interpolated: Whether it lies between two points.
        is_mix: Whether those have different layouts.
        between: The point, or the two neighbours.
        assumed: What had to be assumed, empty = nothing.
    """

    accelerator: str
    vendor: str
    provider: str
    instance_type: str
    region: str
    term: str
    usd_per_chip_hr: float
    price_as_of: str
    price_source: str
    engine: str
    engine_version: str
    weight_precision: str
    kv_precision: str
    mode: str
    speculative: str
    layout: str
    tp: int
    pp: int
    ep: int
    attn_dp: int
    concurrency: float | None
    replicas: int
    instances: int
    chips: int
    replica_chips: int
    output_tps: float
    output_tps_per_chip: float
    tps_per_user: float
    ttft_ms: float | None
    tpot_ms: float
    e2e_ms: float | None
    usd_per_m_output_tokens: float
    usd_per_m_tokens: float
    usd_per_m_input_tokens: float
    usd_per_request: float
    usd_per_hr: float
    kwh_per_m_tokens: float
    is_interpolated: bool
    is_mix: bool
    between: tuple[Neighbour, ...]
    assumed: str

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict."""
        return asdict(self)


def all_rows(model: str, registry: PluginRegistry) -> list[Mapping[str, Any]]:
    """Measured rows of a model: bundled ones, those of plugins, and the user's store."""
    rows: list[Mapping[str, Any]] = list(bundled_points(model))
    for measurement in registry.measurements:
        if measurement.values.get("model") == model:
            rows.append({"source": measurement.source.reference, "source_ref": measurement.id, **measurement.values})
    rows += read_points(model=model, kind="serving")
    return rows


def measured_answers(problem: CompiledProblem, registry: PluginRegistry) -> list[MeasuredAnswer]:
    """The cheapest measured operation of every accelerator of a problem, cheapest first; empty where nothing fits."""
    return _answers(problem, all_rows(problem.model.key, registry))


def required_answers(problem: CompiledProblem, registry: PluginRegistry) -> list[MeasuredAnswer]:
    """The same, for a search that asks for measurements alone.

    Raises:
        MissingDataError: Nothing was measured for this model, shape and scope.
        InfeasibleError: What was measured does not meet the limits; the nearest miss is named.
    """
    rows = all_rows(problem.model.key, registry)
    answers = _answers(problem, rows)
    if answers:
        return answers
    workload = problem.core["workload"]
    points = _points(problem, rows)
    place = f"{problem.model.key} at {workload['isl']:g}/{workload['osl']:g}"
    if not points:
        listed = ", ".join(f"{isl:.0f}/{osl:.0f} ({count})" for isl, osl, count in shapes(rows)[:_MOST_SHAPES])
        raise MissingDataError(
            f"nothing measured of {place} tokens in and out is known in this scope",
            [f"shapes with points: {listed}" if listed else f"no closed-loop point of {problem.model.key} is known",
             "`tokenopt measured import FILE` adds measurements; --basis calibrated predicts"],
        )  # fmt: skip
    limits = _limits(problem)
    nearest = min(points, key=lambda point: _excess(point, limits, workload["osl"]))
    raise InfeasibleError(
        f"no measured point of {place} meets the limits: the nearest, {nearest.stack[0]} with {nearest.stack[1]} "
        f"{nearest.layout}".rstrip()
        + f", has {nearest.tpot_s * 1e3:,.4g} ms per token and "
        + (f"{nearest.ttft_s * 1e3:,.4g} ms to the first" if nearest.ttft_s else "no printed time to the first"),
        ["measurements are never extrapolated; --basis calibrated predicts beyond them"],
    )


def _excess(point: MeasuredPoint, limits: Limits, osl: float) -> float:
    excess = point.tpot_s / limits.tpot_s if limits.tpot_s else 0.0
    if limits.ttft_s:
        excess = max(excess, (point.ttft_s or 1e9) / limits.ttft_s)
    if limits.e2e_s:
        excess = max(excess, ((point.ttft_s or 1e9) + point.tpot_s * (osl - 1)) / limits.e2e_s)
    return excess


def _limits(problem: CompiledProblem) -> Limits:
    limits = problem.core["limits"]
    per_token = [value for value in (limits["tpot_s"],) if value]
    if limits["min_tps_per_user"]:
        per_token.append(1.0 / limits["min_tps_per_user"])
    return Limits(min(per_token, default=None), limits["ttft_s"], limits["e2e_s"])


def _points(problem: CompiledProblem, rows: Sequence[Mapping[str, Any]]) -> list[MeasuredPoint]:
    """Points of the problem's shape on its accelerators, within what the user asked to compare."""
    workload, request = problem.core["workload"], problem.request
    keys = {chip["key"] for chip in problem.core["accelerators"]}
    chosen = [row for row in rows if row.get("accelerator") in keys and _is_in_scope(row, request)]
    return matching_points(chosen, workload["isl"], workload["osl"])


def _is_in_scope(row: Mapping[str, Any], request: SearchRequest) -> bool:
    if request.engine:
        name, _, as_of = request.engine.partition("@")
        if name not in (row.get("engine"), str(row.get("engine")).removeprefix("dynamo-")):
            return False
        if as_of and str(row.get("measured_on") or "9999") > as_of + "~":
            return False
    wanted = request.precision
    if wanted and wanted != "native" and _family(wanted) != _family(str(row.get("weight_precision") or "")):
        return False
    for name in ("tp", "pp", "ep", "attn_dp"):
        allowed = getattr(request, name)
        if allowed and row.get(name) and row[name] not in allowed:
            return False
    return abs(float(row.get("prefix_hit") or 0.0) - request.prefix_hit) <= _PREFIX_TOLERANCE


def _family(precision: str) -> str:
    """Formats of one width: benchmarks print fp4 for every four-bit float."""
    return "fp4" if precision in ("fp4", "nvfp4", "mxfp4") else precision


def _answers(problem: CompiledProblem, rows: Sequence[Mapping[str, Any]]) -> list[MeasuredAnswer]:
    osl = problem.core["workload"]["osl"]
    points = _points(problem, rows)
    if not points:
        return []
    places = operations(points, _limits(problem), osl)
    best: dict[str, MeasuredAnswer] = {}
    most_chips = problem.core["limits"]["max_chips"]
    for place, fleet in zip(places, price(problem, places), strict=True):
        if fleet is None or (most_chips is not None and fleet["chips"] > most_chips):
            continue
        answer = _named(problem, place, fleet)
        known = best.get(answer.accelerator)
        if known is None or (answer.usd_per_m_tokens, answer.tpot_ms) < (known.usd_per_m_tokens, known.tpot_ms):
            best[answer.accelerator] = answer
    return sorted(best.values(), key=lambda answer: (answer.usd_per_m_tokens, answer.accelerator))


def price(problem: CompiledProblem, places: Sequence[Operation]) -> list[dict[str, Any] | None]:
    """Fleets and money of measured operation, from the core."""
    from tokenopt import _core

    used = {place.between[0].stack[0] for place in places}
    accelerators = [chip for chip in problem.core["accelerators"] if chip["key"] in used]
    index = {chip["key"]: number for number, chip in enumerate(accelerators)}
    question = {
        "workload": problem.core["workload"],
        "demand": problem.core["demand"],
        "accelerators": accelerators,
        "replicas": [
            {"accelerator": index[place.between[0].stack[0]], "chips": round(place.chips or 1),
             "output_tps": place.output_tps_per_chip * round(place.chips or 1)}
            for place in places
        ],
    }  # fmt: skip
    fleets: list[dict[str, Any] | None] = json.loads(_core.price(json.dumps(question)))
    return fleets


def _named(problem: CompiledProblem, place: Operation, fleet: Mapping[str, Any]) -> MeasuredAnswer:
    point = place.between[0]
    row = point.row
    chip = next(stack.accelerator for stack in problem.stacks if stack.accelerator.key == point.stack[0])
    offer = problem.offers[fleet["offer"]]
    osl = problem.core["workload"]["osl"]
    e2e_s = place.ttft_s + place.tpot_s * (osl - 1) if place.ttft_s is not None else None
    notes = []
    if place.chips is None:
        notes.append("the source prints no chip count: priced per chip")
    if place.is_mix:
        notes.append("between two layouts: a mix of both")
    if (
        str(row.get("source") or "").startswith("InferenceX")
        and row.get("total_tps_per_chip")
        and not row.get("output_tps")
    ):
        notes.append("output share of the printed total from the nominal lengths")
    return MeasuredAnswer(
        accelerator=chip.key, vendor=chip.vendor, provider=offer.provider, instance_type=offer.instance_type,
        region=offer.region, term=offer.term, usd_per_chip_hr=offer.usd_per_chip_hr, price_as_of=offer.as_of,
        price_source=offer.source.reference, engine=point.stack[1], engine_version=point.stack[2],
        weight_precision=point.stack[3], kv_precision=str(row.get("kv_precision") or ""), mode=point.stack[4],
        speculative=point.stack[5], layout=point.layout,
        **{name: int(row.get(name) or 1) for name in ("tp", "pp", "ep", "attn_dp")},
        concurrency=place.concurrency, replicas=int(fleet["replicas"]), instances=int(fleet["instances"]),
        chips=int(fleet["chips"]), replica_chips=round(place.chips or 1), output_tps=fleet["output_tps"],
        output_tps_per_chip=place.output_tps_per_chip, tps_per_user=1.0 / place.tpot_s,
        ttft_ms=place.ttft_s * 1e3 if place.ttft_s is not None else None, tpot_ms=place.tpot_s * 1e3,
        e2e_ms=e2e_s * 1e3 if e2e_s is not None else None,
        **{
            name: fleet[name]
            for name in ("usd_per_m_output_tokens", "usd_per_m_tokens", "usd_per_m_input_tokens", "usd_per_request",
                         "usd_per_hr", "kwh_per_m_tokens")
        },
        is_interpolated=place.is_interpolated, is_mix=place.is_mix,
        between=tuple(_neighbour(neighbour) for neighbour in place.between), assumed="; ".join(notes),
    )  # fmt: skip


def _neighbour(point: MeasuredPoint) -> Neighbour:
    row = point.row
    return Neighbour(
        layout=point.layout, chips=point.chips, concurrency=point.concurrency, tps_per_user=point.tps_per_user,
        output_tps_per_chip=point.output_tps_per_chip, source=str(row.get("source") or ""),
        source_ref=str(row.get("source_ref") or ""), measured_on=str(row.get("measured_on") or ""),
    )  # fmt: skip
