"""Results of the engines' own offline benchmarks: no server and no client stand between the engine and the clock.

`vllm bench throughput`, SGLang's `bench_offline_throughput` and `bench_one_batch`. None says which accelerator it ran on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenopt.catalog.model_names import model_key
from tokenopt.measured.formats.document import Point, first
from tokenopt.measured.names import number, precision_in

_MS = 1e3


def _named(item: Mapping[str, Any], source: str, engine: str) -> Point:
    model = str(first(item, ("model_id", "model", "model_path")) or "")
    return {
        "source": source, "engine": engine, "model_name": model, "model": model_key(model),
        "weight_precision": precision_in(model), "tp": number(first(item, ("tp_size", "tp", "tensor_parallel_size"))),
    }  # fmt: skip


def sglang_offline(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """`sglang.bench_offline_throughput`: every request at once."""
    completed = number(item.get("successful_requests"))
    totals = number(item.get("total_input_tokens")), number(item.get("total_output_tokens"))
    isl, osl = (total / completed if total and completed else None for total in totals)
    return [
        {
            **_named(item, "SGLang benchmark", "sglang"), "scenario": "offline", "completed": completed,
            "concurrency": completed, "isl": isl, "osl": osl, "requests_per_s": number(item.get("request_throughput")),
            "output_tps": number(item.get("output_throughput")), "total_tps": number(item.get("total_throughput")),
        }
    ]  # fmt: skip


def sglang_batch(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """`sglang.bench_one_batch`: one batch of equal lengths; its prefill time is the time to first token."""
    batch, osl = number(item.get("batch_size")), number(item.get("output_len"))
    prefill_s = number(item.get("prefill_latency"))
    decode_s = number(item.get("median_decode_latency"))
    total_s = number(item.get("total_latency"))
    return [
        {
            **_named(item, "SGLang benchmark", "sglang"), "scenario": "batch", "latency_statistic": "median",
            "concurrency": batch, "isl": number(item.get("input_len")), "osl": osl,
            "ttft_ms": prefill_s * _MS if prefill_s else None, "tpot_ms": decode_s * _MS if decode_s else None,
            "e2e_ms": total_s * _MS if total_s else None, "total_tps": number(item.get("overall_throughput")),
            "output_tps": batch * osl / total_s if batch and osl and total_s else None,
        }
    ]  # fmt: skip


def vllm_throughput(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """`vllm bench throughput --output-json`: every request at once, tokens of prompts and answers together."""
    requests = number(item.get("num_requests"))
    return [
        {
            **_named(item, "vLLM benchmark", "vllm"), "scenario": "offline", "completed": requests, "concurrency": requests,
            "requests_per_s": number(item.get("requests_per_second")), "total_tps": number(item.get("tokens_per_second")),
            "note": "prompt and output length not stated",
        }
    ]  # fmt: skip
