"""Measured steps of reinforcement learning, and the plans they were run on, as the core predicts them.

What tables of such steps leave out is filled in by the assumptions named here, the same for every row of a kind; no
measured time enters a prediction.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenopt.catalog.engines import default_calibration, resolve_parameters
from tokenopt.catalog.models import load_bundled_model
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import UNUSABLE
from tokenopt.measured.training_data import RL_TASKS
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import DEFAULT_PUE, core_accelerator
from tokenopt.training_problem import training_stacks

PROMPT_TOKENS = 150.0
"""Prompt length where only the mean of prompt and answer is printed: the mathematics sets in use lie near it."""
SPREAD = 0.7
"""Spread of answer lengths where none is printed."""
SAMPLES = 16.0
"""Answers to a prompt where only their product is printed."""
UNPRINTED_RESPONSE = 1750.0
"""Mean answer of runs that print the cut only: inferred from the update time of a 7B model on mathematics."""

DEEPSPEED_CHAT = {"prompts": 1024.0, "prompt_tokens": 256.0, "response_tokens": 256.0, "samples": 264_292.0}
"""DeepSpeed-Chat's published step 3: 264,292 samples of 256 + 256 tokens, at most 1,024 pairs a step; the answers are
always generated to their full length."""

EAGER: Mapping[str, Mapping[str, float]] = {
    "nemo-rl": {"moe_layer_overhead_s": 150e-6},
}
"""Latency of expert layers where the engine runs without captured graphs. NeMo-RL's one-step-off steps of two
mixtures of unlike size, 61 and 94 layers, both take 45 ms per token of the longest answer."""

_STACKS = (
    ("nemo-rl", "nemo-rl"), ("nemo-aligner", "nemo-aligner"), ("deepspeed-chat", "deepspeed-chat"),
    ("openrlhf", "openrlhf"), ("verl", "verl"), ("areal", "areal"), ("open-instruct", "open-instruct"),
)  # fmt: skip
"""Software by the word that its name begins with."""


@dataclass(frozen=True, slots=True)
class RlRow:
    """One measured step of reinforcement learning.

    Attributes:
        id: Identifier in the file.
        model, accelerator: Catalogue keys.
        stack: Family of the software.
        chips: Chips of the job.
        step_time_s: Measured step, s, None where only a whole run is printed and its steps are not.
        algorithm: `ppo`, `grpo` or `dapo`.
        is_overlapped: Whether generation overlaps with training.
        has_old_logprobs: Whether the trainer works the policy's log-probabilities out again.
        rollout: Rollout in the core's shape.
        minibatches: Optimizer steps of one update.
        critic: Model of critic and reward, for PPO.
        pools: Chips of generation and training where printed.
        engine_tp: Tensor parallelism of the engine where printed.
        layout: Training degrees where printed.
        tokens_per_step: Tokens a step trains on.
        assumed: What was filled in.
    """

    id: str
    model: str
    accelerator: str
    stack: str
    chips: int
    step_time_s: float | None
    algorithm: str
    is_overlapped: bool
    has_old_logprobs: bool
    rollout: Mapping[str, float]
    minibatches: float
    critic: str | None
    pools: tuple[int, int] | None
    engine_tp: int | None
    layout: Mapping[str, int]
    tokens_per_step: float
    assumed: tuple[str, ...] = field(default=())


def _first(pattern: str, text: str) -> float | None:
    match = re.search(pattern, text)
    return float(match.group(1).replace(",", "")) if match else None


def _number(entry: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(entry.get(name) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def stack_of(framework: str) -> str:
    """Family of the software, empty when unknown."""
    name = framework.lower()
    return next((stack for word, stack in _STACKS if name.startswith(word)), "")


def parse_rl_row(entry: Mapping[str, str]) -> RlRow | str:
    """One row of a published table, or why it cannot be predicted."""
    if entry.get(UNUSABLE):
        return entry[UNUSABLE]
    notes = entry.get("notes") or ""
    if notes.startswith("STAGE ROW"):
        return "one stage of a step, not a step"
    chips, model, accelerator = _number(entry, "n_gpus"), entry.get("model") or "", entry.get("gpu") or ""
    for name, value in (("n_gpus", chips), ("model", model), ("gpu", accelerator)):
        if not value:
            return f"no {name} is printed"
    if chips is None:
        return "no n_gpus is printed"
    stack = stack_of(entry.get("framework") or "")
    if stack == "deepspeed-chat" and _number(entry, "global_batch") is None:
        return _deepspeed_chat(entry, int(chips))
    assumed: list[str] = []
    task = entry["task"]
    algorithm = "ppo" if task in ("rlhf", "ppo") and "RLVR" not in (entry.get("framework") or "") else task
    algorithm = algorithm if algorithm in ("ppo", "grpo", "dapo") else "grpo"
    whole = _first(r"avg generated\+prompt seq len ([\d.]+)", notes)
    response = _first(r"mean (?:response|generated tokens)(?: length)? ([\d.]+)", notes) or _first(
        r"mean ([\d.]+) generated tokens", notes
    )
    prompt = PROMPT_TOKENS
    if whole is not None:
        prompt = min(PROMPT_TOKENS, 0.5 * whole)
        response = whole - prompt
    if response is None:
        response = UNPRINTED_RESPONSE
        assumed.append("response length")
    assumed.append("prompt length")
    cut = _first(r"max resp(?:onse)?(?: length)? ([\d,]+)", notes)
    if cut is not None and cut < 1000:
        cut *= 1024
    cut = cut or ((_first(r"max seq ([\d,]+)", notes) or 0.0) - prompt)
    longest = cut if cut > response else 4.0 * response
    answers = _first(r"rollouts/step \(G-GBS\) ([\d,]+)", notes) or _first(r"num_rollout_samples ([\d,]+)", notes)
    answers = answers or _first(r"([\d,]+) rollout samples", notes)
    samples = 1.0 if algorithm == "ppo" else (_first(r"rollout n=(\d+)", notes) or SAMPLES)
    prompts = _first(r"train batch (\d+) prompts", notes) or (
        _number(entry, "global_batch") if answers is None else None
    )
    if answers is None:
        if prompts is None:
            prompts = 512.0
            assumed.append("prompts")
        answers = prompts * samples
    batch = _first(r"train GBS (\d+)", notes) or (_first(r"ppo_mini_batch (\d+)", notes) or 0.0) * samples
    degrees = {name: int(_number(entry, name) or 0) for name in ("tp", "pp", "cp", "ep")}
    pair = re.search(r"GPUs (\d+)(?: gen| train)?:(\d+)", notes)
    generates_first = bool(re.search(r"GPUs \d+ gen", notes))
    sizes = (int(pair.group(1)), int(pair.group(2))) if pair else None
    return RlRow(
        id=entry["id"],
        model=model,
        accelerator=accelerator,
        stack=stack,
        chips=int(chips),
        step_time_s=_number(entry, "step_time_s"),
        algorithm=algorithm,
        has_old_logprobs="stages_s" not in notes or "old_log_prob" in notes,
        is_overlapped=bool(re.search(r"1-step Off|asynchronous|(?<!a)async|overlap async|stream off-policy", notes)),
        rollout={
            "prompts": max(1.0, answers / samples), "samples": samples, "prompt_tokens": prompt,
            "response_tokens": response, "response_spread": SPREAD, "max_response_tokens": longest,
        },
        minibatches=max(1.0, answers / batch) if batch else 1.0,
        critic=model if algorithm == "ppo" else None,
        pools=sizes if sizes is None or generates_first else (sizes[1], sizes[0]),
        engine_tp=int(_first(r"generation \[TP,PP\]=\[(\d+)", notes) or 0) or None,
        layout={name: value for name, value in degrees.items() if value},
        tokens_per_step=answers * (prompt + response),
        assumed=tuple(assumed),
    )  # fmt: skip


def _deepspeed_chat(entry: Mapping[str, str], chips: int) -> RlRow | str:
    minutes = _number(entry, "time_to_train_min")
    if entry["task"] != "rlhf":
        return "a reward model on a set of unknown size"
    prompts = DEEPSPEED_CHAT["prompts"]
    steps = DEEPSPEED_CHAT["samples"] / prompts
    is_step_3_table = _number(entry, "total_tokens") is not None
    return RlRow(
        id=entry["id"],
        model=entry["model"],
        accelerator=entry["gpu"],
        stack="deepspeed-chat",
        chips=chips,
        step_time_s=minutes * 60.0 / steps if minutes and is_step_3_table else None,
        algorithm="ppo",
        is_overlapped=False,
        has_old_logprobs=True,
        rollout={
            "prompts": prompts, "samples": 1.0, "prompt_tokens": DEEPSPEED_CHAT["prompt_tokens"],
            "response_tokens": DEEPSPEED_CHAT["response_tokens"], "response_spread": 0.0,
            "max_response_tokens": DEEPSPEED_CHAT["response_tokens"],
        },
        minibatches=1.0,
        critic="opt-350m",
        pools=None,
        engine_tp=None,
        layout={},
        tokens_per_step=prompts * (DEEPSPEED_CHAT["prompt_tokens"] + DEEPSPEED_CHAT["response_tokens"]),
    )  # fmt: skip


def read_rl_rows(entries: Iterable[Mapping[str, str]]) -> tuple[list[RlRow], dict[str, str]]:
    """Steps of reinforcement learning among published rows, and the reason for each that cannot be predicted."""
    rows: list[RlRow] = []
    refused: dict[str, str] = {}
    for entry in entries:
        if entry.get("task") in RL_TASKS:
            row = parse_rl_row(entry)
            if isinstance(row, str):
                refused[entry["id"]] = row
            else:
                rows.append(row)
    return rows, refused


def _passes(row: RlRow) -> list[dict[str, Any]]:
    def forward(name: str, model: int, *, has_head: bool) -> dict[str, Any]:
        return {"name": name, "model": model, "kind": {"forward": {"has_head": has_head}}}

    def update(name: str, model: int, recipe: str) -> dict[str, Any]:
        kind = {"recipe": recipe, "epochs": 1.0, "minibatches": row.minibatches, "optimizer": "adam32"}
        return {"name": name, "model": model, "kind": {"update": kind}}

    passes = [forward("policy log-probs", 0, has_head=True)] if row.has_old_logprobs else []
    if row.algorithm != "dapo":
        passes.append(forward("reference log-probs", 0, has_head=True))
    if row.critic is not None:
        critic = 0 if row.critic == row.model else 1
        passes += [forward("reward", critic, has_head=False), forward("critic values", critic, has_head=False)]
        passes.append(update("critic update", critic, "reward_model"))
    passes.append(update("policy update", 0, "sft"))
    return passes


_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of the chips that may generate where the split is not printed."""


def _problem(row: RlRow, registry: PluginRegistry) -> dict[str, Any]:
    chip = registry.accelerators.get(row.accelerator)
    if chip is None:
        raise SpecError(f"accelerator {row.accelerator} is not in the catalogue")
    models = [load_bundled_model(row.model)]
    if row.critic is not None and row.critic != row.model:
        models.append(load_bundled_model(row.critic))
    policy = dict(models[0].architecture)
    parameters = {**resolve_parameters(default_calibration(), "vllm", chip.family, "bf16"), **EAGER.get(row.stack, {})}
    accelerator = {
        **core_accelerator(chip, DEFAULT_PUE),
        "offers": [{"id": 0, "usd_per_chip_hr": 1.0, "chips_per_instance": 1, "fabric_chips": chip.chips_per_node}],
    }
    if row.is_overlapped:
        sizes = row.pools or tuple(max(1, round(share * row.chips)) for share in _SHARES)
    else:
        sizes = (row.chips,)
    tokens = row.rollout["prompt_tokens"] + row.rollout["response_tokens"]
    formats = dict.fromkeys(("mixer", "dense", "experts", "head"), "bf16")
    return {
        "models": [dict(model.architecture) for model in models],
        "rollout": dict(row.rollout),
        "sequences": row.rollout["prompts"] * row.rollout["samples"],
        "sequence_tokens": tokens,
        "longest_tokens": row.rollout["prompt_tokens"] + row.rollout["max_response_tokens"],
        "passes": _passes(row),
        "steps": 1.0,
        "accelerators": [accelerator],
        "engines": [
            {
                "accelerator": 0, "label": "vllm", "weight_precision": "bf16", "weights": {**policy["native_formats"], **formats},
                "kv_precision": "bf16", "parameters": parameters,
            }
        ],
        "trainers": training_stacks([chip], ("bf16",), models[0])[1],
        "max_chips": row.chips,
        "may_overlap": row.is_overlapped,
        "placements": ["split" if row.is_overlapped else "colocated"],
        "objective": "time",
        "pool_chips": sorted({size for size in sizes if size <= row.chips}),
        "engine_tp": [row.engine_tp] if row.engine_tp else None,
        "trainer_space": {name: [value] for name, value in row.layout.items()},
        "reliability": {"chip_hours_between_failures": 1e15},
        "top": 1,
    }  # fmt: skip


def predict_rl_row(row: RlRow, registry: PluginRegistry) -> dict[str, Any] | str:
    """The fastest plan of a row's kind on its chips, or why there is none.

    Degrees that a row prints hold where they fit; where they do not, they are searched, and where optimizer states do
    not fit at all they go to host memory.

    Returns:
        The core's plan, or the reason.
    """
    from tokenopt import _core

    try:
        problem = _problem(row, registry)
    except SpecError as error:
        return error.message
    changes: tuple[dict[str, Any], ...] = ({}, {"engine_tp": None}, {"engine_tp": None, "trainer_space": {}})
    for change in changes:
        answer = json.loads(_core.posttrain(json.dumps({**problem, **change})))
        if answer["best"]:
            return dict(answer["best"][0])
    passes = json.loads(json.dumps(problem["passes"]))
    for item in passes:
        if "update" in item["kind"]:
            item["kind"]["update"]["optimizer"] = "host_adam32"
    answer = json.loads(
        _core.posttrain(json.dumps({**problem, "engine_tp": None, "trainer_space": {}, "passes": passes}))
    )
    if answer["best"]:
        return dict(answer["best"][0])
    return "no plan fits the memory of its chips"


def tokens_per_s_per_chip(row: RlRow, seconds: float) -> float:
    """Trained tokens/s of each chip."""
    return row.tokens_per_step / seconds / row.chips
