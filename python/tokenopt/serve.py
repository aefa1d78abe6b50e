"""The search: one call into the core, and its answer with names.

JSON field names of :meth:`SearchResult.to_dict` are the contract, the same in Python, tables and files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from tokenopt.errors import InfeasibleError, StoreError
from tokenopt.measured_basis import MeasuredAnswer, measured_answers, required_answers
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.problem import Assumption, CompiledProblem, SearchRequest, build_problem, some_keys
from tokenopt.records import Offer
from tokenopt.verification import Run, empty_run, verify

if TYPE_CHECKING:
    import pandas
    import polars

SCHEMA = 1

_UNITS = {"tpot_s": ("time per output token", "--slo-ms"), "ttft_s": ("time to first token", "--ttft-ms"),
          "e2e_s": ("whole request", "--e2e-ms")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OfferAnswer:
    """The price a solution was costed with."""

    provider: str
    instance_type: str
    region: str
    term: str
    usd_per_chip_hr: float
    as_of: str
    source: str


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of a disaggregated fleet: equal workers that only prefill or only decode.

    Attributes:
        accelerator, vendor, engine, weight_precision, kv_precision: What a worker runs.
        offer: Its price.
        tp, pp, ep, attn_dp: Layout of a worker.
        workers: Workers.
        chips_per_worker: Chips of a worker.
        requests_per_s: Requests/s of a worker at the load that the limits allow.
        utilization: Share of the time that a worker is busy.
    """

    accelerator: str
    vendor: str
    engine: str
    weight_precision: str
    kv_precision: str
    offer: OfferAnswer
    tp: int
    pp: int
    ep: int
    attn_dp: int
    workers: int
    chips_per_worker: int
    requests_per_s: float
    utilization: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallel layout of a replica; of a disaggregated fleet that of a decode worker, with both pools beside it."""

    mode: str
    tp: int
    pp: int
    ep: int
    attn_dp: int
    prefill: Pool | None = None
    decode: Pool | None = None


@dataclass(frozen=True, slots=True)
class Handover:
    """From prefill to decode in a disaggregated fleet.

    Times are the parts of the time to first token, ms; `cache_gb` is the cache of a prompt, `link_gb_per_s` the achieved
    rate of one chip's link, and `over_fabric` says whether that is the fast fabric.
    """

    queue_ms: float
    prefill_ms: float
    transfer_ms: float
    first_step_ms: float
    cache_gb: float
    link_gb_per_s: float
    over_fabric: bool


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding.

    `depth` tokens are drafted per step, each accepted with chance `acceptance` when those before it were, so that a
    request gains `tokens_per_step`; `draft` is the draft model, None = the model's own multi-token-prediction head.
    """

    depth: int
    acceptance: float
    tokens_per_step: float
    draft: str | None


@dataclass(frozen=True, slots=True)
class OtherMode:
    """The best of the other mode on the same accelerator, and how much worse it is by the objective (0.1 = 10%)."""

    mode: str
    usd_per_m_tokens: float
    worse_by: float


@dataclass(frozen=True, slots=True)
class Interval:
    """P10 and P90 of `usd_per_m_tokens`."""

    p10: float
    p90: float


@dataclass(frozen=True, slots=True)
class Solution:
    """One configuration, priced. Tokens/s are output tokens unless named total; dollars are USD; GB is 10^9 bytes."""

    rank: int
    accelerator: str
    vendor: str
    offer: OfferAnswer
    engine: str
    engine_version: str
    weight_precision: str
    kv_precision: str
    layout: Layout
    chunk_tokens: int
    concurrency: int
    running_batch: float
    batch_per_rank: int
    replicas: int
    instances: int
    chips: int
    chips_used: int
    ttft_ms: float
    tpot_ms: float
    e2e_ms: float
    tps_per_user: float
    output_tps_per_chip: float
    output_tps: float
    capacity_tps: float
    requests_per_s: float
    usd_per_m_output_tokens: float
    usd_per_m_tokens: float
    usd_per_m_input_tokens: float
    usd_per_request: float
    usd_per_hr: float
    kwh_per_m_tokens: float
    weight_gb_per_chip: float
    kv_gb_per_chip: float
    memory_used_share: float
    interval: Interval
    basis: str
    calibration: str
    why: str
    step_shares: Mapping[str, float]
    measured_usd_per_m_tokens: float | None = None
    measured_ratio: float | None = None
    speculation: Speculation | None = None
    handover: Handover | None = None
    other_mode: OtherMode | None = None
    verified: Run | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict with the contract's field names."""
        return _without_nan(asdict(self))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Answer of a search.

    Attributes:
        best: Best layouts, best first; one entry a layout (its best batch and chunk size).
        by_mode: The best aggregated and the best disaggregated configuration, better one first.
        by_accelerator: The best of each accelerator, best first.
        frontier: Undominated trade-offs of interactivity against the objective, fastest first.
        evaluated: Configurations evaluated in full.
        pruned: Configurations that bounds skipped.
        feasible: Evaluated configurations that met every limit.
        rejected: Why the others did not, as counts.
        elapsed_s: Wall time of the core, s.
        problem: What was asked, as it was understood.
        assumptions: Defaults that were not stated.
        ranked_terms: Kinds of price that were ranked.
        without_price: Accelerators left out because no such price is known.
        cannot_run: Accelerators on which no engine serves the model in the wanted formats.
        notes: Problems of plugins and data.
        measured: The cheapest measured operation of each accelerator within the same limits, cheapest first.
    """

    best: list[Solution]
    by_accelerator: list[Solution]
    frontier: list[Solution]
    evaluated: int
    pruned: int
    feasible: int
    rejected: Mapping[str, int]
    elapsed_s: float
    problem: Mapping[str, Any]
    assumptions: list[Assumption]
    ranked_terms: tuple[str, ...]
    without_price: list[str]
    cannot_run: list[str]
    notes: list[str]
    measured: list[MeasuredAnswer] = field(default_factory=list)
    by_mode: list[Solution] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract as plain dicts and lists; what nobody states is null."""
        plain: dict[str, Any] = _without_nan(
            {"schema": SCHEMA, **asdict(self), "ranked_terms": list(self.ranked_terms)}
        )
        return plain

    def to_json(self) -> str:
        """The JSON contract as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a solution of `best` and `by_accelerator`, nested fields joined with an underscore."""
        rows = []
        for table in ("best", "by_accelerator"):
            for solution in getattr(self, table):
                rows.append({"list": table, **flat_row(_whole(solution.to_dict()))})
        return rows

    def to_polars(self) -> polars.DataFrame:
        """:meth:`rows` as a polars frame."""
        import polars

        return polars.DataFrame(self.rows())

    def to_pandas(self) -> pandas.DataFrame:
        """:meth:`rows` as a pandas frame."""
        import pandas

        return pandas.DataFrame(self.rows())


def search(
    request: SearchRequest | None = None, *, registry: PluginRegistry | None = None, **options: Any
) -> SearchResult:
    """Finds the cheapest way to serve a model within limits.

    Args:
        request: A complete request; or give its fields as keywords, for instance
            ``search(model="gpt-oss-120b", slo_ms=50, target_tps=1e6)``.
        registry: Plugins to use; the installed ones by default.
        **options: Fields of :class:`tokenopt.problem.SearchRequest`.

    Returns:
        Solutions, frontier and counts.

    Raises:
        SpecError: A field cannot be used.
        MissingDataError: Nothing to search.
        InfeasibleError: No configuration meets the limits; the nearest miss and the limit to relax are named.
    """
    registry = registry or default_registry()
    return answered(compile_request(request, registry, **options), registry)


def compile_request(request: SearchRequest | None, registry: PluginRegistry, **options: Any) -> CompiledProblem:
    """Validates a request and compiles it for the core."""
    from tokenopt.errors import SpecError

    if request is None:
        legal = {field.name for field in fields(SearchRequest)}
        unknown = sorted(set(options) - legal)
        if unknown:
            raise SpecError(f"search has no option {unknown[0]!r}", [f"options: {', '.join(sorted(legal))}"])
        request = SearchRequest(**options)
    elif options:
        raise SpecError("give either a request or single options, not both")
    problem = build_problem(request, registry)
    if problem.request.anchor is None:
        return problem
    from tokenopt.measured.anchors import anchored

    return anchored(problem, registry)


def core_answer(problem: CompiledProblem) -> dict[str, Any]:
    """The core's answer to a compiled problem, names still indices.

    Raises:
        InfeasibleError: Nothing meets the limits.
    """
    from tokenopt import _core

    answer: dict[str, Any] = json.loads(_core.search(json.dumps(problem.core)))
    if not answer["best"]:
        raise _infeasible(problem, answer)
    return answer


def run(problem: CompiledProblem, registry: PluginRegistry) -> SearchResult:
    """Runs a compiled problem in the core and names the answer."""
    answer = core_answer(problem)
    best = _solutions(problem, answer["best"])
    verified = [verify(problem.core, raw) for raw in answer["best"][: problem.request.verify]]
    best[: len(verified)] = [replace(solution, verified=run) for solution, run in zip(best, verified, strict=False)]
    return SearchResult(
        best=best,
        by_mode=_solutions(problem, answer["by_mode"]),
        by_accelerator=_solutions(problem, answer["by_accelerator"]),
        frontier=_solutions(problem, answer["frontier"]),
        evaluated=answer["evaluated"],
        pruned=answer["pruned"],
        feasible=answer["feasible"],
        rejected=answer["rejected"],
        elapsed_s=answer["elapsed_s"],
        problem=_problem_summary(problem),
        assumptions=problem.assumptions,
        ranked_terms=problem.ranked_terms,
        without_price=problem.without_price,
        cannot_run=problem.cannot_run,
        notes=[*registry.problems, *problem.notes],
    )


def answered(problem: CompiledProblem, registry: PluginRegistry) -> SearchResult:
    """The answer on the basis that was asked for: predicted, measured, or predicted with what was measured beside it.

    Raises:
        MissingDataError: Measurements alone are asked for, and nothing was measured.
        InfeasibleError: As for :func:`search`.
    """
    if problem.request.basis == "measured":
        return _measured_result(problem, registry)
    result = run(problem, registry)
    if problem.request.basis == "calibrated":
        return result
    try:
        measured = measured_answers(problem, registry)
    except StoreError as error:
        # A store that cannot be read is worth a word, not the answer.
        return replace(result, notes=[*result.notes, error.message])
    return replace(result, by_accelerator=_beside(result.by_accelerator, measured), measured=measured)


def _beside(solutions: Sequence[Solution], measured: Sequence[MeasuredAnswer]) -> list[Solution]:
    """Predictions with what was measured on the same accelerator within the same limits."""
    known = {answer.accelerator: answer.usd_per_m_tokens for answer in measured}
    return [
        replace(
            solution,
            measured_usd_per_m_tokens=known[solution.accelerator],
            measured_ratio=solution.usd_per_m_tokens / known[solution.accelerator],
        )
        if solution.accelerator in known
        else solution
        for solution in solutions
    ]


def _measured_result(problem: CompiledProblem, registry: PluginRegistry) -> SearchResult:
    """The answer of measurements alone."""
    import time

    started = time.perf_counter()
    answers = required_answers(problem, registry)
    solutions = [_measured_solution(rank, answer) for rank, answer in enumerate(answers, start=1)]
    return SearchResult(
        best=solutions[: problem.request.top],
        by_accelerator=solutions,
        frontier=[],
        evaluated=0,
        pruned=0,
        feasible=len(solutions),
        rejected={},
        elapsed_s=time.perf_counter() - started,
        problem=_problem_summary(problem),
        assumptions=[item for item in problem.assumptions if item.name not in _MODEL_ASSUMPTIONS],
        ranked_terms=problem.ranked_terms,
        without_price=problem.without_price,
        cannot_run=problem.cannot_run,
        notes=[*registry.problems, *problem.notes],
        measured=answers,
    )


_MODEL_ASSUMPTIONS = {"efficiencies", "max-batch", "precision", "kv-precision"}
"""Assumptions of the prediction, which measurements do without."""


def _measured_solution(rank: int, answer: MeasuredAnswer) -> Solution:
    """A measured answer in the shape of a solution; what no benchmark prints is NaN, null in JSON."""
    unknown = math.nan
    return Solution(
        rank=rank, accelerator=answer.accelerator, vendor=answer.vendor,
        offer=OfferAnswer(answer.provider, answer.instance_type, answer.region, answer.term, answer.usd_per_chip_hr,
                          answer.price_as_of, answer.price_source),
        engine=answer.engine, engine_version=answer.engine_version, weight_precision=answer.weight_precision,
        kv_precision=answer.kv_precision,
        layout=Layout(mode=answer.mode, tp=answer.tp, pp=answer.pp, ep=answer.ep, attn_dp=answer.attn_dp),
        chunk_tokens=0, concurrency=round(answer.concurrency or 0), running_batch=answer.concurrency or unknown,
        batch_per_rank=0, replicas=answer.replicas, instances=answer.instances, chips=answer.chips,
        chips_used=answer.replicas * answer.replica_chips, ttft_ms=answer.ttft_ms or unknown, tpot_ms=answer.tpot_ms,
        e2e_ms=answer.e2e_ms or unknown, tps_per_user=answer.tps_per_user, output_tps_per_chip=answer.output_tps_per_chip,
        output_tps=answer.output_tps, capacity_tps=answer.replicas * answer.replica_chips * answer.output_tps_per_chip,
        requests_per_s=unknown, usd_per_m_output_tokens=answer.usd_per_m_output_tokens,
        usd_per_m_tokens=answer.usd_per_m_tokens, usd_per_m_input_tokens=answer.usd_per_m_input_tokens,
        usd_per_request=answer.usd_per_request, usd_per_hr=answer.usd_per_hr, kwh_per_m_tokens=answer.kwh_per_m_tokens,
        weight_gb_per_chip=unknown, kv_gb_per_chip=unknown, memory_used_share=unknown,
        interval=Interval(answer.usd_per_m_tokens, answer.usd_per_m_tokens), basis="measured",
        calibration="; ".join(dict.fromkeys(f"{n.source} {n.measured_on}".strip() for n in answer.between)),
        why="measured", step_shares={}, measured_usd_per_m_tokens=answer.usd_per_m_tokens, measured_ratio=1.0,
    )  # fmt: skip


def _without_nan(value: Any) -> Any:
    """The same with null for every NaN."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


def name_solution(problem: CompiledProblem, rank: int, raw: Mapping[str, Any]) -> Solution:
    """A solution of the core with the names behind its indices."""
    stack = problem.stacks[raw["stack"]]
    low, high = interval_factors(problem, raw)
    usd = raw["usd_per_m_tokens"]
    named = {
        "rank": rank,
        "accelerator": stack.accelerator.key,
        "vendor": stack.accelerator.vendor,
        "offer": offer_answer(problem.offers[raw["offer"]]) if raw["offer"] is not None else _NO_OFFER,
        "engine": stack.engine.name,
        "engine_version": stack.engine.version,
        "weight_precision": stack.weight_precision,
        "kv_precision": stack.kv_precision,
        "layout": _layout(problem, raw["layout"]),
        "speculation": Speculation(**raw["speculation"]) if raw["speculation"] else None,
        "handover": Handover(**raw["handover"]) if raw["handover"] else None,
        "other_mode": OtherMode(**raw["other_mode"]) if raw["other_mode"] else None,
        "interval": Interval(p10=usd * low, p90=usd * high) if usd is not None else Interval(math.nan, math.nan),
        "basis": stack.basis,
        "calibration": problem.calibration.name,
        **{name: int(raw[name] or 0) for name in ("replicas", "instances", "chips", "chips_used")},
    }
    names = {field.name for field in fields(Solution)}
    rest = {name: raw[name] for name in raw if name in names and name not in named}
    return Solution(**named, **rest)


def _layout(problem: CompiledProblem, raw: Mapping[str, Any]) -> Layout:
    pools = {name: _pool(problem, raw[name]) for name in ("prefill", "decode") if name in raw}
    return Layout(**{**raw, **pools})


def _pool(problem: CompiledProblem, raw: Mapping[str, Any]) -> Pool:
    stack = problem.stacks[raw["stack"]]
    rest = {name: value for name, value in raw.items() if name not in ("stack", "offer")}
    return Pool(
        accelerator=stack.accelerator.key,
        vendor=stack.accelerator.vendor,
        engine=stack.engine.name,
        weight_precision=stack.weight_precision,
        kv_precision=stack.kv_precision,
        offer=offer_answer(problem.offers[raw["offer"]]),
        **rest,
    )


def interval_factors(problem: CompiledProblem, raw: Mapping[str, Any]) -> tuple[float, float]:
    """Factors on $/M tokens at P10 and P90 of a solution of the core, from the spread of the calibration's residuals."""
    from tokenopt.catalog.engines import layout_kind, novelty

    stack, layout = problem.stacks[raw["stack"]], raw["layout"]
    kind = layout_kind(layout.get("mode") == "disagg", layout["attn_dp"])
    batch = raw["batch_per_rank"] if "batch_per_rank" in raw else raw["batch"]
    return novelty(problem.calibration, stack.accelerator, problem.model.key, kind, batch or 0.0).factors


def _solutions(problem: CompiledProblem, raw: Sequence[Mapping[str, Any]]) -> list[Solution]:
    return [name_solution(problem, rank, solution) for rank, solution in enumerate(raw, start=1)]


_NO_OFFER = OfferAnswer("", "", "", "", math.nan, "", "")


def offer_answer(offer: Offer) -> OfferAnswer:
    """A price as the answer shows it."""
    return OfferAnswer(
        provider=offer.provider,
        instance_type=offer.instance_type,
        region=offer.region,
        term=offer.term,
        usd_per_chip_hr=offer.usd_per_chip_hr,
        as_of=offer.as_of,
        source=offer.source.reference,
    )


def _problem_summary(problem: CompiledProblem) -> dict[str, Any]:
    core = problem.core
    return {
        "model": problem.model.key,
        "hf_id": problem.model.hf_id,
        "workload": core["workload"],
        "traffic": core["traffic"],
        "limits": core["limits"],
        "demand": core["demand"],
        "objective": core["objective"],
        "accelerators": [chip["key"] for chip in core["accelerators"]],
        "scope": {name: _plain(getattr(problem.request, name)) for name in _SCOPE},
        "doubtful_prices": problem.doubtful_prices,
        "exhaustive": core["exhaustive"],
    }


_SCOPE = (
    "hardware", "vendor", "announced", "engine", "precision", "kv_precision", "provider", "region", "term", "spot",
    "price", "prices_max_age", "tco", "pue", "basis", "mode", "prefill_hardware", "decode_hardware", "mixed_hardware", "spec",
    "acceptance", "accepted_tokens", "draft_model", "calibration",
)  # fmt: skip
"""Fields of a request that narrow what competes."""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _whole(solution: dict[str, Any]) -> dict[str, Any]:
    """The same with every field that an answer may have, so that all rows have the same columns."""

    def empty(record: type) -> dict[str, Any]:
        return {item.name: empty(OfferAnswer) if item.name == "offer" else None for item in fields(record)}

    for name, record in (("speculation", Speculation), ("handover", Handover), ("other_mode", OtherMode)):
        solution[name] = solution[name] or empty(record)
    for name in ("prefill", "decode"):
        solution["layout"][name] = solution["layout"][name] or empty(Pool)
    solution["verified"] = solution["verified"] or empty_run()
    return solution


def flat_row(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of fields, nested names joined with an underscore."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flat_row(value, f"{prefix}{name}_"))
        else:
            flat[prefix + name] = value
    return flat


def _infeasible(problem: CompiledProblem, answer: Mapping[str, Any]) -> InfeasibleError:
    miss = answer["nearest_miss"]
    if miss is None:
        if answer["rejected"]["no_offer"]:
            return InfeasibleError(
                f"no offer sells a unit that can hold a replica of {problem.model.key}",
                ["--spot, --term or --price widen the offers"],
            )
        fixed = {name: values for name, values in problem.core["space"].items() if name != "max_batch"}
        named = " and ".join(f"{name}={','.join(map(str, values))}" for name, values in fixed.items())
        return InfeasibleError(
            f"no layout of {problem.model.key}{' with ' + named if named else ''} is legal on "
            f"{some_keys(chip['key'] for chip in problem.core['accelerators'])}",
            ["a degree must divide what it splits (heads, layers, experts) and fit the chips of a unit"],
        )
    stack = problem.stacks[miss["stack"]]
    layout = miss["layout"]
    percentile = problem.core["traffic"]["percentile"]
    at = f" at p{percentile * 100:g}" if percentile else ""
    place = (
        f"{stack.accelerator.key} with {stack.engine.name}, {stack.weight_precision} weights, "
        f"tp={layout['tp']} pp={layout['pp']} ep={layout['ep']} attn-dp={layout['attn_dp']}"
    )
    value, allowed = miss["value"], miss["allowed"]
    if miss["limit"] == "memory":
        return InfeasibleError(
            f"{problem.model.key} fits on no layout in scope: the nearest, {place}, "
            f"needs {value / 1e9:,.0f} GB per chip and may use {allowed / 1e9:,.0f} GB",
            ["widen --hardware, lower --precision or --isl"],
        )
    if miss["limit"] == "prefill_load":
        return InfeasibleError(
            f"open arrivals leave no steady state: the nearest, {place}, would spend {value:.0%} of its time on prompts, "
            f"and at most {allowed:.0%} leaves one",
            ["lower --isl, raise --osl, or widen --hardware; `tokenopt simulate` shows what a finite burst sees"],
        )
    if miss["limit"] == "max_chips":
        return InfeasibleError(
            f"no fleet of at most {allowed:,.0f} chips delivers the target: the nearest, {place}, "
            f"pays for {value:,.0f}",
            [f"relax --max-chips to {math.ceil(value)}, or lower the target"],
        )
    what, flag = _UNITS[miss["limit"]]
    if miss["limit"] == "tpot_s" and problem.request.min_interactivity is not None:
        is_interactivity = allowed <= 1.0 / problem.request.min_interactivity * (1 + 1e-9)
        if is_interactivity:
            return InfeasibleError(
                f"no configuration reaches {1 / allowed:,.1f} tokens/s/user: the nearest, {place}, "
                f"reaches {1 / value:,.1f}",
                [f"relax --min-interactivity to {math.floor(10 / value) / 10:g}"],
            )
    return InfeasibleError(
        f"no configuration meets the limit on {what} of {allowed * 1e3:,.4g} ms{at}: the nearest, {place}, "
        f"reaches {value * 1e3:,.4g} ms",
        [f"relax {flag} to {math.ceil(value * 1e4) / 10:g}"],
    )
