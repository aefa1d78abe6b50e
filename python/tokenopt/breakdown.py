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
from tokenopt.serve import SCHEMA, Solution, compile_request, name_solution, run

MAX_BATCH = 1 << 20
"""Largest batch or concurrency that is accepted."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Breakdown of one configuration.

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

    Args:
        request: Scope; it must leave one accelerator.
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
    # A replica is broken down: the workers of a disaggregated fleet are replicas that do one thing only.
    problem = compile_request(replace(request, mode="agg", **fixed), registry)
    chips = [chip["key"] for chip in problem.core["accelerators"]]
    if len(chips) != 1:
        raise SpecError(f"explain takes one accelerator, {len(chips)} are in scope", ["name one with --hardware KEY"])
    if concurrency is not None:
        point, answer = point_at_concurrency(problem, registry, concurrency)
    else:
        point = best_point(problem, registry, batch)
        answer = breakdown_of(problem, point)
    calibration = problem.calibration
    stack = problem.stacks[point["stack"]]
    origins = parameter_origins(
        calibration,
        stack.engine.name,
        stack.accelerator.family,
        stack.weight_precision,
        stack.engine.parameters,
        as_of=(problem.request.engine or "").partition("@")[2],
    )
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
        parameters=[
            {**parameter, "origin": _origin(origins[parameter["name"]], parameter)}
            for parameter in answer["parameters"]
        ],
        calibration={
            "name": calibration.name,
            "basis": calibration.basis,
            "as_of": calibration.as_of,
            "source": calibration.source,
        },
    )


def _origin(origin: str, parameter: Mapping[str, Any]) -> str:
    is_cut = parameter["value"] in (parameter["low"], parameter["high"]) and parameter["value"] != parameter["prior"]
    return f"{origin}, at its bound" if is_cut else origin


def breakdown_of(problem: CompiledProblem, point: Mapping[str, int]) -> dict[str, Any]:
    """The core's breakdown of one configuration."""
    from tokenopt import _core

    answer: dict[str, Any] = json.loads(_core.explain(json.dumps({**problem.core, "point": point})))
    return answer


def point_at_concurrency(
    problem: CompiledProblem, registry: PluginRegistry, concurrency: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """The point of the smallest batch with at least so many requests in flight, and its breakdown.

    Requests in flight grow with the batch (more decode at once, and each waits longer for its prompt), so bisection
    finds it.
    """
    # No more than `concurrency` requests can decode, so the layout is looked for under that batch.
    point = best_point(problem, registry, concurrency)
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


def best_point(problem: CompiledProblem, registry: PluginRegistry, batch: int | None) -> dict[str, int]:
    """The point to break down: the best that a search finds within what the user fixed."""
    if batch is not None:
        # The batch is given, so the limits decide nothing: look for the best layout without them.
        stacks = [{**stack, "max_batch": None} for stack in problem.core["stacks"]]
        space = {**problem.core["space"], "max_batch": batch}
        unlimited = {**problem.core, "limits": {}, "space": space, "stacks": stacks}
        problem = replace(problem, core=unlimited)
    best = run(problem, registry).best[0]
    return {
        "stack": next(
            index
            for index, stack in enumerate(problem.stacks)
            if (stack.accelerator.key, stack.engine.name, stack.weight_precision, stack.kv_precision)
            == (best.accelerator, best.engine, best.weight_precision, best.kv_precision)
        ),
        "tp": best.layout.tp,
        "pp": best.layout.pp,
        "ep": best.layout.ep,
        "attn_dp": best.layout.attn_dp,
        "chunk_tokens": best.chunk_tokens,
        "batch": batch or best.batch_per_rank,
        "depth": best.speculation.depth if best.speculation else 0,
    }
