"""From what a user asks of a training run to the flat, validated problem that crosses into the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tokenopt.catalog.models import is_mixture_of_experts, resolve_model
from tokenopt.catalog.training_calibration import (
    default_training_calibration,
    resolve_training_parameters,
    training_novelty,
)
from tokenopt.errors import SpecError
from tokenopt.plugins import PluginRegistry
from tokenopt.prices.tco import SYSTEM_OVER_TDP
from tokenopt.problem import (
    Assumption,
    core_accelerator,
    no_price,
    ranked_terms_of,
    select_accelerators,
    select_offers,
    some_keys,
)
from tokenopt.records import Accelerator, Model, Offer
from tokenopt.request import DEFAULT_PUE, UNSURE_TERMS
from tokenopt.training_request import (
    DEFAULT_DEADLINE_DAYS,
    MOST_CHIPS,
    TRAINING_FORMATS,
    TrainRequest,
    batch_sequences,
    batch_tolerance,
    batch_unit,
    checked_training,
)
from tokenopt.units import GB

HOURS_PER_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class TrainStackInfo:
    """Names behind one stack of the core's problem."""

    accelerator: Accelerator
    precision: str
    basis: str
    calibration: str
    factors: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CompiledTraining:
    """The core's problem, and the names to read its answer with.

    Attributes:
        core: The problem as it crosses into the core.
        request: What the user asked, checked.
        model: The model.
        stacks: Names behind the core's stacks, by index.
        offers: Prices behind the core's offer numbers.
        ranked_terms: Kinds of price that compete.
        assumptions: Defaults the user did not state.
        without_price: Accelerators left out for want of a price.
        cannot_run: Accelerators without a fast path for the wanted formats.
        doubtful_prices: Offers that fit but are marked suspect, and so are not ranked.
        notes: What the reader should know of the data.
    """

    core: dict[str, Any]
    request: TrainRequest
    model: Model
    stacks: list[TrainStackInfo]
    offers: list[Offer]
    ranked_terms: tuple[str, ...]
    assumptions: list[Assumption]
    without_price: list[str]
    cannot_run: list[str]
    doubtful_prices: int
    notes: list[str]


def build_training(request: TrainRequest, registry: PluginRegistry, *, today: date | None = None) -> CompiledTraining:
    """Checks a request and compiles it.

    Args:
        request: What the user asks.
        registry: The loaded plugins.
        today: Day that ages of prices are counted from.

    Returns:
        The problem for the core with the names behind its indices.

    Raises:
        SpecError: A field cannot be used; the sentence names it, its value and what is legal.
        MissingDataError: Nothing is left to search.
    """
    request = checked_training(request)
    model = resolve_model(request.model, registry.models)
    accelerators = select_accelerators(request, registry)
    ranked_terms = ranked_terms_of(request)
    selection = select_offers(request, registry, accelerators, ranked_terms, today or date.today())
    without_price = [chip.key for chip in accelerators if not selection.by_accelerator.get(chip.key)]
    priced = [chip for chip in accelerators if chip.key not in without_price]
    if not priced:
        raise no_price(selection, accelerators, ranked_terms)
    stacks, core_stacks, cannot_run = training_stacks(priced, request.precision, model)
    if not core_stacks:
        raise SpecError(
            f"{some_keys(chip.key for chip in priced)} has no fast path for {', '.join(request.precision)}",
            ["`tokenopt hardware KEY` lists the peaks of an accelerator; --precision any takes what there is"],
        )
    core = {
        "model": dict(model.architecture),
        "job": core_job(request),
        "batch_tolerance": batch_tolerance(request),
        "run": core_run(request),
        "limits": {
            "deadline_days": deadline_days(request),
            "max_chips": request.max_chips or MOST_CHIPS,
            "min_chips": request.min_chips,
            "max_usd": request.max_usd,
        },
        "accelerators": [
            core_accelerator(chip, request.pue, selection.by_accelerator.get(chip.key, [])) for chip in priced
        ],
        "stacks": core_stacks,
        "space": _space(request, model),
        "objective": request.objective,
        "top": request.top,
        "exhaustive": request.exhaustive,
        "threads": request.threads,
    }
    return CompiledTraining(
        core=core,
        request=request,
        model=model,
        stacks=stacks,
        offers=selection.offers,
        ranked_terms=ranked_terms,
        assumptions=_assumptions(request, model, priced),
        without_price=without_price,
        cannot_run=cannot_run,
        doubtful_prices=selection.doubtful,
        notes=[],
    )


def deadline_days(request: TrainRequest) -> float:
    """The deadline, stated or assumed."""
    return request.deadline_days if request.deadline_days is not None else DEFAULT_DEADLINE_DAYS


def core_job(request: TrainRequest) -> dict[str, Any]:
    """The job in the core's shape."""
    recipe: Any = request.recipe.replace("-", "_")
    if request.recipe == "lora":
        recipe = {"lora": {"rank": request.lora_rank}}
    return {
        "seq_len": request.seq_len,
        "global_batch": batch_sequences(request),
        "recipe": recipe,
        "document_tokens": request.document_tokens,
        "optimizer": request.optimizer.replace("-", "_"),
    }


def core_run(request: TrainRequest) -> dict[str, Any]:
    """The run in the core's shape."""
    return {
        "tokens": request.tokens,
        "ramp_tokens": request.ramp_tokens,
        "ramp_speed": request.ramp_speed,
        "evaluation_every_steps": request.eval_every,
        "evaluation_s": request.eval_seconds,
        "startup_hours": request.startup_hours,
        "spare_share": request.spare_share,
        "reliability": {
            "chip_hours_between_failures": request.mtbf_hours,
            "detection_s": request.detection_s,
            "restart_s": request.restart_s,
            "withdrawals_per_instance_hr": request.withdrawals_per_month / HOURS_PER_MONTH,
            "withdrawal_wait_s": request.withdrawal_wait_s,
        },
        "checkpoint": {
            "interval_s": request.checkpoint_interval_s,
            "stall_s": request.checkpoint_stall_s,
            "bytes_per_s_per_chip": request.storage_gb_per_s * GB,
        },
    }


def training_formats(chip: Accelerator) -> list[str]:
    """Formats with a fast path on a chip, widest first."""
    peaks = chip.peak_flops
    formats = ["bf16"]
    formats += ["fp8"] if "fp8" in peaks else []
    # Chips with four-bit arithmetic also scale eight bits by blocks.
    formats += ["mxfp8"] if "fp8" in peaks and "fp4" in peaks else []
    formats += ["nvfp4" if chip.vendor == "nvidia" else "mxfp4"] if "fp4" in peaks else []
    formats += ["int8"] if "int8" in peaks and "fp8" not in peaks else []
    return formats


def training_stacks(
    accelerators: Sequence[Accelerator], precision: Sequence[str], model: Model
) -> tuple[list[TrainStackInfo], list[dict[str, Any]], list[str]]:
    """Formats on accelerators with their calibrated parameters.

    Returns:
        Names, the same in the core's shape, and keys of the accelerators without any of the wanted formats.
    """
    infos: list[TrainStackInfo] = []
    stacks: list[dict[str, Any]] = []
    cannot_run: list[str] = []
    calibration = default_training_calibration()
    for index, chip in enumerate(accelerators):
        possible = training_formats(chip)
        wanted = [name for name in TRAINING_FORMATS if name in possible and (name in precision or "any" in precision)]
        if not wanted:
            cannot_run.append(chip.key)
        for name in wanted:
            parameters = resolve_training_parameters(calibration, accelerator=chip.key, family=chip.family, format=name)
            interval = training_interval(chip, name, model)
            infos.append(TrainStackInfo(chip, name, calibration.basis, calibration.name, interval))
            stacks.append(
                {"accelerator": index, "label": f"{chip.key} {name}", "format": name, "parameters": parameters}
            )
    return infos, stacks, cannot_run


def training_interval(chip: Accelerator, precision: str, model: Model) -> tuple[float, float]:
    """Factors on cost at P10 and P90."""
    return training_novelty(
        default_training_calibration(),
        model=model.key,
        accelerator=chip.key,
        family=chip.family,
        format=precision,
        is_moe=is_mixture_of_experts(model.architecture),
    ).factors


def _space(request: TrainRequest, model: Model) -> dict[str, Any]:  # noqa: ARG001
    space: dict[str, Any] = {
        name: list(values)
        for name in ("tp", "pp", "vpp", "cp", "ep", "dp", "micro_batch", "sharding", "recompute")
        if (values := getattr(request, name))
    }
    if request.schedule:
        names = {"1f1b": "one_forward_one_backward", "zero-bubble": "zero_bubble"}
        space["schedule"] = [names[name] for name in request.schedule]
    return space


def _assumptions(request: TrainRequest, model: Model, accelerators: Sequence[Accelerator]) -> list[Assumption]:
    defaults = TrainRequest()
    found: list[Assumption] = []

    def assume(name: str, value: object, why: str) -> None:
        found.append(Assumption(name, str(value), why))

    if request.model == defaults.model:
        assume("model", model.key, "default of --model")
    for name in ("tokens", "seq_len"):
        if getattr(request, name) == getattr(defaults, name):
            assume(name, f"{getattr(request, name):g}", f"default of --{name.replace('_', '-')}")
    unit = batch_unit(request)
    if request.global_batch_unit == "auto":
        limit = "from" if unit == "tokens" else "below"
        assume(
            "global batch", f"{request.global_batch:g} {unit}", f"{limit} one sequence's length: --global-batch-unit"
        )
    if batch_tolerance(request) > 0 and request.batch_tolerance is None:
        assume(
            "batch tolerance", f"{batch_tolerance(request):.0%}",
            "a batch in tokens is rounded to what the layout divides (--batch-tolerance)",
        )  # fmt: skip
    if request.deadline_days is None:
        assume("deadline", f"{DEFAULT_DEADLINE_DAYS:g} days", "no --deadline-days")
    if request.max_chips is None:
        assume("max-chips", f"{MOST_CHIPS:,}", "no --max-chips")
    if tuple(request.precision) == tuple(defaults.precision):
        assume("precision", "bf16", "--precision any lets eight- and four-bit training compete")
    if request.recipe == "lora" and request.lora_rank == defaults.lora_rank:
        assume("lora-rank", request.lora_rank, "default of --lora-rank")
    if request.mtbf_hours == defaults.mtbf_hours:
        assume("mtbf", f"{request.mtbf_hours:,.0f} chip-hours", "Llama 3 405B on 16,384 H100 (--mtbf-hours)")
    if request.restart_s == defaults.restart_s and request.detection_s == defaults.detection_s:
        assume("restart", f"{request.detection_s + request.restart_s:.0f} s", "automatic (--restart-s, --detection-s)")
    if request.checkpoint_interval_s is None:
        assume("checkpoint interval", "optimal", "least lost time (--checkpoint-interval-s)")
    if request.storage_gb_per_s == defaults.storage_gb_per_s and request.checkpoint_stall_s is None:
        assume("storage", f"{request.storage_gb_per_s:g} GB/s per chip", "Llama 3: 2 TB/s (--storage-gb-per-s)")
    if not request.eval_every:
        assume("evaluation", "none", "--eval-every and --eval-seconds add pauses")
    if request.spare_share == 0:
        assume("spares", "none", "--spare-share pays for idle replacements")
    is_spot = request.spot or request.term in UNSURE_TERMS
    if is_spot and request.withdrawals_per_month == defaults.withdrawals_per_month:
        assume("withdrawals", f"{request.withdrawals_per_month:g} a month and instance", "--withdrawals-per-month")
    if request.pue == DEFAULT_PUE:
        assume("pue", DEFAULT_PUE, "facility power over IT power (--pue)")
    estimated = [chip.key for chip in accelerators if chip.system_w is None]
    if estimated:
        assume("system power", f"{SYSTEM_OVER_TDP:g} x TDP", f"not published for {some_keys(estimated)}")
    context = int(model.architecture["max_context"])
    if request.seq_len > context:
        assume("context", f"{request.seq_len:,.0f}", f"longer than the {context:,} that {model.key} was published with")
    return found
