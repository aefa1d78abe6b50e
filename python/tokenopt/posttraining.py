"""The search for a post-training plan: one call into the core, and its answer with names.

JSON field names of :meth:`PosttrainResult.to_dict` are the contract, the same in Python, tables and files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

from tokenopt.catalog.models import resolve_model
from tokenopt.catalog.posttraining import default_posttraining_calibration
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.posttraining_request import (
    DEFAULT_POSTTRAIN_DAYS,
    DEFAULT_SPREAD,
    LONGEST_OVER_MEAN,
    ROLLOUT_ALGORITHMS,
    PosttrainRequest,
    checked_posttraining,
    longest_response,
    run_steps,
    samples,
    sequences,
)
from tokenopt.problem import (
    Assumption,
    CompiledProblem,
    SearchRequest,
    build_problem,
    core_accelerator,
    no_price,
    ranked_terms_of,
    select_accelerators,
    select_offers,
    some_keys,
)
from tokenopt.records import Accelerator, Model, Offer
from tokenopt.request import DEFAULT_PUE
from tokenopt.serve import SCHEMA, Interval, OfferAnswer, flat_row, offer_answer
from tokenopt.training_problem import TrainStackInfo, training_stacks
from tokenopt.units import GB


@dataclass(frozen=True, slots=True)
class StageLayout:
    """Layout of a stage; `batch` = requests an engine's rank decodes at once, or sequences of a micro-batch."""

    tp: int
    pp: int
    cp: int
    ep: int
    dp: int
    batch: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage on chips of one accelerator; `usd_per_step` while it runs, waiting not counted."""

    stage: str
    accelerator: str
    software: str
    chips: int
    seconds: float
    usd_per_step: float
    offer: OfferAnswer
    layout: StageLayout


@dataclass(frozen=True, slots=True)
class Pool:
    """Chips that run the same stages; `busy` = share of the step in which they work."""

    accelerator: str
    vendor: str
    offer: OfferAnswer
    instances: int
    chips: int
    usd_per_hr: float
    busy: float
    stages: list[StageCost]


@dataclass(frozen=True, slots=True)
class PosttrainPlan:
    """One plan, priced.

    Attributes:
        rank: Place in its list.
        placement: `colocated` (all stages on the same chips), `split` (generation on its own pool) or `separate`
            (generation, scoring and updates on a pool each).
        is_overlapped: Whether generation overlaps with training on the answers of the step before.
        pools: Chips and their stages.
        step_time_s: A step, s.
        switch_s, weight_sync_s: Of it, moving state between stages and new weights to the engines.
        generation_share: Share of the step that generation takes.
        usd_per_step, usd_per_run, usd_per_m_tokens, usd_per_hr: USD; tokens are those trained on, prompts included.
        days, gpu_hours, kwh_per_run, chips: Of the run.
        goodput: Share of the wall time that makes progress.
        tokens_per_s_per_chip: Tokens trained on per second and chip paid for.
        interval: P10 and P90 of `usd_per_m_tokens`.
        basis: What the figures rest on.
    """

    rank: int
    placement: str
    is_overlapped: bool
    pools: list[Pool]
    step_time_s: float
    switch_s: float
    weight_sync_s: float
    generation_share: float
    chips: int
    usd_per_hr: float
    usd_per_step: float
    usd_per_run: float
    usd_per_m_tokens: float
    days: float
    gpu_hours: float
    kwh_per_run: float
    goodput: float
    tokens_per_s_per_chip: float
    interval: Interval
    basis: str

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict with the contract's field names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PosttrainResult:
    """Answer of a search for a post-training plan.

    Attributes:
        best: Best plans, cheapest first; one entry a placement and set of accelerators.
        by_placement: Best plan of each placement, cheapest first.
        by_accelerator: Best plan with all stages on the same chips, of each accelerator, cheapest first.
        by_stage: Each stage alone on each accelerator, cheapest first within a stage.
        evaluated: Stage configurations worked out.
        plans: Plans priced.
        feasible: Plans that met the limits.
        problem: What was asked, as it was understood.
        assumptions: Defaults that were not stated.
        ranked_terms: Kinds of price that were ranked.
        without_price: Accelerators left out because no such price is known.
        cannot_run: Accelerators without engine or format for it.
        notes: Problems of plugins and data.
    """

    best: list[PosttrainPlan]
    by_placement: list[PosttrainPlan]
    by_accelerator: list[PosttrainPlan]
    by_stage: list[StageCost]
    evaluated: int
    plans: int
    feasible: int
    problem: Mapping[str, Any]
    assumptions: list[Assumption]
    ranked_terms: tuple[str, ...]
    without_price: list[str]
    cannot_run: list[str]
    notes: list[str]

    @property
    def usd_per_run(self) -> float:
        """USD of the best plan's run: what serving has to earn back."""
        return self.best[0].usd_per_run

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract as plain dicts and lists."""
        return {"schema": SCHEMA, **asdict(self), "ranked_terms": list(self.ranked_terms)}

    def to_json(self) -> str:
        """The JSON contract as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a stage of `by_stage`, nested fields joined with an underscore."""
        return [flat_row(asdict(stage)) for stage in self.by_stage]


@dataclass(frozen=True, slots=True)
class CompiledPosttraining:
    """The core's problem, and the names to read its answer with."""

    core: dict[str, Any]
    request: PosttrainRequest
    policy: Model
    accelerators: list[Accelerator]
    serving: CompiledProblem | None
    trainers: list[TrainStackInfo]
    offers: list[Offer]
    ranked_terms: tuple[str, ...]
    assumptions: list[Assumption]
    without_price: list[str]
    cannot_run: list[str]
    notes: list[str]


def posttrain(
    request: PosttrainRequest | None = None, *, registry: PluginRegistry | None = None, **options: Any
) -> PosttrainResult:
    """Finds the cheapest hardware for each stage of post-training, and the cheapest plan for all of them.

    Args:
        request: A complete request; or give its fields as keywords, for instance
            ``posttrain(policy="llama-3.1-8b", algorithm="grpo", prompts=256, response_len=2000)``.
        registry: Plugins to use; the installed ones by default.
        **options: Fields of :class:`tokenopt.posttraining_request.PosttrainRequest`.

    Returns:
        Plans, and every stage on every accelerator.

    Raises:
        SpecError: A field cannot be used.
        MissingDataError: Nothing to search.
        InfeasibleError: No plan meets the limits; the nearest miss and the limit to relax are named.
    """
    registry = registry or default_registry()
    return run_posttraining(compile_posttraining(request, registry, **options), registry)


def compile_posttraining(
    request: PosttrainRequest | None, registry: PluginRegistry, **options: Any
) -> CompiledPosttraining:
    """Validates a request and compiles it for the core."""
    if request is None:
        legal = {field.name for field in fields(PosttrainRequest)}
        unknown = sorted(set(options) - legal)
        if unknown:
            raise SpecError(f"posttrain has no option {unknown[0]!r}", [f"options: {', '.join(sorted(legal))}"])
        request = PosttrainRequest(**options)
    elif options:
        raise SpecError("give either a request or single options, not both")
    request = checked_posttraining(request)
    models, passes = _passes(request, registry)
    policy = models[0]
    accelerators = select_accelerators(request, registry)
    terms = ranked_terms_of(request)
    selection = select_offers(request, registry, accelerators, terms, date.today())
    without_price = [chip.key for chip in accelerators if not selection.by_accelerator.get(chip.key)]
    priced = [chip for chip in accelerators if chip.key not in without_price]
    if not priced:
        raise no_price(selection, accelerators, terms)
    trainers, core_trainers, cannot_train = training_stacks(priced, request.precision, policy)
    if not core_trainers:
        raise SpecError(
            f"{some_keys(chip.key for chip in priced)} has no fast path for {', '.join(request.precision)}",
            ["--precision any takes what there is"],
        )
    serving = _serving(request, registry, priced) if request.algorithm in ROLLOUT_ALGORITHMS else None
    places = {chip.key: index for index, chip in enumerate(priced)}
    engines = [
        {**stack, "accelerator": places[info.accelerator.key]}
        for stack, info in zip(serving.core["stacks"], serving.stacks, strict=True)
    ] if serving else []  # fmt: skip
    core = {
        "models": [dict(model.architecture) for model in models],
        "rollout": _rollout(request),
        "sequences": sequences(request),
        "sequence_tokens": request.prompt_len + request.response_len,
        "longest_tokens": request.prompt_len + longest_response(request),
        "passes": passes,
        "steps": run_steps(request),
        "accelerators": [
            core_accelerator(chip, request.pue, selection.by_accelerator.get(chip.key, [])) for chip in priced
        ],
        "engines": engines,
        "trainers": core_trainers,
        "max_chips": request.max_chips,
        "deadline_days": _deadline(request),
        "may_overlap": request.asynchronous,
        "switching": _software(request),
        "reliability": {"chip_hours_between_failures": request.mtbf_hours, "restart_s": request.restart_s},
        "checkpoint": {"bytes_per_s_per_chip": request.storage_gb_per_s * GB},
        "placements": [request.placement] if request.placement != "any" else None,
        "top": request.top,
    }
    return CompiledPosttraining(
        core=core,
        request=request,
        policy=policy,
        accelerators=priced,
        serving=serving,
        trainers=trainers,
        offers=selection.offers,
        ranked_terms=terms,
        assumptions=_assumptions(request, models),
        without_price=without_price,
        cannot_run=sorted({*cannot_train, *(serving.cannot_run if serving else [])}),
        notes=list(serving.notes) if serving else [],
    )


def _software(request: PosttrainRequest) -> dict[str, float]:
    """What the software adds: calibrated, but for what the user states."""
    software = default_posttraining_calibration().software(request.software)
    if request.host_gb_per_s is not None:
        software["host_bytes_per_s"] = request.host_gb_per_s * GB
    if request.phase_overhead_s is not None:
        software["phase_overhead_s"] = request.phase_overhead_s
    return software


def _deadline(request: PosttrainRequest) -> float:
    return request.deadline_days if request.deadline_days is not None else DEFAULT_POSTTRAIN_DAYS


def _serving(request: PosttrainRequest, registry: PluginRegistry, chips: list[Accelerator]) -> CompiledProblem:
    """Engines that generate, in the policy's training precision: weights change every step and are not quantised."""
    names = ("provider", "region", "term", "spot", "announced", "price", "prices_max_age", "pue", "engine")
    return build_problem(
        SearchRequest(
            model=request.policy,
            isl=request.prompt_len,
            osl=request.response_len,
            precision="bf16",
            hardware=[chip.key for chip in chips],
            **{name: getattr(request, name) for name in names},
        ),
        registry,
    )


def _rollout(request: PosttrainRequest) -> dict[str, float] | None:
    if request.algorithm not in ROLLOUT_ALGORITHMS:
        return None
    return {
        "prompts": request.prompts * request.oversample,
        "samples": samples(request),
        "prompt_tokens": request.prompt_len,
        "response_tokens": request.response_len,
        "response_spread": request.response_spread,
        "max_response_tokens": longest_response(request),
    }


def _passes(request: PosttrainRequest, registry: PluginRegistry) -> tuple[list[Model], list[dict[str, Any]]]:
    """Models in use, the policy first, and the scoring and update passes of a step in order."""
    models = [resolve_model(request.policy, registry.models)]

    def index(name: str | None) -> int:
        if name is None:
            return 0
        model = resolve_model(name, registry.models)
        for place, known in enumerate(models):
            if known.key == model.key:
                return place
        models.append(model)
        return len(models) - 1

    def forward(name: str, model: int, *, has_head: bool) -> dict[str, Any]:
        return {"name": name, "model": model, "kind": {"forward": {"has_head": has_head}}}

    def update(name: str, model: int, recipe: Any) -> dict[str, Any]:
        kind = {
            "recipe": recipe,
            "epochs": request.epochs,
            "minibatches": request.minibatches,
            "optimizer": request.optimizer.replace("-", "_"),
        }
        return {"name": name, "model": model, "kind": {"update": kind}}

    algorithm = request.algorithm
    full: Any = {"lora": {"rank": request.lora_rank}} if request.lora_rank else "sft"
    if algorithm == "dpo":
        return models, [update("policy update", 0, "dpo" if not request.lora_rank else full)]
    if algorithm == "reward-model":
        return models, [update("reward-model update", 0, "reward_model")]
    passes = []
    if algorithm == "ppo" or request.reward is not None:
        passes.append(forward("reward", index(request.reward), has_head=False))
    elif request.verifier_seconds:
        passes.append({"name": "verifier", "model": 0, "kind": {"external": {"seconds": request.verifier_seconds}}})
    if request.kl and algorithm != "dapo":
        passes.append(forward("reference log-probs", index(request.reference), has_head=True))
    if request.old_logprobs:
        passes.append(forward("policy log-probs", 0, has_head=True))
    if algorithm == "ppo":
        critic = index(request.critic)
        passes.append(forward("critic values", critic, has_head=False))
        passes.append(update("critic update", critic, "reward_model"))
    passes.append(update("policy update", 0, full))
    return models, passes


def _assumptions(request: PosttrainRequest, models: list[Model]) -> list[Assumption]:
    defaults = PosttrainRequest()
    found: list[Assumption] = []

    def assume(name: str, value: object, why: str) -> None:
        found.append(Assumption(name, str(value), why))

    for name in ("policy", "algorithm", "prompts", "prompt_len", "response_len"):
        if getattr(request, name) == getattr(defaults, name):
            assume(name, getattr(request, name), f"default of --{name.replace('_', '-')}")
    if request.algorithm in ROLLOUT_ALGORITHMS:
        if request.samples is None:
            assume("samples", f"{samples(request):g}", "answers to a prompt (--samples)")
        if request.max_response_len is None:
            assume("longest answer", f"{longest_response(request):,.0f}", f"{LONGEST_OVER_MEAN:g} x the mean")
        if request.response_spread == DEFAULT_SPREAD:
            assume("response-spread", DEFAULT_SPREAD, "standard deviation of lengths over their mean")
        if request.oversample == 1.0 and request.algorithm == "dapo":
            assume("oversample", 1.0, "no answer is thrown away (--oversample)")
        if request.algorithm == "ppo":
            for role in ("reward", "critic"):
                if getattr(request, role) is None:
                    assume(role, models[0].key, f"of the policy's size (--{role})")
        elif request.reward is None and not request.verifier_seconds:
            assume("reward", "verifier", "off the accelerators, its time hidden (--reward, --verifier-seconds)")
        calibration = default_posttraining_calibration()
        assume("software", request.software or "mean of all", f"{calibration.name} (--software)")
        assume("rollout precision", "bf16", "weights change every step and are not quantised")
    if request.tokens is None and request.steps == defaults.steps:
        assume("steps", f"{request.steps:g}", "default of --steps")
    if request.deadline_days is None:
        assume("deadline", f"{DEFAULT_POSTTRAIN_DAYS:g} days", "no --deadline-days")
    if request.max_chips == defaults.max_chips:
        assume("max-chips", request.max_chips, "default of --max-chips")
    if request.pue == DEFAULT_PUE:
        assume("pue", DEFAULT_PUE, "facility power over IT power (--pue)")
    return found


def run_posttraining(problem: CompiledPosttraining, registry: PluginRegistry) -> PosttrainResult:
    """Runs a compiled problem in the core and names the answer."""
    from tokenopt import _core

    answer = json.loads(_core.posttrain(json.dumps(problem.core)))
    if not answer["best"]:
        raise _infeasible(problem, answer)
    return PosttrainResult(
        best=_plans(problem, answer["best"]),
        by_placement=_plans(problem, answer["by_placement"]),
        by_accelerator=_plans(problem, answer["by_accelerator"]),
        by_stage=[_stage(problem, raw) for raw in answer["by_stage"]],
        evaluated=answer["evaluated"],
        plans=answer["plans"],
        feasible=answer["feasible"],
        problem=_summary(problem, answer),
        assumptions=problem.assumptions,
        ranked_terms=problem.ranked_terms,
        without_price=problem.without_price,
        cannot_run=problem.cannot_run,
        notes=[*registry.problems, *problem.notes],
    )


def _summary(problem: CompiledPosttraining, answer: Mapping[str, Any]) -> dict[str, Any]:
    core = problem.core
    names = (
        "rollout",
        "sequences",
        "sequence_tokens",
        "steps",
        "max_chips",
        "deadline_days",
        "may_overlap",
        "switching",
    )
    return {
        "policy": problem.policy.key,
        "algorithm": problem.request.algorithm,
        **{name: core[name] for name in names},
        "longest_response_tokens": answer["longest_response_tokens"],
        "passes": [{"name": item["name"], "model": core["models"][item["model"]]["key"]} for item in core["passes"]],
        "accelerators": [chip.key for chip in problem.accelerators],
        "placement": problem.request.placement,
    }


def _stage(problem: CompiledPosttraining, raw: Mapping[str, Any]) -> StageCost:
    if raw["stage"] == "generation" and problem.serving is not None:
        info = problem.serving.stacks[raw["stack"]]
        software = f"{info.engine.name} {info.weight_precision}/{info.kv_precision}"
    else:
        software = problem.trainers[raw["stack"]].precision
    return StageCost(
        stage=raw["stage"],
        accelerator=problem.accelerators[raw["accelerator"]].key,
        software=software,
        chips=round(raw["chips"]),
        seconds=raw["seconds"],
        usd_per_step=raw["usd_per_step"],
        offer=offer_answer(problem.offers[raw["offer"]]),
        layout=StageLayout(**raw["layout"]),
    )


def _pool(problem: CompiledPosttraining, raw: Mapping[str, Any]) -> Pool:
    chip = problem.accelerators[raw["accelerator"]]
    return Pool(
        accelerator=chip.key,
        vendor=chip.vendor,
        offer=offer_answer(problem.offers[raw["offer"]]),
        instances=round(raw["instances"]),
        chips=round(raw["chips"]),
        usd_per_hr=raw["usd_per_hr"],
        busy=raw["busy"],
        stages=[_stage(problem, stage) for stage in raw["stages"]],
    )


def _plan(problem: CompiledPosttraining, rank: int, raw: Mapping[str, Any]) -> PosttrainPlan:
    low, high, basis = _interval(problem, raw)
    usd = raw["usd_per_m_tokens"]
    named = {
        "rank": rank,
        "pools": [_pool(problem, pool) for pool in raw["pools"]],
        "chips": round(raw["chips"]),
        "interval": Interval(p10=usd * low, p90=usd * high),
        "basis": basis,
    }
    rest = {field.name: raw[field.name] for field in fields(PosttrainPlan) if field.name not in named}
    return PosttrainPlan(**named, **rest)


def _interval(problem: CompiledPosttraining, raw: Mapping[str, Any]) -> tuple[float, float, str]:
    """Factors at P10 and P90, and their basis.

    With a rollout: the residual spread of measured steps whose model was not in the fit; without: of the training model.
    """
    if problem.serving is not None:
        calibration = default_posttraining_calibration()
        factor = math.exp(_P90_OF_NORMAL * calibration.spread)
        return 1.0 / factor, factor, calibration.basis
    trainer = problem.trainers[raw["pools"][0]["stages"][0]["stack"]]
    return (*trainer.factors, trainer.basis)


_P90_OF_NORMAL = 1.2816
"""Standard normal quantile at 90%."""


def _plans(problem: CompiledPosttraining, raw: list[Mapping[str, Any]]) -> list[PosttrainPlan]:
    return [_plan(problem, rank, plan) for rank, plan in enumerate(raw, start=1)]


def _infeasible(problem: CompiledPosttraining, answer: Mapping[str, Any]) -> InfeasibleError:
    request, nearest = problem.request, answer["nearest"]
    chips = f"{request.max_chips:,} chips"
    if nearest is None:
        return InfeasibleError(
            f"{problem.policy.key} and what {request.algorithm} needs beside it fit on no plan of at most {chips} of "
            f"{some_keys(chip.key for chip in problem.accelerators)}",
            ["raise --max-chips, widen --hardware, or shorten --response-len"],
        )
    plan = _plan(problem, 1, nearest)
    days = math.ceil(plan.days * 10) / 10
    pools = " and ".join(f"{pool.chips:,} {pool.accelerator}" for pool in plan.pools)
    return InfeasibleError(
        f"no plan of at most {chips} ends within {_deadline(request):g} days: the fastest, on {pools}, takes "
        f"{plan.days:,.1f} days at {plan.step_time_s:,.0f} s a step",
        [f"relax --deadline-days to {days:g}, raise --max-chips, or lower --steps"],
    )
