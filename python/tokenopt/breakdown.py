"""The full breakdown of one configuration: where its time and memory go, what binds, which parameters were used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenopt.catalog.engines import parameter_origins
from tokenopt.errors import SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.problem import CompiledProblem, SearchRequest
from tokenopt.serve import SCHEMA, Solution, compile_request, core_answer, name_solution

MAX_BATCH = 1 << 20
"""Largest batch or concurrency that is accepted."""
DEGREES = ("tp", "pp", "ep", "attn_dp")
"""Degrees of a layout."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Breakdown of one configuration.

    Of a disaggregated fleet (`solution.layout.mode` is disagg) the decode step, memory, capacity and speculation are those
    of a decode worker, the prefill chunk and the prompt those of a prefill worker, and `pools` holds both; what crosses
    between them is in `solution.handover`.

    Attributes:
        solution: The configuration as a search reports it.
        decode: Operators of a decode step: name, count, total_ms and pieces (memory, compute, network, latency; s).
        decode_step_ms: Decode step, ms.
        prefill: Operators of one full prefill chunk.
        prompt: Times of one prompt: attention core, alone, one more in shared chunks (ms), and its chunks.
        memory: Bytes on the fullest chip: weights, one request, plannable, activations per token.
        capacity_requests: Requests whose full cache fits on a rank.
        speculation: The same batch with and without speculative decoding, and the speed-up; None without.
        counts: Parameter counts of the model.
        parameters: Calibrated parameters used, with unit, bounds, meaning and `origin` (what set the value).
        calibration: Name, basis, date and source of the calibration.
        pools: Of a disaggregated fleet both pools, prefill first: role, operators of a step and step_ms, what binds (why)
            and what is waited for (step_shares), memory of the fullest chip (weight_gb, kv_gb, activation_gb,
            plannable_gb), requests that a rank holds and that fit, parameters. Empty for a replica.
    """

    solution: Solution
    decode: Sequence[Mapping[str, Any]]
    decode_step_ms: float
    prefill: Sequence[Mapping[str, Any]]
    prompt: Mapping[str, float]
    memory: Mapping[str, float]
    capacity_requests: float
    speculation: Mapping[str, Any] | None
    counts: Mapping[str, float]
    parameters: Sequence[Mapping[str, Any]]
    calibration: Mapping[str, str]
    pools: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {"schema": SCHEMA, **asdict(self)}


def explain(
    request: SearchRequest,
    *,
    layout: Mapping[str, int] | None = None,
    batch: int | None = None,
    concurrency: int | None = None,
    chunk_tokens: int | None = None,
    registry: PluginRegistry | None = None,
) -> Explanation:
    """Breaks down one configuration; what is not given is taken from the best that a search finds.

    A layout or a load describes a replica; without either the best of the modes in `request` is broken down, be it a
    replica or a fleet of pools.

    Args:
        request: Scope; it must leave one accelerator, or pools of different ones.
        layout: Any of tp, pp, ep, attn_dp.
        batch: Running batch of one attention rank and pipeline slot.
        concurrency: Requests in flight in a replica: the smallest batch that keeps so many in flight, on the layout
            that is best without this limit where none is given; give it or `batch`.
        chunk_tokens: Prefill chunk, tokens.
        registry: Plugins to use; the installed ones by default.

    Returns:
        The breakdown.

    Raises:
        SpecError: A field cannot be used, or the layout cannot run the model.
        InfeasibleError: Nothing in scope meets the limits.
    """
    for name, value in (("batch", batch), ("concurrency", concurrency)):
        if value is not None and not 1 <= value <= MAX_BATCH:
            raise SpecError(f"{name} is {value}, expected 1 to {MAX_BATCH}")
    if batch is not None and concurrency is not None:
        raise SpecError("batch and concurrency both name the load: give one of them")
    registry = registry or default_registry()
    fixed: dict[str, Any] = {name: (value,) for name, value in (layout or {}).items() if value is not None}
    if chunk_tokens is not None:
        fixed["chunk_tokens"] = (chunk_tokens,)
    load = "batch" if batch is not None else "concurrency" if concurrency is not None else None
    if request.mode == "disagg" and load is not None:
        raise SpecError(
            f"{load} names the load of a replica, and mode disagg asks for pools, whose loads follow from each other",
            [f"leave --{load} out, or use --mode agg"],
        )
    is_replica = request.mode != "disagg" and (bool(fixed) or load is not None)
    mode = "agg" if is_replica else request.mode
    problem = compile_request(replace(request, mode=mode, **fixed), registry)
    chips = [chip["key"] for chip in problem.core["accelerators"]]
    is_mixed = request.mixed_hardware or request.prefill_hardware or request.decode_hardware
    if len(chips) != 1 and not (is_mixed and mode != "agg"):
        raise SpecError(f"explain takes one accelerator, {len(chips)} are in scope", ["name one with --hardware KEY"])
    if concurrency is not None:
        point, answer = point_at_concurrency(problem, concurrency)
    else:
        point = best_point(problem, batch)
        answer = breakdown_of(problem, point)
    calibration = problem.calibration
    return Explanation(
        solution=name_solution(problem, 1, answer["solution"]),
        decode=answer["decode"],
        decode_step_ms=answer["decode_step_ms"],
        prefill=answer["prefill"],
        prompt={
            "core_ms": answer["prompt_core_ms"],
            "alone_ms": answer["prompt_alone_ms"],
            "marginal_ms": answer["prompt_marginal_ms"],
            "chunks": answer["prompt_chunks"],
        },
        memory=answer["memory"],
        capacity_requests=answer["capacity_requests"],
        speculation=answer["speculation"],
        counts=answer["counts"],
        parameters=_with_origins(problem, point["stack"], answer["parameters"]),
        calibration={
            "name": calibration.name,
            "basis": calibration.basis,
            "as_of": calibration.as_of,
            "source": calibration.source,
        },
        pools=[
            {**pool, "parameters": _with_origins(problem, stack, pool["parameters"])}
            for pool, stack in zip(answer["pools"], _pool_stacks(point), strict=False)
        ],
    )


def _pool_stacks(point: Mapping[str, Any]) -> list[int]:
    """Stacks of the prefill and the decode pool; none of a replica."""
    return [point["prefill"]["stack"], point["stack"]] if point.get("prefill") else []


def _with_origins(
    problem: CompiledProblem, stack_index: int, parameters: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Parameters of a stack with what set each of them."""
    stack = problem.stacks[stack_index]
    origins = parameter_origins(
        problem.calibration,
        stack.engine.name,
        stack.accelerator.family,
        stack.weight_precision,
        stack.engine.parameters,
        as_of=(problem.request.engine or "").partition("@")[2],
    )
    return [{**parameter, "origin": _origin(origins[parameter["name"]], parameter)} for parameter in parameters]


def _origin(origin: str, parameter: Mapping[str, Any]) -> str:
    is_cut = parameter["value"] in (parameter["low"], parameter["high"]) and parameter["value"] != parameter["prior"]
    return f"{origin}, at its bound" if is_cut else origin


def breakdown_of(problem: CompiledProblem, point: Mapping[str, Any]) -> dict[str, Any]:
    """The core's breakdown of one configuration."""
    from tokenopt import _core

    answer: dict[str, Any] = json.loads(_core.explain(json.dumps({**problem.core, "point": point})))
    return answer


def point_at_concurrency(problem: CompiledProblem, concurrency: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The point of the smallest batch with at least so many requests in flight, and its breakdown.

    Requests in flight grow with the batch (more decode at once, and each waits longer for its prompt), so bisection
    finds it.
    """
    # No more than `concurrency` requests can decode, so the layout is looked for under that batch.
    point = best_point(problem, concurrency)
    ranks = max(point["attn_dp"] * point["pp"], 1)
    low, high = 1, max(1, -(-concurrency // ranks))
    answer = breakdown_of(problem, {**point, "batch": high})
    while low < high:
        middle = (low + high) // 2
        tried = breakdown_of(problem, {**point, "batch": middle})
        if tried["solution"]["concurrency"] >= concurrency:
            high, answer = middle, tried
        else:
            low = middle + 1
    return {**point, "batch": high}, answer


def best_point(problem: CompiledProblem, batch: int | None) -> dict[str, Any]:
    """The point to break down: the best that a search finds within what the user fixed."""
    if batch is not None:
        # The batch is given, so the limits decide nothing: look for the best layout without them.
        stacks = [{**stack, "max_batch": None} for stack in problem.core["stacks"]]
        space = {**problem.core["space"], "max_batch": batch}
        unlimited = {**problem.core, "limits": {}, "space": space, "stacks": stacks}
        problem = replace(problem, core=unlimited)
    best = core_answer(problem)["best"][0]
    layout, speculation = best["layout"], best["speculation"]
    return {
        "stack": best["stack"],
        **{name: layout[name] for name in DEGREES},
        "chunk_tokens": best["chunk_tokens"],
        "batch": batch or best["batch_per_rank"],
        "depth": speculation["depth"] if speculation else 0,
        "prefill": _prefill_point(layout["prefill"], layout["decode"]) if "prefill" in layout else None,
    }


def _prefill_point(prefill: Mapping[str, Any], decode: Mapping[str, Any]) -> dict[str, int]:
    """The prefill pool of a configuration, from both pools of an answer."""
    return {
        "stack": prefill["stack"],
        **{name: prefill[name] for name in DEGREES},
        "workers": prefill["workers"],
        "decode_workers": decode["workers"],
        "offer": prefill["offer"],
        "decode_offer": decode["offer"],
    }
