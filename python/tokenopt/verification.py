"""Runs of the core's simulator: what single requests see on one replica, and the check of a search's answers by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tokenopt.units import MS_PER_S

MEASURED_ROUNDS = 10
"""Requests measured for each one in flight, as benchmarks do."""
LEAST_REQUESTS = 2_000
VERIFY_LENGTH_CV = 0.1
"""Spread of lengths in a check whose workload has none: requests all alike would march in step."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution over requests."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Attainment:
    """Shares of requests within the limits: all of them together, and each."""

    all: float
    tpot: float
    ttft: float
    e2e: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation measured on one replica.

    Attributes:
        requests: Requests measured.
        refused: Requests that no rank can hold, dropped.
        measured_s: Simulated seconds that were measured.
        elapsed_s: Wall time, s.
        ttft_ms: Time to first token.
        tpot_ms: Time per output token after the first, mean of each request; None when no request has a second token.
        e2e_ms: Whole request.
        requests_per_s: Requests/s that ended.
        goodput_requests_per_s: Requests/s that ended within every limit.
        output_tps: Output tokens/s.
        output_tps_per_chip: Output tokens/s per chip.
        mean_isl, mean_osl: Mean lengths of the measured requests, tokens.
        slo_attainment: Shares of requests within the limits.
        running_batch: Requests decoding, mean.
        most_running_per_rank: Most requests that a rank held at once.
        queue_mean: Requests waiting for room, mean.
        queue_max: Longest queue of a rank.
        cache_used_share: Share of the cache memory in use, mean.
        busy_share: Share of time in which a rank works.
        prefill_share: Share of time that prompts add to the steps.
        is_saturated: Whether requests arrived faster than they ended.
    """

    requests: int
    refused: int
    measured_s: float
    elapsed_s: float
    ttft_ms: Percentiles
    tpot_ms: Percentiles | None
    e2e_ms: Percentiles
    requests_per_s: float
    goodput_requests_per_s: float
    output_tps: float
    output_tps_per_chip: float
    mean_isl: float
    mean_osl: float
    slo_attainment: Attainment
    running_batch: float
    most_running_per_rank: int
    queue_mean: float
    queue_max: int
    cache_used_share: float
    busy_share: float
    prefill_share: float
    is_saturated: bool


def empty_run() -> dict[str, Any]:
    """The fields of a run, all absent: every row of a table has the same columns."""
    percentiles = dict.fromkeys(item.name for item in fields(Percentiles))
    attainment = dict.fromkeys(item.name for item in fields(Attainment))
    nested = {"ttft_ms": percentiles, "tpot_ms": percentiles, "e2e_ms": percentiles, "slo_attainment": attainment}
    return {item.name: nested.get(item.name) for item in fields(Run)}


def run_core(core: Mapping[str, Any], point: Mapping[str, Any], spec: Mapping[str, Any]) -> Run:
    """One run of the core's simulator on the configuration `point`."""
    from tokenopt import _core

    raw = json.loads(_core.simulate(json.dumps({**core, "point": point}), json.dumps(spec)))
    return Run(
        **{
            **raw,
            "ttft_ms": Percentiles(**raw["ttft_ms"]),
            "tpot_ms": Percentiles(**raw["tpot_ms"]) if raw["tpot_ms"] else None,
            "e2e_ms": Percentiles(**raw["e2e_ms"]),
            "slo_attainment": Attainment(**raw["slo_attainment"]),
        }
    )


def verify(core: Mapping[str, Any], raw: Mapping[str, Any]) -> Run:
    """Simulates one solution of the core under the traffic it was found for: a replica, or a disaggregated fleet whole.

    Args:
        core: The core's problem.
        raw: The solution as the core gave it.

    Returns:
        What the run measured once its start was forgotten.
    """
    layout, speculation = raw["layout"], raw["speculation"]
    point = {
        "stack": raw["stack"],
        **{name: layout[name] for name in _DEGREES},
        "chunk_tokens": raw["chunk_tokens"],
        "batch": raw["batch_per_rank"],
        "depth": speculation["depth"] if speculation else 0,
    }
    traffic = core.get("traffic") or {}
    pool, replicas = None, raw["replicas"]
    if layout["mode"] == "disagg":
        prefill = layout["prefill"]
        pool = {
            **{name: prefill[name] for name in ("stack", *_DEGREES, "workers")},
            "decode_workers": layout["decode"]["workers"],
            "transfer_s_per_token": raw["handover"]["transfer_ms"] / MS_PER_S / core["workload"]["isl"],
        }
        replicas = 1
    is_open = traffic.get("arrival") == "poisson"
    in_flight = max(1, round(raw["in_flight"] * (raw["replicas"] / replicas)))
    requests = max(LEAST_REQUESTS, MEASURED_ROUNDS * in_flight)
    arrivals: dict[str, Any] = {"kind": "closed", "concurrency": in_flight}
    if is_open or pool is not None:
        # A disaggregated fleet is sized for a rate: a closed loop of it has none of the bursts that an engine has.
        per_s = raw["capacity_tps"] / replicas / core["workload"]["osl"]
        per_s = per_s if is_open else raw["requests_per_s"] / core["demand"]["utilization"]
        arrivals = {"kind": "poisson", "requests_per_s": per_s}
    spread = {name: traffic.get(name) or VERIFY_LENGTH_CV for name in ("isl_cv", "osl_cv")}
    spec = {
        "arrivals": arrivals,
        "lengths": {"kind": "lognormal", **spread},
        "requests": requests,
        "warmup": requests // 5,
        "seed": 0,
        "prefill": pool,
    }
    return run_core(core, point, spec)


_DEGREES = ("tp", "pp", "ep", "attn_dp")
