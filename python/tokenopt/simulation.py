"""The simulator: what single requests see on one configuration, by percentile, beside what the formulas say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokenopt.breakdown import MAX_BATCH, best_point, breakdown_of, point_at_concurrency
from tokenopt.errors import SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.problem import CompiledProblem, SearchRequest
from tokenopt.request import DEFAULT_ISL, DEFAULT_OSL
from tokenopt.serve import SCHEMA, Solution, compile_request, name_solution
from tokenopt.traces import Trace, load_trace
from tokenopt.verification import Run, run_core

Arrival = Literal["closed", "poisson", "trace"]

DEFAULT_REQUESTS = 20_000
ROUNDS = 10
"""Requests measured for each one in flight, at least: so many of their lives that the start is forgotten."""
MAX_REQUESTS = 10_000_000
MAX_RATE = 1e9
MAX_CV = 10.0


@dataclass(frozen=True, slots=True)
class Simulation:
    """Answer of a simulation.

    Attributes:
        configuration: The configuration as the formulas see it, per replica and priced.
        traffic: What arrived: `arrival`, `requests_per_s` or `concurrency`, lengths, seed.
        simulated: What the run measured.
        limits: The limits that `slo_attainment` counts against; None = none.
    """

    configuration: Solution
    traffic: Mapping[str, Any]
    simulated: Run
    limits: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {"schema": SCHEMA, **asdict(self)}


def simulate(
    request: SearchRequest | None = None,
    *,
    layout: Mapping[str, int | None] | None = None,
    chunk_tokens: int | None = None,
    concurrency: int | None = None,
    rate: float | None = None,
    arrival: str | None = None,
    trace: str | Path | Trace | None = None,
    requests: int | None = None,
    warmup: int | None = None,
    seed: int = 0,
    length_low: float | None = None,
    length_cv: float | None = None,
    max_running: int | None = None,
    registry: PluginRegistry | None = None,
    **options: Any,
) -> Simulation:
    """Simulates one replica under a given load, request by request.

    Args:
        request: Scope and limits; or give its fields as keywords. What it leaves open is taken from the best that a
            search finds.
        layout: Any of tp, pp, ep, attn_dp.
        chunk_tokens: Prefill chunk, tokens.
        concurrency: Requests in flight, each replaced as it ends (closed loop).
        rate: Requests/s that arrive at the replica; with a trace, its times are scaled to this mean rate.
        arrival: `closed`, `poisson` or `trace`; by default what the other arguments say, closed without any.
        trace: File (see :mod:`tokenopt.traces`) with lengths, and arrivals unless `arrival` says otherwise.
        requests: Requests measured.
        warmup: Requests that end before measuring begins.
        seed: Start of the random draws; the same seed gives the same answer.
        length_low: Lengths are spread evenly from this share of the nominal ones to the nominal ones.
        length_cv: Lengths are log-normal around the nominal ones with this standard deviation over mean.
        max_running: Most requests a rank holds at once; memory decides otherwise.
        registry: Plugins to use; the installed ones by default.
        **options: Fields of :class:`tokenopt.problem.SearchRequest`.

    Returns:
        Percentiles, throughput and attainment of the limits, with the formulas' answer beside.

    Raises:
        SpecError: An argument or the trace cannot be used.
        InfeasibleError: No configuration was given in full and none meets the limits.
    """
    registry = registry or default_registry()
    loaded = load_trace(Path(trace)) if isinstance(trace, (str, Path)) else trace
    kind = _arrival(arrival, concurrency, rate, loaded)
    _check(concurrency, rate, requests, warmup, seed, length_low, length_cv, max_running, loaded)
    problem = _problem(request, options, layout, chunk_tokens, loaded, registry)
    if kind == "closed" and concurrency is not None:
        point, answer = point_at_concurrency(problem, concurrency)
    else:
        point = best_point(problem, None)
        answer = breakdown_of(problem, point)
    solution = name_solution(problem, 1, answer["solution"])
    in_flight = concurrency or solution.concurrency
    arrivals, rate = _core_arrivals(kind, in_flight, rate, loaded, solution)
    if requests is None:
        available = len(loaded) if kind == "trace" and loaded is not None else MAX_REQUESTS
        requests = min(max(DEFAULT_REQUESTS, ROUNDS * in_flight), available)
    if warmup is None:
        # A trace is measured from its first request: its start is part of it.
        warmup = 0 if kind == "trace" else max(requests // 10, min(2 * in_flight, MAX_REQUESTS))
    lengths = _core_lengths(length_low, length_cv, loaded)
    spec = {
        "arrivals": arrivals,
        "lengths": lengths,
        "requests": requests,
        "warmup": warmup,
        "seed": seed,
        "max_running": max_running,
    }
    run = run_core(problem.core, point, spec)
    traffic = {
        "arrival": kind,
        "concurrency": in_flight if kind == "closed" else None,
        "requests_per_s": rate,
        "lengths": lengths["kind"],
        "trace": asdict(loaded.summary()) if loaded else None,
        "warmup": warmup,
        "seed": seed,
    }
    return Simulation(solution, traffic, run, dict(problem.core["limits"]))


def _arrival(arrival: str | None, concurrency: int | None, rate: float | None, trace: Trace | None) -> Arrival:
    legal = ("closed", "poisson", "trace")
    if arrival is not None and arrival not in legal:
        raise SpecError(f"arrival is {arrival!r}, expected {', '.join(legal)}")
    if concurrency is not None and rate is not None:
        raise SpecError("concurrency and rate both name the load: give one of them")
    if arrival is None:
        if concurrency is not None:
            return "closed"
        if trace is not None and trace.arrivals_s is not None:
            return "trace"
        return "poisson" if rate is not None else "closed"
    if arrival == "trace" and (trace is None or trace.arrivals_s is None):
        raise SpecError("arrival is trace, but no trace with arrivals is given", ["--trace FILE"])
    if arrival == "closed" and rate is not None:
        raise SpecError("rate is given, but in a closed loop requests arrive as others end", ["--arrival poisson"])
    if arrival != "closed" and concurrency is not None:
        raise SpecError(f"concurrency is given, but arrivals are {arrival}", ["--rate gives the load of open arrivals"])
    return arrival  # type: ignore[return-value]


def _check(
    concurrency: int | None,
    rate: float | None,
    requests: int | None,
    warmup: int | None,
    seed: int,
    length_low: float | None,
    length_cv: float | None,
    max_running: int | None,
    trace: Trace | None,
) -> None:
    for name, value, least, most in (
        ("concurrency", concurrency, 1, MAX_BATCH), ("requests", requests, 1, MAX_REQUESTS),
        ("warmup", warmup, 0, MAX_REQUESTS), ("seed", seed, 0, 2**63 - 1), ("max_running", max_running, 1, MAX_BATCH),
    ):  # fmt: skip
        if value is not None and (isinstance(value, bool) or value != int(value) or not least <= value <= most):
            raise SpecError(f"{name} is {value}, expected a whole number from {least} to {most:,}")
    if rate is not None and not (math.isfinite(rate) and 0 < rate <= MAX_RATE):
        raise SpecError(f"rate is {rate:g}, expected a number of requests/s above 0")
    if length_low is not None and not 0 <= length_low <= 1:
        raise SpecError(f"length_low is {length_low:g}, expected a share from 0 to 1")
    if length_cv is not None and not 0 <= length_cv <= MAX_CV:
        raise SpecError(f"length_cv is {length_cv:g}, expected 0 to {MAX_CV:g}")
    if sum(given is not None for given in (length_low, length_cv, trace)) > 1:
        raise SpecError("length_low, length_cv and trace all give lengths: give one of them")


def _problem(
    request: SearchRequest | None,
    options: Mapping[str, Any],
    layout: Mapping[str, int | None] | None,
    chunk_tokens: int | None,
    trace: Trace | None,
    registry: PluginRegistry,
) -> CompiledProblem:
    if request is None:
        request = SearchRequest(**_known(options))
    elif options:
        raise SpecError("give either a request or single options, not both")
    fixed: dict[str, Any] = {name: (value,) for name, value in (layout or {}).items() if value is not None}
    if chunk_tokens is not None:
        fixed["chunk_tokens"] = (chunk_tokens,)
    if trace is not None:
        if (request.isl, request.osl) != (DEFAULT_ISL, DEFAULT_OSL):
            raise SpecError("the trace gives the lengths: leave isl and osl out")
        summary = trace.summary()
        fixed |= {"isl": summary.isl, "osl": summary.osl}
        if trace.cached:
            fixed["prefix_hit"] = summary.prefix_hit
    # What is simulated is one replica that prefills and decodes, a token a step.
    return compile_request(replace(request, mode="agg", spec="off", **fixed), registry)


def _known(options: Mapping[str, Any]) -> Mapping[str, Any]:
    from dataclasses import fields

    legal = {field.name for field in fields(SearchRequest)}
    unknown = sorted(set(options) - legal)
    if unknown:
        raise SpecError(f"simulate has no option {unknown[0]!r}", [f"options: {', '.join(sorted(legal))}"])
    return options


def _core_arrivals(
    kind: Arrival, in_flight: int, rate: float | None, trace: Trace | None, solution: Solution
) -> tuple[dict[str, Any], float | None]:
    if kind == "closed":
        return {"kind": "closed", "concurrency": in_flight}, None
    if kind == "trace" and trace is not None and trace.arrivals_s is not None:
        own_rate = trace.summary().requests_per_s
        if own_rate is None:
            return {"kind": "trace", "at_s": list(trace.arrivals_s)}, None
        scale = own_rate / rate if rate is not None else 1.0
        return {"kind": "trace", "at_s": [at * scale for at in trace.arrivals_s]}, own_rate / scale
    if rate is None and trace is not None:
        rate = trace.summary().requests_per_s
    if rate is None:
        rate = solution.requests_per_s / solution.replicas
    return {"kind": "poisson", "requests_per_s": rate}, rate


def _core_lengths(length_low: float | None, length_cv: float | None, trace: Trace | None) -> dict[str, Any]:
    if trace is not None:
        return {"kind": "given", "isl": list(trace.isl), "osl": list(trace.osl), "cached": list(trace.cached)}
    if length_low is not None:
        return {"kind": "uniform", "low": length_low}
    if length_cv is not None:
        return {"kind": "lognormal", "isl_cv": length_cv, "osl_cv": length_cv}
    return {"kind": "fixed"}
