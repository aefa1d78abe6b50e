"""What a user asks of a post-training run, and the checks that every input passes before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tokenopt import fields as given
from tokenopt.catalog.posttraining import default_posttraining_calibration
from tokenopt.errors import SpecError
from tokenopt.records import Term
from tokenopt.request import DEFAULT_PUE, UNSURE_TERMS
from tokenopt.training_request import MOST_CHIPS, TRAINING_FORMATS, OptimizerName

Algorithm = Literal["ppo", "grpo", "dapo", "dpo", "reward-model"]
Placement = Literal["any", "colocated", "split", "separate"]

ROLLOUT_ALGORITHMS = ("ppo", "grpo", "dapo")
"""Algorithms whose step begins with answers of the policy; the others train on given preferences."""
DEFAULT_POSTTRAIN_DAYS = 30.0
"""Wall time assumed where none is stated."""
DEFAULT_SPREAD = 0.7
"""Standard deviation of answer lengths over their mean where none is stated: reasoning answers have a long tail."""
LONGEST_OVER_MEAN = 4.0
"""Length at which answers are cut, over their mean, where none is stated."""

_MAX_TOKENS = 1e8


@dataclass(frozen=True, slots=True, kw_only=True)
class PosttrainRequest:
    """What a user asks of a post-training run. Field names are those of the flags.

    Attributes:
        policy: Model that is trained: catalogue key, Hugging Face id, or path of a config.json.
        algorithm: `ppo`, `grpo`, `dapo`, `dpo` or `reward-model`.
        reward: Reward model; None = the policy's size for PPO, a verifier off the accelerators for GRPO and DAPO.
        critic: Critic of PPO; None = the policy's size.
        reference: Reference for the KL term; None = the policy before training.
        kl: Whether the KL term is used, which takes the reference's log-probabilities (never for DAPO).
        old_logprobs: Whether the trainer computes the policy's log-probabilities again instead of taking the engine's.
        prompts: Prompts of a step (preference pairs for DPO and reward models).
        samples: Answers to each prompt; None = 1 for PPO, 16 for GRPO and DAPO.
        oversample: Answers generated over answers trained on (dynamic sampling).
        prompt_len: Prompt length, tokens.
        response_len: Mean answer length, tokens.
        max_response_len: Length at which answers are cut, tokens; None = four times the mean.
        response_spread: Standard deviation of answer lengths over their mean.
        steps: Steps of the run.
        tokens: Tokens to train on instead of `steps`.
        epochs: Passes of an update over a step's answers.
        minibatches: Optimizer steps of one pass.
        verifier_seconds: Time a step waits for verifiers.
        lora_rank: Rank of low-rank adapters; 0 = all weights are trained.
        optimizer: What the optimizer keeps.
        precision: Formats of the linear layers in updates that compete.
        asynchronous: Whether generation may overlap with training on the answers of the step before.
        placement: Which placements compete.
        engine: Serving engine for generation.
        deadline_days: Limit on the wall time; None = 30 days.
        max_chips: Most chips that may be paid for.
        top: Plans in `best`.
        software: Post-training software whose calibration is used; empty = the mean of all.
        host_gb_per_s: Rate at which a chip moves state to host memory and back, GB/s; None = calibrated.
        phase_overhead_s: Waking and sleeping when a pool changes its stage, s; None = calibrated.
        mtbf_hours, restart_s, storage_gb_per_s: As of a training run.
        hardware, vendor, announced, provider, region, term, spot, price, prices_max_age, tco, pue: As of a search.
    """

    policy: str = "llama-3.1-8b"
    algorithm: str = "grpo"
    reward: str | None = None
    critic: str | None = None
    reference: str | None = None
    kl: bool = True
    old_logprobs: bool = True
    prompts: float = 256
    samples: float | None = None
    oversample: float = 1.0
    prompt_len: float = 512
    response_len: float = 2048
    max_response_len: float | None = None
    response_spread: float = DEFAULT_SPREAD
    steps: float = 500
    tokens: float | None = None
    epochs: float = 1
    minibatches: int = 1
    verifier_seconds: float = 0.0
    lora_rank: int = 0
    optimizer: str = "adam32"
    precision: Sequence[str] = ("bf16",)
    asynchronous: bool = False
    placement: str = "any"
    engine: str | None = None
    deadline_days: float | None = None
    max_chips: int = 256
    top: int = 10
    software: str = ""
    host_gb_per_s: float | None = None
    phase_overhead_s: float | None = None
    mtbf_hours: float = 50_700.0
    restart_s: float = 600.0
    storage_gb_per_s: float = 0.122
    hardware: Sequence[str] = ()
    vendor: Sequence[str] = ()
    announced: bool = False
    provider: Sequence[str] = ()
    region: Sequence[str] = ()
    term: str | None = None
    spot: bool = False
    price: Mapping[str, float] = field(default_factory=dict)
    tco: Mapping[str, float | str] = field(default_factory=dict)
    prices_max_age: int | None = None
    pue: float = DEFAULT_PUE


_TEXTS = ("policy", "algorithm", "reward", "critic", "reference", "optimizer", "placement", "engine", "term")
_TEXT_LISTS = ("precision", "hardware", "vendor", "provider", "region")
_NUMBERS = (
    "prompts", "samples", "oversample", "prompt_len", "response_len", "max_response_len", "response_spread", "steps",
    "tokens", "epochs", "verifier_seconds", "deadline_days", "host_gb_per_s", "phase_overhead_s", "mtbf_hours",
    "restart_s", "storage_gb_per_s", "pue",
)  # fmt: skip
_WHOLES = ("minibatches", "lora_rank", "max_chips", "top", "prices_max_age")
_FLAGS = ("kl", "old_logprobs", "asynchronous", "announced", "spot")


def checked_posttraining(request: PosttrainRequest) -> PosttrainRequest:
    """Checks every field of a request by itself and against the others.

    Args:
        request: As a user gave it: a single text may stand for a list of one.

    Returns:
        The same request with plain Python numbers and tuples in its fields.

    Raises:
        SpecError: Names the field, its value and what is legal.
    """
    request = replace(request, **_typed(request))
    known = default_posttraining_calibration().stacks
    if request.software:
        given.choice("software", request.software, tuple(known))
    for name, most in (
        ("prompts", 1e7), ("samples", 1e5), ("oversample", 100.0), ("prompt_len", _MAX_TOKENS),
        ("response_len", _MAX_TOKENS), ("max_response_len", _MAX_TOKENS), ("steps", 1e9), ("tokens", 1e17),
        ("epochs", 1e3), ("deadline_days", 36_500.0), ("host_gb_per_s", 1e5), ("mtbf_hours", 1e12),
        ("storage_gb_per_s", 1e4),
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None:
            given.positive(name, value, most)
    for name, least, most in (
        ("response_spread", 0.0, 10.0), ("verifier_seconds", 0.0, 1e6), ("phase_overhead_s", 0.0, 1e4),
        ("restart_s", 0.0, 1e6), ("pue", 1.0, 5.0), ("minibatches", 1, 10**6), ("lora_rank", 0, 65_536),
        ("max_chips", 1, MOST_CHIPS), ("top", 1, 1000), ("prices_max_age", 0, 100_000), ("oversample", 1.0, 100.0),
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None:
            given.within(name, value, least, most)
    for name in ("prompts", "samples", "prompt_len", "response_len"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise SpecError(f"{name} is {value:g}, expected at least 1")
    given.choice("algorithm", request.algorithm, get_args(Algorithm))
    given.choice("placement", request.placement, get_args(Placement))
    given.choice("optimizer", request.optimizer, get_args(OptimizerName))
    for value in request.precision:
        given.choice("precision", value, (*TRAINING_FORMATS, "any"))
    if request.term is not None:
        given.choice("term", request.term, get_args(Term))
    _check_agreement(request)
    return request


def _typed(request: PosttrainRequest) -> dict[str, Any]:
    values: dict[str, Any] = {"price": given.quotes(request.price), "tco": given.owners_inputs(request.tco)}
    readers = (
        (_TEXTS, given.text), (_TEXT_LISTS, given.texts), (_NUMBERS, given.number), (_WHOLES, given.whole),
        (_FLAGS, given.flag),
    )  # fmt: skip
    for names, read in readers:
        for name in names:
            value = getattr(request, name)
            values[name] = None if value is None else read(name, value)
    return values


def _check_agreement(request: PosttrainRequest) -> None:
    algorithm = request.algorithm
    if request.tco and request.term != "owned":
        raise SpecError("tco sets the owner's cost, which is ranked with term owned alone: add --term owned")
    if request.spot and request.term is not None and request.term not in UNSURE_TERMS:
        raise SpecError(
            f"spot adds spot and marketplace prices, but term asks for {request.term} alone: give one of them"
        )
    if request.critic is not None and algorithm != "ppo":
        raise SpecError(f"critic is given, but {algorithm} has none: only ppo trains a critic")
    if algorithm not in ROLLOUT_ALGORITHMS:
        for name in ("reward", "samples", "max_response_len"):
            if getattr(request, name) is not None:
                raise SpecError(f"{name} is given, but {algorithm} trains on given answers and generates none")
        if request.asynchronous:
            raise SpecError(f"asynchronous is given, but {algorithm} generates nothing that could overlap")
        if request.placement in ("split", "separate"):
            raise SpecError(f"placement is {request.placement}, but {algorithm} has one stage: nothing to place apart")
    if algorithm == "dapo" and request.reference is not None:
        raise SpecError("reference is given, but dapo has no KL term")
    if request.reference is not None and not request.kl:
        raise SpecError("reference is given, but kl is off: nothing would use it")
    if request.asynchronous and request.placement == "colocated":
        raise SpecError("asynchronous needs pools that work at the same time, but placement is colocated")
    longest = request.max_response_len
    if longest is not None and longest < request.response_len:
        raise SpecError(
            f"max_response_len is {longest:g}, shorter than the mean answer of {request.response_len:g} tokens"
        )
    if request.minibatches > sequences(request):
        raise SpecError(
            f"minibatches is {request.minibatches}, more than the {sequences(request):,.0f} sequences of a step"
        )


def samples(request: PosttrainRequest) -> float:
    """Answers to each prompt."""
    if request.samples is not None:
        return request.samples
    return 1.0 if request.algorithm == "ppo" else 16.0


def sequences(request: PosttrainRequest) -> float:
    """Sequences a step trains on: answers, or both sides of each preference."""
    return request.prompts * (samples(request) if request.algorithm in ROLLOUT_ALGORITHMS else 2.0)


def longest_response(request: PosttrainRequest) -> float:
    """Length at which answers are cut, tokens."""
    return request.max_response_len if request.max_response_len is not None else (
        request.response_len * LONGEST_OVER_MEAN
    )  # fmt: skip


def run_steps(request: PosttrainRequest) -> float:
    """Steps of the run, given or from its tokens."""
    if request.tokens is None:
        return request.steps
    per_step = sequences(request) * (request.prompt_len + request.response_len)
    return max(1.0, request.tokens / per_step)
