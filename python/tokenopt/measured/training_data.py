"""Reading measured training steps in the columns of published tables, and cleaning them by stated rules.

A rule names what is wrong with a kind of row, never a row. Rows that a rule keeps out of scores are still predicted.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.measured.csv_rows import UNUSABLE, read_rows

BUNDLED_ROWS = Path(__file__).parent / "data" / "training_published.csv"
"""Published steps that ship with tokenopt; each row carries its source and date."""

NEEDED = ("id", "task", "model", "gpu", "n_gpus")
"""Columns without which a file is not one of measured training steps."""

TASKS = ("pretrain", "sft", "lora", "dpo", "reward-model")
"""Tasks that are one kind of optimizer step."""

RL_TASKS = ("grpo", "dapo", "ppo", "rlhf")
"""Tasks whose step begins with answers of the policy."""

STACKS = (
    ("torchtitan", ("torchtitan",)),
    ("torchtune", ("torchtune",)),
    ("maxtext", ("maxtext", "pax")),
    ("llm-foundry", ("llm-foundry", "mosaic")),
    ("automodel", ("automodel",)),
    ("primus", ("primus", "rocm", "llmboost")),
    ("neuron", ("neuron",)),
    ("gaudi", ("gaudi", "habana", "synapse")),
    ("meta", ("meta internal", "metaseq")),
    ("deepspeed", ("deepspeed",)),
    ("megatron", ("megatron", "nemo", "ngc", "nvidia", "mxnet", "hai-llm", "megascale")),
)
"""Software families by words in a framework's name, the first match wins; empty = unknown."""

FORMATS = {
    "bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "fp8-blockwise": "fp8", "fp8-rowwise": "fp8_rowwise", "mxfp8": "mxfp8",
    "nvfp4": "nvfp4", "mxfp4": "mxfp4", "fp4": "nvfp4", "int8": "int8",
}  # fmt: skip
"""Number formats of the linear layers by what tables print."""

DEFAULT_SEQUENCE = {"llama-2": 4096, "mixtral": 4096, "qwen": 4096, "deepseek": 4096, "llama-3": 8192, "llama-4": 8192,
                    "gemma": 8192, "mistral": 8192}  # fmt: skip
"""Sequence length of the usual recipe where a table prints none, tokens."""
SHORT_SEQUENCE = 2048
"""The same for every older model."""

PACKED_DOCUMENT_TOKENS = 300.0
"""Mean length of the question-and-answer documents that fine-tuning benchmarks pack, tokens: attention stops at their
borders. SQuAD contexts with their questions."""

SHARDED_ONLY_STACKS = ("llm-foundry", "deepspeed", "torchtune")
"""Software whose published runs spread weights over all chips and split nothing else."""

WHOLE_WEIGHTS_STACKS = ("megatron",)
"""Software whose published recipes keep whole weights on every data-parallel rank: all but 3 of 241 printed layouts."""

ALL_OR_NOTHING_STACKS = ("automodel", "deepspeed", "torchtune", "llm-foundry")
"""Software that recomputes every layer or none: one switch, no count of layers."""

FLASH_2_STACKS = ("torchtitan", "llm-foundry")
"""Software whose published runs used FlashAttention-2 kernels (PyTorch SDPA, flash-attn 2) on every chip."""

LORA_RANK = 16
"""Rank of the adapters of the published fine-tuning benchmarks."""

REPEAT_DIGITS = 4
"""Step times that agree to so many digits at the same layout and size are one run published twice."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One measured training step.

    Attributes:
        id: Identifier in the file.
        source: Who published it, without versions.
        date: When, as printed.
        task: What was trained.
        model, accelerator: Catalogue keys.
        format: Number format of the linear layers, as in the core.
        stack: Family of the training software, empty when unknown.
        release: Software and release, for what changes from one to the next.
        chips: Chips of the job.
        seq_len, global_batch: Tokens of a sequence, sequences of a step.
        layout: Layout in the core's shape, None where none is printed.
        is_recompute_open, is_expert_split_open, is_interleave_open: Whether the source leaves that open.
        recomputes_all_or_nothing: Whether its software recomputes every layer or none.
        batch_is_printed: Whether `global_batch` is, so that a rate follows from the step time.
        job: Further fields of the core's job.
        chip: What this part has unlike the catalogue's (field of the core's accelerator to value).
        tokens_per_s_per_chip, step_time_s, mfu, tflops, time_to_train_min, gpu_hours, total_tokens: As printed, None
            where not.
        counts_full_attention: Whether its FLOP convention counts the whole square of attention.
        mfu_peak_format: Format whose peak the printed utilisation refers to.
        parameters_b, active_parameters_b: Size of the model as printed, billions; None where not.
        unscored: Why the row is left out of calibration and scores; empty = it is in.
        assumed: What was filled in for want of a printed value.
    """

    id: str
    source: str
    date: str
    task: str
    model: str
    accelerator: str
    format: str
    stack: str
    release: str
    chips: int
    seq_len: float
    global_batch: float
    layout: Mapping[str, Any] | None
    is_recompute_open: bool
    recomputes_all_or_nothing: bool
    is_expert_split_open: bool
    is_interleave_open: bool
    batch_is_printed: bool
    job: Mapping[str, Any]
    chip: Mapping[str, Any]
    tokens_per_s_per_chip: float | None
    step_time_s: float | None
    mfu: float | None
    tflops: float | None
    time_to_train_min: float | None
    gpu_hours: float | None
    total_tokens: float | None
    counts_full_attention: bool
    mfu_peak_format: str
    parameters_b: float | None = None
    active_parameters_b: float | None = None
    unscored: str = ""
    assumed: tuple[str, ...] = field(default=())

    @property
    def group(self) -> tuple[str, str, str]:
        """Model, accelerator and format: rows of a group must not be split between fit and test."""
        return self.model, self.accelerator, self.format


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows of files: those that can be predicted, and the reason for each of the others by id."""

    rows: list[TrainingRow]
    refused: dict[str, str]


def read_training_rows(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Rows of files with the columns of published training tables, as text.

    Raises:
        SpecError: A file cannot be read or lacks a column.
    """
    return [row for path in paths for row in read_rows(path, NEEDED, "training_published.csv")]


def clean(raw: Iterable[Mapping[str, str]]) -> TrainingRows:
    """Reads every row and applies every rule."""
    rows: list[TrainingRow] = []
    refused: dict[str, str] = {}
    seen: set[tuple[object, ...]] = set()
    table = list(raw)
    printing = _sources_that_print_chunks() | {
        source_of(entry.get("source") or "") for entry in table if _number(entry, "vpp")
    }
    for entry in table:
        row = parse_row(entry, source_of(entry.get("source") or "") in printing)
        if isinstance(row, str):
            refused[entry.get("id") or f"line {len(rows) + len(refused) + 1}"] = row
            continue
        if row.step_time_s and not row.unscored:
            signature = (*row.group, row.task, row.chips, str(row.layout), f"{row.step_time_s:.{REPEAT_DIGITS}g}")
            if signature in seen:
                row = _unscored(row, "repeat of a run in another round")
            seen.add(signature)
        rows.append(row)
    return TrainingRows(rows, refused)


@cache
def _sources_that_print_chunks() -> frozenset[str]:
    """Sources whose bundled rows print interleaving: a file of some of their rows need not hold one that does."""
    with BUNDLED_ROWS.open(encoding="utf-8", newline="") as file:
        return frozenset(source_of(row["source"]) for row in csv.DictReader(file) if _number(row, "vpp"))


def _unscored(row: TrainingRow, reason: str) -> TrainingRow:
    from dataclasses import replace

    return replace(row, unscored=reason)


def layout_offer(stack: str) -> str:
    """Which layouts a search may take for a software family, in the core's words."""
    if stack in SHARDED_ONLY_STACKS:
        return "sharded_only"
    return "whole_weights" if stack in WHOLE_WEIGHTS_STACKS else "any"


def stack_of(framework: str) -> str:
    """Software family of a framework's name, empty when unknown."""
    name = framework.lower()
    return next((stack for stack, words in STACKS if any(word in name for word in words)), "")


def source_of(text: str) -> str:
    """A source without its release: `MLPerf Training v5.1` and `v5.0` are one."""
    return re.sub(r"[\s(]+((recipes\s+)?v?\d|Dec-|Jun-|fine-tuning|recipes|async|benchmarks).*$", "", text).strip()


def _number(entry: Mapping[str, str], name: str) -> float | None:
    try:
        value = float((entry.get(name) or "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _whole(entry: Mapping[str, str], name: str) -> int | None:
    value = _number(entry, name)
    return None if value is None else max(1, round(value))


def parse_row(entry: Mapping[str, str], prints_chunks: bool = False) -> TrainingRow | str:
    """One row, or the reason why it cannot be predicted.

    Args:
        entry: The row as text.
        prints_chunks: Whether its source prints interleaving where there is any.
    """
    if entry.get(UNUSABLE):
        return entry[UNUSABLE]
    task = (entry.get("task") or "pretrain").lower()
    if task not in TASKS and task not in RL_TASKS:
        return f"task {task[:40]} is not known, expected {', '.join(TASKS)} or an algorithm of reinforcement learning"
    if task not in TASKS:
        return f"{task}: a step of several stages, `tokenopt posttrain` times each"
    notes = entry.get("notes") or ""
    if notes.startswith("STAGE ROW"):
        return "one stage of a longer step"
    accelerator = (entry.get("gpu") or "").lower()
    if not accelerator:
        return "the source does not name the accelerator"
    model = (entry.get("model") or "").lower()
    if not model:
        return "the source does not name the model"
    chips = _whole(entry, "n_gpus")
    assumed: list[str] = []
    if chips is None:
        if not _number(entry, "gpu_hours"):
            return "the source prints no number of chips"
        chips = _assumed_chips(entry)
        assumed.append(f"{chips} chips")
    framework = entry.get("framework") or ""
    stack = stack_of(framework) or stack_of(entry.get("source") or "")
    precision = (entry.get("precision") or "").lower()
    is_mlperf = "mlperf" in (entry.get("source") or "").lower()
    if not precision:
        # Submissions that print no format and come from partners of vendors with FP8 run the vendor's recipe.
        precision = "fp8" if is_mlperf and not accelerator.startswith(("a100", "tpu", "gaudi2")) else "bf16"
        assumed.append(f"format {precision}")
    if precision not in FORMATS:
        return f"precision {precision} is not known"
    seq_len = _number(entry, "seq_len")
    if seq_len is None:
        seq_len = float(next((n for name, n in DEFAULT_SEQUENCE.items() if model.startswith(name)), SHORT_SEQUENCE))
        assumed.append(f"sequence {seq_len:.0f}")
    micro_batch = _whole(entry, "micro_batch")
    global_batch = _number(entry, "global_batch") or _batch_in_notes(notes, seq_len)
    layout, unscored = _layout(entry, stack, chips, micro_batch, global_batch, notes)
    if global_batch is None:
        global_batch = _assumed_batch(layout, chips, micro_batch)
        assumed.append(f"batch {global_batch:.0f}")
    # The MLPerf benchmark and the performance recipes of Megatron-based software adapt attention projections only.
    job: dict[str, Any] = {"recipe": _recipe(task, is_mlperf or stack == "megatron")}
    if task in ("sft", "lora") and not is_mlperf and "mock data" not in notes:
        job["document_tokens"] = PACKED_DOCUMENT_TOKENS
    if "token-drop" in notes or "tokendrop" in notes:
        job["capacity_factor"] = 1.0
    if (entry.get("date") or "")[:4] <= "2022" and stack in ("megatron", "meta"):
        job["attention"] = "materialised"
    elif stack in FLASH_2_STACKS and (entry.get("date") or "") < "2026":
        job["attention"] = "flash2"
    if "eager" in notes:
        job["is_eager"] = True
    if stack in ("megatron", "maxtext") and (entry.get("date") or "") >= "2024":
        # Performance recipes of that software reduce gradients in 16 bits.
        job["gradients"] = "bf16"
    if "offload" in notes.lower():
        job["optimizer"] = "host_adam32"
    return TrainingRow(
        id=entry["id"],
        source=source_of(entry.get("source") or ""),
        date=entry.get("date") or "",
        task=task,
        model=model,
        accelerator=accelerator,
        format=FORMATS[precision],
        stack=stack,
        release=_release(stack, entry),
        chips=chips,
        seq_len=seq_len,
        global_batch=global_batch,
        layout=layout,
        is_recompute_open=not (entry.get("recompute") or "").strip(),
        recomputes_all_or_nothing=stack in ALL_OR_NOTHING_STACKS,
        is_expert_split_open=True,
        batch_is_printed=bool(_number(entry, "global_batch")),
        is_interleave_open=stack == "megatron" and not prints_chunks and not _number(entry, "vpp"),
        job=job,
        chip=_chip(notes),
        tokens_per_s_per_chip=_number(entry, "tokens_per_s_per_gpu"),
        step_time_s=_number(entry, "step_time_s"),
        mfu=_number(entry, "mfu"),
        tflops=_number(entry, "tflops_per_gpu"),
        time_to_train_min=_number(entry, "time_to_train_min"),
        gpu_hours=_number(entry, "gpu_hours"),
        total_tokens=_number(entry, "total_tokens"),
        counts_full_attention=_counts_full_attention(entry, stack, notes),
        mfu_peak_format="bf16" if FORMATS[precision] == "int8" else FORMATS[precision],
        parameters_b=_number(entry, "params_b"),
        active_parameters_b=_number(entry, "active_params_b"),
        unscored=unscored or _unscored_reason(entry, layout, notes),
        assumed=tuple(assumed),
    )


def _recipe(task: str, adapts_attention_only: bool) -> Any:
    if task == "lora":
        return {"lora_attention" if adapts_attention_only else "lora": {"rank": LORA_RANK}}
    return {"sft": "sft", "dpo": "dpo", "reward-model": "reward_model"}.get(task, "pretrain")


def _release(stack: str, entry: Mapping[str, str]) -> str:
    version = (entry.get("framework_version") or "").strip() or (entry.get("framework") or "").strip()
    found = re.search(r"\d+\.\d+", version)
    return f"{stack} {found.group(0)}" if found and stack else stack


def _chip(notes: str) -> dict[str, Any]:
    """What a part has unlike the catalogue's: memory and power that the row prints for it."""
    if "500W" not in notes:
        return {}
    changed: dict[str, Any] = {"clock_power_w": 500.0}
    if "2.4TB/s" in notes:
        changed |= {"hbm_bytes_per_s": 2.4e12, "hbm_bytes": 95e9}
    return changed


def _batch_in_notes(notes: str, seq_len: float) -> float | None:
    found = re.search(r"tokens per step (\d+)", notes)
    if found:
        return max(1.0, round(float(found.group(1)) / seq_len))
    found = re.search(r"(\d+)M tokens(?:/| per )batch|global batch (\d+)M tokens", notes)
    if found:
        return max(1.0, round(float(found.group(1) or found.group(2)) * 2**20 / seq_len))
    return None


def _assumed_batch(layout: Mapping[str, Any] | None, chips: int, micro_batch: int | None) -> float:
    """Sequences of a step where none are printed: eight micro-batches a pipeline, or four sequences a chip."""
    if layout:
        return float(layout["dp"] * layout["micro_batch"] * 8 * layout["pp"])
    return float(chips * (micro_batch or 4))


def _assumed_chips(entry: Mapping[str, str]) -> int:
    """Chips of a run that prints chip-hours only: what takes about two months, a power of two of nodes."""
    hours = _number(entry, "gpu_hours") or 1.0
    wanted = hours / (60 * 24)
    return int(8 * 2 ** max(0, round(math.log2(max(wanted, 8.0) / 8.0))))


def _layout(
    entry: Mapping[str, str],
    stack: str,
    chips: int,
    micro_batch: int | None,
    global_batch: float | None,
    notes: str,
) -> tuple[dict[str, Any] | None, str]:
    """Layout in the core's shape (None where none is printed), and why the row is left out of scores."""
    tp, pp, cp = _whole(entry, "tp"), _whole(entry, "pp"), _whole(entry, "cp")
    zero = (entry.get("zero_stage") or "").strip()
    is_sharded = zero == "3" or stack == "automodel" or "Megatron-FSDP" in notes
    if tp is None and pp is None and not is_sharded:
        return None, ""
    tp, pp, cp = tp or 1, pp or 1, cp or 1
    if chips % (tp * pp * cp):
        return None, "the printed layout does not divide the chips"
    dp = chips // (tp * pp * cp)
    unscored = ""
    found = re.search(r"config config_\w*?_\d+x\d+x(\d+)x(?:tp|\d)", notes)
    if found and global_batch and int(found.group(1)) * dp * (micro_batch or 1) != round(global_batch):
        unscored = "layout of another benchmark's configuration: micro-batches x dp is not the batch"
    if "columns swapped" in notes:
        micro_batch = 1
    if micro_batch and ("PP microbatched" in notes or (pp > 1 and micro_batch >= 8)):
        # The local batch of a pipeline, printed as its micro-batch: it is cut into as many as there are stages.
        micro_batch = max(1, micro_batch // pp)
    micro_batch = micro_batch or 1
    if global_batch and global_batch < dp * micro_batch:
        micro_batch = max(1, int(global_batch // dp))
    experts = _whole(entry, "ep") or 1
    if stack == "automodel" and experts == 1:
        experts = -1
    return {
        "tp": tp,
        "sequence_parallel": not ("sequence parallelism off" in notes or stack == "automodel"),
        "pp": pp,
        "vpp": _chunks(entry, pp, notes),
        "cp": cp,
        "ep": experts,
        "etp": 1,
        "dp": dp,
        "sharding": _sharding(is_sharded, zero, notes, dp * cp),
        "micro_batch": micro_batch,
        "recompute": _recompute(entry, stack),
        "async_tensor": "asynctp" in notes.lower().replace(" ", ""),
    }, unscored


def _recompute(entry: Mapping[str, str], stack: str) -> str:
    """Recomputation in the core's words; `none` where it is open."""
    printed = (entry.get("recompute") or "").strip().lower()
    if printed == "selective" and stack == "torchtitan":
        # Its selective mode repeats every second product, not only what is cheap.
        return "half"
    return {"full": "full", "none": "none", "": "none"}.get(printed, "selective")


def _sharding(is_sharded: bool, zero: str, notes: str, replicas: int) -> Any:
    if not is_sharded:
        return {"0": "zero0", "2": "zero2"}.get(zero, "zero1")
    found = re.search(r"(?:FSDP sharding group|FSDP2 group) (\d+)", notes)
    if found and int(found.group(1)) < replicas and replicas % int(found.group(1)) == 0:
        return {"hybrid": int(found.group(1))}
    return "zero3"


def _chunks(entry: Mapping[str, str], pp: int, notes: str) -> int:
    vpp = _whole(entry, "vpp")
    if vpp:
        return vpp if pp > 1 else 1
    # "interleaved" without a number: two chunks a stage, the least that is one.
    return 2 if "interleaved" in notes and pp > 1 else 1


def _counts_full_attention(entry: Mapping[str, str], stack: str, notes: str) -> bool:
    """Whether a source's FLOP convention counts the whole square of attention.

    Papers, NeMo, DGX Cloud, MosaicML, torchtitan and MaxText before July 2025 do; Megatron-Bridge, later MaxText and
    DeepSpeed count causal pairs once.
    """
    if "causal attention" in notes.replace("non-causal attention", ""):
        return False
    framework = (entry.get("framework") or "").lower()
    if stack in ("deepspeed", "automodel") or framework == "megatron-bridge":
        return False
    return not (stack == "maxtext" and (entry.get("date") or "") >= "2025-07")


def _unscored_reason(entry: Mapping[str, str], layout: Mapping[str, Any] | None, notes: str) -> str:
    """Name of the rule that leaves a row out of calibration and scores; empty when none does."""
    rules = (
        ("up to ", "a best value, not a mean"),
        ("offload", "offload to the host"),
        ("untuned", "untuned functional test"),
        ("micro-benchmark", "micro-benchmark"),
        ("unpacked", "padded batches"),
        ("suboptimal mapping", "marked as badly mapped by its source"),
        ("reduced-layer", ""),
    )
    lowered = notes.lower()
    for words, reason in rules:
        if reason and words in lowered:
            return reason
    if layout is None:
        return "no layout printed"
    if not (_number(entry, "global_batch") or _number(entry, "micro_batch")):
        return "no batch printed"
    return ""
