"""The columns of a measured point: one table for every source, each unit in its name.

Readers of files hand over plain dicts with some of these names; what a file does not say is left out. Latencies are the
median where the source publishes one, else the mean (`latency_statistic` says which).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "number"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Name in the store, in CSV files and in JSON.
        kind: Text, or a number.
        meaning: What it holds, with its unit.
        low: Least value a measurement can have.
        high: Largest value that is not a mistake of unit or of decimal point.
        is_stack: Whether many points share its value: stored once for all of them.
    """

    name: str
    kind: Kind
    meaning: str
    low: float = 0.0
    high: float = 1e15
    is_stack: bool = False


def _text(name: str, meaning: str) -> Column:
    return Column(name, "text", meaning, is_stack=True)


def _word(name: str, meaning: str) -> Column:
    return Column(name, "text", meaning)


def _number(name: str, meaning: str, low: float, high: float) -> Column:
    return Column(name, "number", meaning, low, high)


TEXTS: tuple[Column, ...] = (
    _text("kind", "what was measured: `serving` or `training`"),
    _text("source", "who published the figure"),
    _text("tool", "format of the file it was read from"),
    _text("measured_on", "day of the measurement, ISO; empty where nothing says"),
    _text("model", "catalogue key; empty for a model the catalogue lacks"),
    _text("model_name", "model as the source writes it"),
    _text("accelerator", "catalogue key; empty where nothing says or the catalogue lacks it"),
    _text("accelerator_name", "accelerator as the source writes it"),
    _text("engine", "software, the name engines have in the catalogue"),
    _text("engine_version", "version or container image"),
    _text("weight_precision", "weight format as printed: bf16, fp8, fp4, int8 ..."),
    _text("kv_precision", "format of the KV cache"),
    _text("mode", "`agg`, or `disagg` for prefill and decode on chips of their own"),
    _text("speculative", "`none`, `mtp` or another method of speculative decoding; empty where nothing says"),
    _text("scenario", "`concurrency` (closed loop), `rate` (open loop), `offline`, `server`, `interactive`, `batch`, `training`"),
    _text("latency_statistic", "`median` or `mean`: what `ttft_ms`, `tpot_ms` and `e2e_ms` are"),
    _word("source_ref", "address, run or release behind it"),
    _word("layout", "layout in words where degrees alone do not tell it (workers of a disaggregated run)"),
    _word("note", "what to distrust or to know"),
)  # fmt: skip

NUMBERS: tuple[Column, ...] = (
    _number("chips", "accelerators in use, all pools", 1, 1e6),
    _number("prefill_chips", "of them for prefill, disaggregated runs", 1, 1e6),
    _number("decode_chips", "of them for decode, disaggregated runs", 1, 1e6),
    _number("tp", "tensor parallel degree (of the decode pool)", 1, 4096),
    _number("pp", "pipeline stages", 1, 4096),
    _number("ep", "expert parallel degree", 1, 65536),
    _number("attn_dp", "data-parallel ranks of attention", 1, 65536),
    _number("isl", "prompt length, tokens: nominal where one is set, else the mean", 0, 1e8),
    _number("osl", "output length, tokens: nominal where one is set, else the mean", 0, 1e8),
    _number("concurrency", "requests in flight on the deployment", 0, 1e7),
    _number("request_rate", "requests/s offered, open loop", 0, 1e7),
    _number("requests_per_s", "requests/s completed", 0, 1e7),
    _number("output_tps", "output tokens/s of the deployment", 0, 1e11),
    _number("total_tps", "input and output tokens/s of the deployment", 0, 1e12),
    _number("output_tps_per_chip", "output tokens/s per accelerator, all pools counted", 0, 1e7),
    _number("total_tps_per_chip", "input and output tokens/s per accelerator, all pools counted", 0, 1e8),
    _number("tps_per_user", "output tokens/s that a user sees while decoding", 0, 1e6),
    _number("ttft_ms", "time to first token, ms", 0, 1e8),
    _number("ttft_p99_ms", "99th percentile of it, ms", 0, 1e8),
    _number("tpot_ms", "time per output token, ms", 0, 1e6),
    _number("tpot_p99_ms", "99th percentile of it, ms", 0, 1e6),
    _number("e2e_ms", "whole request, ms", 0, 1e9),
    _number("e2e_p99_ms", "99th percentile of it, ms", 0, 1e9),
    _number("power_w_per_chip", "measured power per accelerator, W", 0, 1e5),
    _number("prefix_hit", "share of the prompt found in the prefix cache", 0, 1),
    _number("completed", "requests completed", 0, 1e12),
    _number("failed", "requests that failed", 0, 1e12),
    _number("seq_len", "training sequence length, tokens", 1, 1e8),
    _number("global_batch", "training batch, sequences", 1, 1e9),
    _number("samples_per_s", "sequences/s trained", 0, 1e9),
    _number("train_tps", "tokens/s trained", 0, 1e12),
    _number("time_to_train_min", "time to the quality target, minutes", 0, 1e8),
)  # fmt: skip

COLUMNS: tuple[Column, ...] = TEXTS + NUMBERS
TEXT_NAMES: tuple[str, ...] = tuple(column.name for column in TEXTS)
STACK_NAMES: tuple[str, ...] = tuple(column.name for column in TEXTS if column.is_stack)
POINT_TEXT_NAMES: tuple[str, ...] = tuple(column.name for column in TEXTS if not column.is_stack)
NUMBER_NAMES: tuple[str, ...] = tuple(column.name for column in NUMBERS)
NAMES: tuple[str, ...] = TEXT_NAMES + NUMBER_NAMES

RESULTS: tuple[str, ...] = (
    "output_tps", "total_tps", "output_tps_per_chip", "total_tps_per_chip", "tps_per_user", "tpot_ms", "ttft_ms", "e2e_ms",
    "requests_per_s", "samples_per_s", "train_tps", "time_to_train_min",
)  # fmt: skip
"""A point without any of these measures nothing."""
