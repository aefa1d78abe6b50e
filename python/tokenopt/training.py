"""The search for a training run: one call into the core, and its answer with names.

JSON field names of :meth:`TrainResult.to_dict` are the contract, the same in Python, tables and files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.problem import Assumption
from tokenopt.serve import SCHEMA, Interval, OfferAnswer, flat_row, offer_answer
from tokenopt.training_problem import CompiledTraining, build_training, deadline_days
from tokenopt.training_request import TrainRequest

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True, slots=True)
class TrainLayout:
    """How a run is split over chips.

    Attributes:
        tp, pp, vpp, cp, ep, etp, dp: Degrees: tensor, pipeline, chunks of a stage, context, expert, tensor inside an
            expert, data.
        micro_batch: Sequences of a micro-batch.
        microbatches: Micro-batches of a step through each pipeline.
        sequence_parallel: Whether norms and residuals are split along the sequence.
        sharding: `zero0` to `zero3` or `hybrid`; `weight_ranks` = ranks over which weights are spread.
        recompute: `none`, `selective`, `full` or `blocks` (`recompute_layers` of a stage wholly, the rest selectively).
        schedule: `none`, `1f1b`, `interleaved` or `zero-bubble`.
    """

    tp: int
    sequence_parallel: bool
    pp: int
    vpp: int
    cp: int
    ep: int
    etp: int
    dp: int
    micro_batch: int
    microbatches: int
    sharding: str
    weight_ranks: int
    recompute: str
    recompute_layers: int
    schedule: str


@dataclass(frozen=True, slots=True)
class TrainSolution:
    """One run, priced. Dollars are USD; GB is 10^9 bytes; `gpu_hours` are chip-hours paid for.

    `mfu` counts causal attention once and nothing for recomputation; `hfu` adds what is computed again. Both describe an
    undisturbed step; `goodput` is the share of the wall time spent in steps.
    """

    rank: int
    accelerator: str
    vendor: str
    offer: OfferAnswer
    precision: str
    layout: TrainLayout
    global_batch: int
    batch_tokens: float
    steps: int
    instances: int
    chips: int
    chips_used: int
    usd_per_m_tokens: float
    usd_per_run: float
    usd_per_hr: float
    days: float
    gpu_hours: float
    mfu: float
    hfu: float
    goodput: float
    losses: Mapping[str, float]
    tokens_per_s_per_chip: float
    tflops_per_chip: float
    step_time_s: float
    memory_gb: float
    memory: Mapping[str, float]
    kwh_per_m_tokens: float
    kwh_per_run: float
    interval: Interval
    basis: str
    calibration: str
    why: str
    step_shares: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict with the contract's field names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Answer of a search for a training run.

    Attributes:
        best: Best layouts, best first; one entry a split over chips.
        by_accelerator: The best of each accelerator, best first.
        frontier: Undominated trade-offs of days against money, fastest first.
        evaluated: Configurations evaluated in full.
        pruned: Configurations that bounds skipped.
        feasible: Evaluated configurations that met every limit.
        rejected: Why the others did not, as counts.
        elapsed_s: Wall time of the core, s.
        problem: What was asked, as it was understood.
        assumptions: Defaults that were not stated.
        ranked_terms: Kinds of price that were ranked.
        without_price: Accelerators left out because no such price is known.
        cannot_run: Accelerators without a fast path for the wanted formats.
        notes: Problems of plugins and data.
    """

    best: list[TrainSolution]
    by_accelerator: list[TrainSolution]
    frontier: list[TrainSolution]
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

    @property
    def usd_per_run(self) -> float:
        """USD of the best run: what serving has to earn back."""
        return self.best[0].usd_per_run

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract as plain dicts and lists."""
        return {"schema": SCHEMA, **asdict(self), "ranked_terms": list(self.ranked_terms)}

    def to_json(self) -> str:
        """The JSON contract as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a solution of each list, nested fields joined with an underscore."""
        return [
            {"list": table, **flat_row(solution.to_dict())}
            for table in ("best", "by_accelerator", "frontier")
            for solution in getattr(self, table)
        ]

    def to_polars(self) -> polars.DataFrame:
        """:meth:`rows` as a polars frame."""
        import polars

        return polars.DataFrame(self.rows())

    def to_pandas(self) -> pandas.DataFrame:
        """:meth:`rows` as a pandas frame."""
        import pandas

        return pandas.DataFrame(self.rows())


def train(
    request: TrainRequest | None = None, *, registry: PluginRegistry | None = None, **options: Any
) -> TrainResult:
    """Finds the cheapest hardware and layout for a training run within a deadline and a chip budget.

    Args:
        request: A complete request; or give its fields as keywords, for instance
            ``train(model="llama-3.1-70b", tokens=15e12, global_batch=4e6, deadline_days=60)``.
        registry: Plugins to use; the installed ones by default.
        **options: Fields of :class:`tokenopt.training_request.TrainRequest`.

    Returns:
        Solutions, frontier and counts.

    Raises:
        SpecError: A field cannot be used.
        MissingDataError: Nothing to search.
        InfeasibleError: No run meets the limits; the nearest miss and the limit to relax are named.
    """
    registry = registry or default_registry()
    return run_training(compile_training(request, registry, **options), registry)


def compile_training(request: TrainRequest | None, registry: PluginRegistry, **options: Any) -> CompiledTraining:
    """Validates a request and compiles it for the core."""
    if request is None:
        legal = {field.name for field in fields(TrainRequest)}
        unknown = sorted(set(options) - legal)
        if unknown:
            raise SpecError(f"train has no option {unknown[0]!r}", [f"options: {', '.join(sorted(legal))}"])
        request = TrainRequest(**options)
    elif options:
        raise SpecError("give either a request or single options, not both")
    return build_training(request, registry)


def run_training(problem: CompiledTraining, registry: PluginRegistry) -> TrainResult:
    """Runs a compiled problem in the core and names the answer.

    A deadline that was only assumed gives way when nothing meets it: then the fastest run is looked for.
    """
    from tokenopt import _core

    answer = json.loads(_core.train(json.dumps(problem.core)))
    if not answer["best"] and problem.request.deadline_days is None and answer["nearest"] is not None:
        problem = _without_deadline(problem)
        answer = json.loads(_core.train(json.dumps(problem.core)))
    if not answer["best"]:
        raise _infeasible(problem, answer)
    return TrainResult(
        best=_solutions(problem, answer["best"]),
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


def _without_deadline(problem: CompiledTraining) -> CompiledTraining:
    core = {**problem.core, "limits": {**problem.core["limits"], "deadline_days": None}, "objective": "time"}
    days = f"{deadline_days(problem.request):g} days"
    assumptions = [item for item in problem.assumptions if item.name != "deadline"]
    assumptions.append(
        Assumption("deadline", "none", f"nothing in scope ends within the default {days}: fastest first")
    )
    return replace(problem, core=core, assumptions=assumptions)


_WHOLE = ("global_batch", "steps", "instances", "chips", "chips_used")


def name_run(problem: CompiledTraining, rank: int, raw: Mapping[str, Any]) -> TrainSolution:
    """A run of the core with the names behind its indices."""
    stack = problem.stacks[raw["stack"]]
    low, high = stack.factors
    usd = raw["usd_per_m_tokens"]
    layout = {**raw["layout"], "microbatches": round(raw["layout"]["microbatches"])}
    named = {
        "rank": rank,
        "accelerator": stack.accelerator.key,
        "vendor": stack.accelerator.vendor,
        "offer": offer_answer(problem.offers[raw["offer"]]),
        "precision": stack.precision,
        "layout": TrainLayout(**layout),
        "interval": Interval(p10=usd * low, p90=usd * high),
        "basis": stack.basis,
        "calibration": stack.calibration,
        **{name: round(raw[name]) for name in _WHOLE},
    }
    names = {field.name for field in fields(TrainSolution)}
    rest = {name: raw[name] for name in raw if name in names and name not in named}
    return TrainSolution(**named, **rest)


def _solutions(problem: CompiledTraining, raw: Sequence[Mapping[str, Any]]) -> list[TrainSolution]:
    return [name_run(problem, rank, solution) for rank, solution in enumerate(raw, start=1)]


def _problem_summary(problem: CompiledTraining) -> dict[str, Any]:
    core = problem.core
    return {
        "model": problem.model.key,
        "hf_id": problem.model.hf_id,
        "job": core["job"],
        "batch_tolerance": core["batch_tolerance"],
        "run": core["run"],
        "limits": core["limits"],
        "objective": core["objective"],
        "accelerators": [chip["key"] for chip in core["accelerators"]],
        "scope": {
            name: list(value) if isinstance(value := getattr(problem.request, name), tuple) else value
            for name in (
                "hardware", "vendor", "announced", "precision", "provider", "region", "term", "spot", "price",
                "prices_max_age", "pue",
            )
        },
        "doubtful_prices": problem.doubtful_prices,
        "exhaustive": core["exhaustive"],
    }  # fmt: skip


def _infeasible(problem: CompiledTraining, answer: Mapping[str, Any]) -> InfeasibleError:
    request = problem.request
    nearest, memory, rejected = answer["nearest"], answer["memory_miss"], answer["rejected"]
    model = problem.model.key
    if nearest is not None:
        solution = name_run(problem, 1, nearest)
        place = f"{layout_words(solution.layout)} on {solution.chips:,} {solution.accelerator}"
        deadline = problem.core["limits"]["deadline_days"]
        if deadline is not None and solution.days > deadline:
            days = math.ceil(solution.days * 10) / 10
            return InfeasibleError(
                f"no run ends within {deadline:g} days: the fastest, {place}, takes {solution.days:,.1f} days and "
                f"{solution.usd_per_run:,.0f} USD",
                [f"relax --deadline-days to {days:g}, raise --max-chips, or lower --tokens"],
            )
        if request.max_usd is not None and solution.usd_per_run > request.max_usd:
            return InfeasibleError(
                f"no run costs at most {request.max_usd:,.0f} USD: the nearest, {place}, costs "
                f"{solution.usd_per_run:,.0f} USD and takes {solution.days:,.1f} days",
                [f"relax --max-usd to {math.ceil(solution.usd_per_run):,}, or lower --tokens"],
            )
        return InfeasibleError(
            f"no run ends within {deadline:g} days for at most {request.max_usd or math.inf:,.0f} USD: the nearest, "
            f"{place}, takes {solution.days:,.1f} days and {solution.usd_per_run:,.0f} USD",
            ["relax --deadline-days or --max-usd"],
        )
    if memory is not None:
        chip = problem.stacks[memory["stack"]].accelerator.key
        layout = TrainLayout(**{**memory["layout"], "microbatches": round(memory["layout"]["microbatches"])})
        return InfeasibleError(
            f"{model} fits on no layout in scope: the nearest, {layout_words(layout)} on {chip}, needs "
            f"{memory['needed_gb']:,.0f} GB per chip and may use {memory['allowed_gb']:,.0f} GB",
            ["raise --max-chips, widen --hardware, lower --seq-len, or let --recompute and --sharding vary"],
        )
    if rejected["max_chips"] or rejected["no_offer"]:
        return InfeasibleError(
            f"no offer sells units that can run {model} on at most {problem.core['limits']['max_chips']:,} chips",
            ["raise --max-chips; --spot, --term or --price widen the offers"],
        )
    if rejected["batch"]:
        sequences = problem.core["job"]["global_batch"]
        return InfeasibleError(
            f"no layout in scope divides the global batch of {sequences:,.6g} sequences",
            [
                "choose a batch with more divisors, allow rounding with --batch-tolerance, or say its unit with "
                "--global-batch-unit"
            ],
        )
    space = problem.core["space"]
    within = f" with {', '.join(f'{name}={value}' for name, value in space.items())}" if space else ""
    return InfeasibleError(
        f"no layout of {model} on at most {problem.core['limits']['max_chips']:,} chips is legal{within}",
        ["a degree must divide what it splits (heads, layers, experts, sequence, batch) and fit the chips"],
    )


def layout_words(layout: TrainLayout) -> str:
    """The layout in a few words, degrees of one left out."""
    parts = [
        f"{name}{value}"
        for name, value in (
            ("tp", layout.tp), ("pp", layout.pp), ("vpp", layout.vpp), ("cp", layout.cp), ("ep", layout.ep),
            ("etp", layout.etp), ("dp", layout.dp),
        )
        if value > 1
    ]  # fmt: skip
    return " ".join(parts) or "one chip"
