"""What a user asks of a training run, and the checks that every input passes before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tokenopt import fields as given
from tokenopt.errors import SpecError
from tokenopt.records import Term
from tokenopt.request import DEFAULT_PUE, UNSURE_TERMS

RecipeName = Literal["pretrain", "sft", "lora", "dpo", "reward-model"]
BatchUnit = Literal["auto", "tokens", "sequences"]
TrainObjective = Literal["cost", "time", "energy"]
ShardingName = Literal["zero0", "zero1", "zero2", "zero3"]
RecomputeName = Literal["none", "selective", "full"]
ScheduleName = Literal["1f1b", "zero-bubble"]
OptimizerName = Literal["adam32", "adam16", "adam8", "momentum", "host-adam32"]

TRAINING_FORMATS = ("bf16", "fp8", "mxfp8", "mxfp4", "nvfp4", "int8")
"""Formats of the linear layers' arithmetic that can be asked for."""

DEFAULT_TRAIN_MODEL = "llama-3.1-8b"
DEFAULT_DEADLINE_DAYS = 90.0
"""Wall time nobody would exceed without saying so: a run that takes longer is overtaken by the next chips."""
DEFAULT_BATCH_TOLERANCE = 0.05
"""Share by which a batch given in tokens may be rounded to what ranks and micro-batches divide."""
MOST_CHIPS = 100_000

_MAX_TOKENS = 1e17
_MAX_SEQ_LEN = 1e8
_MAX_BATCH_SEQUENCES = 1e7
_DEGREES = ("tp", "pp", "vpp", "cp", "ep", "dp", "micro_batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What a user asks of a training run. Field names are those of the flags.

    Attributes:
        model: Catalogue key, Hugging Face id, or path of a config.json.
        tokens: Tokens to train on.
        seq_len: Sequence length, tokens.
        global_batch: Batch of a step, in tokens or sequences.
        global_batch_unit: Unit of `global_batch`; `auto`: tokens from one sequence's length up, sequences below.
        batch_tolerance: Share by which a layout may round the batch; None = 5% for tokens, 0 for sequences.
        recipe: What is trained.
        lora_rank: Rank of the adapters of recipe `lora`.
        document_tokens: Length of the documents packed into a sequence; None = one document fills it.
        optimizer: What the optimizer keeps.
        precision: Formats of the linear layers that compete; `any` = every one with a fast path.
        deadline_days: Limit on the wall time; None = 90 days, dropped when nothing meets it.
        max_chips: Most chips that may be paid for.
        min_chips: Least chips that train.
        max_usd: Most USD for the run.
        objective: What is minimised.
        top: Solutions in `best`.
        exhaustive: Evaluate everything.
        threads: Threads of the core; 0 = all.
        hardware, vendor, announced, provider, region, term, spot, price, prices_max_age, tco, pue: As of a search.
        tp, pp, vpp, cp, ep, dp, micro_batch, sharding, recompute, schedule: Restrict the layout space.
        ramp_tokens: Tokens at the start that run slower.
        ramp_speed: Speed of that ramp as a share of the full speed.
        eval_every: Steps between evaluations; 0 = none.
        eval_seconds: Pause of one evaluation, s.
        startup_hours: Hours paid for before the first step.
        spare_share: Chips kept idle to replace broken ones, as a share of those that train.
        mtbf_hours: Chip-hours between failures that stop the run.
        detection_s: Time until a failure is noticed, s.
        restart_s: Time to replace the part and start again, s.
        checkpoint_interval_s: Training time between checkpoints, s; None = the interval that loses least.
        checkpoint_stall_s: Pause of a checkpoint, s; None = its bytes over the storage rate.
        storage_gb_per_s: Storage rate per chip, GB/s.
        withdrawals_per_month: Withdrawals of a spot instance in a month of 730 hours.
        withdrawal_wait_s: Wait for another instance after a withdrawal, s.
    """

    model: str = DEFAULT_TRAIN_MODEL
    tokens: float = 1e12
    seq_len: float = 8192
    global_batch: float = 4e6
    global_batch_unit: str = "auto"
    batch_tolerance: float | None = None
    recipe: str = "pretrain"
    lora_rank: int = 16
    document_tokens: float | None = None
    optimizer: str = "adam32"
    precision: Sequence[str] = ("bf16",)
    deadline_days: float | None = None
    max_chips: int | None = None
    min_chips: int = 1
    max_usd: float | None = None
    objective: str = "cost"
    top: int = 10
    exhaustive: bool = False
    threads: int = 0
    hardware: Sequence[str] = ()
    vendor: Sequence[str] = ()
    announced: bool = False
    provider: Sequence[str] = ()
    region: Sequence[str] = ()
    term: str | None = None
    spot: bool = False
    price: Mapping[str, float] = field(default_factory=dict)
    prices_max_age: int | None = None
    tco: Mapping[str, float | str] = field(default_factory=dict)
    pue: float = DEFAULT_PUE
    tp: Sequence[int] = ()
    pp: Sequence[int] = ()
    vpp: Sequence[int] = ()
    cp: Sequence[int] = ()
    ep: Sequence[int] = ()
    dp: Sequence[int] = ()
    micro_batch: Sequence[int] = ()
    sharding: Sequence[str] = ()
    recompute: Sequence[str] = ()
    schedule: Sequence[str] = ()
    ramp_tokens: float = 0.0
    ramp_speed: float = 0.5
    eval_every: int = 0
    eval_seconds: float = 0.0
    startup_hours: float = 0.0
    spare_share: float = 0.0
    mtbf_hours: float = 50_700.0
    detection_s: float = 60.0
    restart_s: float = 600.0
    checkpoint_interval_s: float | None = None
    checkpoint_stall_s: float | None = None
    storage_gb_per_s: float = 0.122
    withdrawals_per_month: float = 0.1
    withdrawal_wait_s: float = 0.0


_TEXTS = ("model", "global_batch_unit", "recipe", "optimizer", "objective")
_TEXT_LISTS = (
    "hardware", "vendor", "provider", "region", "precision", "sharding", "recompute", "schedule",
)  # fmt: skip
_NUMBERS = (
    "tokens", "seq_len", "global_batch", "ramp_tokens", "ramp_speed", "eval_seconds", "startup_hours", "spare_share",
    "mtbf_hours", "detection_s", "restart_s", "storage_gb_per_s", "withdrawals_per_month", "withdrawal_wait_s", "pue",
    "batch_tolerance", "document_tokens", "deadline_days", "max_usd", "checkpoint_interval_s", "checkpoint_stall_s",
)  # fmt: skip
_WHOLES = ("lora_rank", "min_chips", "top", "threads", "eval_every", "max_chips", "prices_max_age")
_FLAGS = ("announced", "spot", "exhaustive")


def checked_training(request: TrainRequest) -> TrainRequest:
    """Checks every field of a request by itself and against the others.

    Args:
        request: As a user gave it: a single text or number may stand for a list of one.

    Returns:
        The same request with plain Python numbers and tuples in its fields.

    Raises:
        SpecError: Names the field, its value and what is legal.
    """
    request = replace(request, **_typed(request))
    _check_ranges(request)
    _check_choices(request)
    _check_agreement(request)
    return request


def _typed(request: TrainRequest) -> dict[str, Any]:
    values: dict[str, Any] = {"price": given.quotes(request.price), "tco": given.owners_inputs(request.tco)}
    readers = (
        (_TEXTS, given.text), (_TEXT_LISTS, given.texts), (_NUMBERS, given.number), (_WHOLES, given.whole),
        (_FLAGS, given.flag), (_DEGREES, given.wholes), (("term",), given.text),
    )  # fmt: skip
    for names, read in readers:
        for name in names:
            value = getattr(request, name)
            values[name] = None if value is None else read(name, value)
    return values


def _check_ranges(request: TrainRequest) -> None:
    for name, most in (
        ("tokens", _MAX_TOKENS), ("seq_len", _MAX_SEQ_LEN), ("global_batch", _MAX_TOKENS), ("ramp_speed", 1.0),
        ("mtbf_hours", 1e12), ("storage_gb_per_s", 1e4), ("deadline_days", 36_500.0), ("max_usd", 1e15),
        ("document_tokens", _MAX_SEQ_LEN), ("checkpoint_interval_s", 1e9), ("checkpoint_stall_s", 1e7),
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None:
            given.positive(name, value, most)
    for name, least, most in (
        ("pue", 1.0, 5.0), ("ramp_tokens", 0.0, request.tokens), ("eval_seconds", 0.0, 1e7),
        ("startup_hours", 0.0, 1e5), ("spare_share", 0.0, 1.0), ("detection_s", 0.0, 1e6), ("restart_s", 0.0, 1e6),
        ("withdrawals_per_month", 0.0, 1e5), ("withdrawal_wait_s", 0.0, 1e6), ("lora_rank", 1, 65_536),
        ("top", 1, 1000), ("threads", 0, 4096), ("eval_every", 0, 10**9), ("max_chips", 1, MOST_CHIPS),
        ("min_chips", 1, MOST_CHIPS), ("prices_max_age", 0, 100_000), ("batch_tolerance", 0.0, 0.5),
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None:
            given.within(name, value, least, most)
    for name in ("seq_len", "tokens"):
        if getattr(request, name) < 1:
            raise SpecError(f"{name} is {getattr(request, name):g}, expected at least 1 token")
    if request.seq_len != math.floor(request.seq_len):
        raise SpecError(f"seq_len is {request.seq_len:g}, expected a whole number of tokens")
    for name in _DEGREES:
        for value in getattr(request, name):
            given.within(name, value, 1, MOST_CHIPS)


def _check_choices(request: TrainRequest) -> None:
    for name, legal in (
        ("recipe", get_args(RecipeName)),
        ("global_batch_unit", get_args(BatchUnit)),
        ("optimizer", get_args(OptimizerName)),
        ("objective", get_args(TrainObjective)),
    ):
        given.choice(name, getattr(request, name), legal)
    for name, legal in (
        ("precision", (*TRAINING_FORMATS, "any")),
        ("sharding", get_args(ShardingName)),
        ("recompute", get_args(RecomputeName)),
        ("schedule", get_args(ScheduleName)),
    ):
        for value in getattr(request, name):
            given.choice(name, value, legal)
    if request.term is not None:
        given.choice("term", request.term, get_args(Term))


def _check_agreement(request: TrainRequest) -> None:
    if request.tco and request.term != "owned":
        raise SpecError("tco sets the owner's cost, which is ranked with term owned alone: add --term owned")
    if request.spot and request.term is not None and request.term not in UNSURE_TERMS:
        raise SpecError(
            f"spot adds spot and marketplace prices, but term asks for {request.term} alone: give one of them"
        )
    if request.max_chips is not None and request.min_chips > request.max_chips:
        raise SpecError(f"min_chips is {request.min_chips} and max_chips {request.max_chips}: nothing lies between")
    if request.document_tokens is not None and request.document_tokens > request.seq_len:
        raise SpecError(
            f"document_tokens is {request.document_tokens:g}, longer than a sequence of {request.seq_len:g}"
        )
    if bool(request.eval_every) != bool(request.eval_seconds):
        raise SpecError(
            "eval_every and eval_seconds go together: how often an evaluation is run, and how long it takes"
        )
    sequences = batch_sequences(request)
    if sequences > _MAX_BATCH_SEQUENCES:
        raise SpecError(f"global_batch is {sequences:,.0f} sequences, expected at most {_MAX_BATCH_SEQUENCES:,.0f}")
    if sequences < 1 - batch_tolerance(request):
        raise SpecError(
            f"global_batch is {request.global_batch:,.0f} tokens, less than one sequence of {request.seq_len:,.0f}"
        )
    if batch_tolerance(request) == 0 and sequences != math.floor(sequences):
        raise SpecError(
            f"global_batch is {sequences:g} sequences, expected a whole number",
            ["--batch-tolerance allows rounding"],
        )
    if sequences * request.seq_len > request.tokens * (1 + batch_tolerance(request)):
        raise SpecError(
            f"global_batch is {sequences * request.seq_len:,.0f} tokens, more than the {request.tokens:,.0f} of the run"
        )
    _check_degrees(request, sequences)


def _check_degrees(request: TrainRequest, sequences: float) -> None:
    """Degrees that the batch or the sequence can never be split by."""
    if request.cp and not any(_cuts(request.seq_len, degree) for degree in request.cp):
        degrees = ", ".join(map(str, request.cp))
        raise SpecError(
            f"seq_len is {request.seq_len:,.0f} tokens, which context parallelism of {degrees} does not cut into "
            f"{2 * request.cp[0]} equal pieces",
            ["--cp must divide half the sequence length"],
        )
    sizes = request.micro_batch or (1,)
    if request.dp and batch_tolerance(request) == 0:
        legal = [dp for dp in request.dp if any(sequences % (dp * size) == 0 for size in sizes)]
        if not legal:
            degrees = ", ".join(map(str, request.dp))
            raise SpecError(
                f"global_batch is {sequences:,.0f} sequences, which data parallelism of {degrees} does not divide"
                + (f" with micro-batches of {', '.join(map(str, sizes))}" if request.micro_batch else ""),
                ["--batch-tolerance 0.05 allows the batch to be rounded"],
            )
    elif request.micro_batch and batch_tolerance(request) == 0 and all(sequences % size for size in sizes):
        raise SpecError(
            f"global_batch is {sequences:,.0f} sequences, which micro-batches of {', '.join(map(str, sizes))} do not divide"
        )
    if request.dp and min(request.dp) * min(sizes) > sequences * (1 + batch_tolerance(request)):
        raise SpecError(
            f"global_batch is {sequences:,.0f} sequences, fewer than dp {min(request.dp)} x micro-batch {min(sizes)}"
        )


def _cuts(seq_len: float, degree: int) -> bool:
    return degree == 1 or seq_len % (2 * degree) == 0


def batch_unit(request: TrainRequest) -> str:
    """The unit of `global_batch`, resolved: from one sequence's length up it is tokens."""
    if request.global_batch_unit != "auto":
        return request.global_batch_unit
    return "tokens" if request.global_batch >= request.seq_len else "sequences"


def batch_sequences(request: TrainRequest) -> float:
    """Sequences of a step as asked for; not whole when the batch was given in tokens."""
    if batch_unit(request) == "tokens":
        return request.global_batch / request.seq_len
    return request.global_batch


def batch_tolerance(request: TrainRequest) -> float:
    """Share by which the batch may be rounded."""
    if request.batch_tolerance is not None:
        return request.batch_tolerance
    return DEFAULT_BATCH_TOLERANCE if batch_unit(request) == "tokens" else 0.0
