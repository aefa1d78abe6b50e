"""Results of load-testing tools as JSON, JSON lines or console text.

vLLM, SGLang, AIPerf and GenAI-Perf, GuideLLM, inference-perf, LLMPerf, trtllm-bench, AccelMark, system load tests.

Traps: seconds (inference-perf, LLMPerf, per-request arrays of vLLM) stand beside milliseconds; `request_goodput:` has a
colon; a request rate may be the text "inf" or the bare token Infinity; a run in which every request failed is all zeros;
throughput is the whole server's, and almost no file says how many accelerators that is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenopt.catalog.model_names import model_key
from tokenopt.errors import SpecError
from tokenopt.measured.formats import engine_bench
from tokenopt.measured.formats.document import Document, Parsed, Point, dated, first, is_zero, records
from tokenopt.measured.names import accelerator_key, engine_name, hardware_in_path, number, precision_in

_MS = 1e3
Reader = Callable[[Mapping[str, Any], str], list[Point]]


def recognises(document: Document) -> bool:
    """Whether this is one of the shapes."""
    return _shape(document) is not None


def read(document: Document) -> Parsed:
    """Points of the document."""
    shape = _shape(document)
    if shape is None:
        raise SpecError(f"{document.name} is not the result of a load-testing tool that is known")
    tool, items, reader = shape
    parsed = Parsed(tool)
    for item in items:
        for point in reader(item, document.path):
            reason = point.pop("_skipped", None) or _empty(point)
            if reason:
                parsed.skipped[reason] += 1
            else:
                parsed.points.append({"kind": "serving", **point})
    return parsed


def _empty(point: Point) -> str:
    if is_zero(point.get("output_tps"), point.get("tpot_ms"), point.get("ttft_ms"), point.get("total_tps")):
        failed = point.get("failed")
        return f"every request failed ({failed:.0f})" if failed else "nothing was measured: all figures are zero"
    return ""


def _shape(document: Document) -> tuple[str, Sequence[Mapping[str, Any]], Reader] | None:
    if document.syntax == "text":
        return _text_shape(document)
    if document.syntax != "json":
        return None
    value = document.json_value
    if isinstance(value, Mapping):
        whole = _whole_shape(value)
        if whole is not None:
            return whole
    found = records(value)
    if not found:
        return None
    for tool, needed, reader in _RECORDS:
        if all(any(name in found[0] for name in names) for names in needed):
            return tool, [{**_whole_run(value), **item} for item in found], reader
    if {"ttft_s", "end_to_end_latency_s"} <= found[0].keys():
        return "llmperf-requests", [{"requests": found}], _llmperf_requests
    return None


def _whole_run(value: Any) -> Mapping[str, Any]:
    """What an object says of all the records it wraps: model, hardware, software."""
    names = (
        "model",
        "model_id",
        "hardware",
        "accelerator",
        "gpu",
        "chips",
        "num_gpus",
        "framework",
        "engine",
        "version",
        "date",
    )
    return {name: value[name] for name in names if name in value} if isinstance(value, Mapping) else {}


def _whole_shape(value: Mapping[str, Any]) -> tuple[str, Sequence[Mapping[str, Any]], Reader] | None:
    """Shapes told by the whole object."""
    benchmarks = value.get("benchmarks")
    if (
        isinstance(benchmarks, list)
        and benchmarks
        and isinstance(benchmarks[0], Mapping)
        and "metrics" in benchmarks[0]
    ):
        model = _guidellm_model(value)
        return "guidellm", benchmarks, lambda item, path: _guidellm(item, path, model, value)
    if "load_summary" in value and "successes" in value:
        return "inference-perf", [value], _inference_perf
    if isinstance(value.get("chip"), Mapping) and isinstance(value.get("metrics"), Mapping):
        return "accelmark", [value], _accelmark
    if isinstance(value.get("time_to_first_token"), Mapping) or isinstance(value.get("request_throughput"), Mapping):
        return "aiperf", [value], _aiperf
    if isinstance(value.get("performance"), Mapping) and ("engine" in value or "world_info" in value):
        return "trtllm-bench", [value], _trtllm_report
    if value and all(isinstance(inner, Mapping) and "throughput_token_per_s" in inner for inner in value.values()):
        return "llmperf-bench", list(value.values()), _llmperf_bench
    return None


def _statistic(item: Mapping[str, Any], name: str) -> str:
    return "median" if number(first(item, (f"median_{name}", f"p50_{name}"))) else "mean"


def _vllm(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """`vllm bench serve --save-result`, the client of InferenceX, and SGLang's descendant of it."""
    completed, failed = number(item.get("completed")), number(item.get("failed"))
    statistic = (
        _statistic(item, "tpot_ms")
        if {"mean_tpot_ms", "median_tpot_ms", "p50_tpot_ms"} & set(item)
        else _statistic(item, "itl_ms")
    )
    model = str(first(item, ("model_id", "model", "tokenizer_id")) or "")
    rate = first(item, ("request_rate", "qps"))
    rate_number = math.inf if str(rate).strip().lower() in ("inf", "infinity") else number(rate)
    is_open = rate_number is not None and math.isfinite(rate_number) and rate_number > 0
    concurrency = number(item.get("max_concurrency"))
    isl, osl = _lengths(item, completed)
    point: Point = {
        "source_ref": str(item.get("label") or ""), "measured_on": dated(item.get("date")),
        "source": "vLLM benchmark", "model_name": model, "model": model_key(model), "weight_precision": precision_in(model),
        "engine": _backend(item), "engine_version": str(item.get("engine_version") or item.get("version") or ""),
        "scenario": "rate" if is_open else "concurrency", "request_rate": rate_number if is_open else None,
        "concurrency": concurrency or (None if is_open else number(item.get("num_prompts"))),
        "isl": isl, "osl": osl, "completed": completed, "failed": failed,
        "requests_per_s": number(item.get("request_throughput")), "output_tps": number(item.get("output_throughput")),
        "total_tps": number(first(item, ("total_token_throughput", "total_throughput"))), "latency_statistic": statistic,
    }  # fmt: skip
    if concurrency is None and not is_open:
        point["note"] = "every request at once: time to first token is queueing"
        point["scenario"] = "offline"
    for name, keys in (
        ("ttft_ms", (f"{statistic}_ttft_ms", "p50_ttft_ms", "median_ttft_ms", "mean_ttft_ms")), ("ttft_p99_ms", ("p99_ttft_ms",)),
        ("tpot_ms", (f"{statistic}_tpot_ms", "p50_tpot_ms")), ("tpot_p99_ms", ("p99_tpot_ms",)),
        ("e2e_ms", (f"{statistic}_e2el_ms", f"{statistic}_e2e_latency_ms", "mean_e2e_latency_ms")),
        ("e2e_p99_ms", ("p99_e2el_ms", "p99_e2e_latency_ms")),
    ):  # fmt: skip
        point[name] = number(first(item, keys))
    if not point["tpot_ms"]:
        # Inter-token latency is the same quantity where every token arrives on its own.
        point["tpot_ms"] = number(first(item, ("mean_itl_ms", "median_itl_ms")))
    if not point["tpot_ms"] and point["e2e_ms"] and point["ttft_ms"] and osl and osl > 1:
        point["tpot_ms"] = (point["e2e_ms"] - point["ttft_ms"]) / (osl - 1.0)
    for name, keys in (("tp", ("tp", "tensor_parallel_size", "tp_size")), ("chips", ("num_gpus", "gpus", "chips"))):
        point[name] = number(first(item, keys))
    hardware = first(item, ("gpu", "hardware", "accelerator", "gpu_name", "device"))
    if isinstance(hardware, str):
        point |= {"accelerator_name": hardware, "accelerator": accelerator_key(hardware)}
        point["chips"] = point["chips"] or hardware_in_path(hardware)[1]
    if completed == 0:
        point["_skipped"] = f"every request failed ({failed or number(item.get('num_prompts')) or 0:.0f})"
    return [point]


def _backend(item: Mapping[str, Any]) -> str:
    """The engine; `openai` names only the protocol."""
    for name in ("framework", "server", "engine", "backend", "endpoint_type"):
        text = item.get(name)
        if isinstance(text, str) and not text.lower().startswith("openai"):
            return engine_name(text)
    return ""


def _lengths(item: Mapping[str, Any], completed: float | None) -> tuple[float | None, float | None]:
    """Prompt and output length: what was asked for where it is stated, else the means over the run."""
    asked_in = number(first(item, ("random_input_len", "input_len", "isl")))
    asked_out = number(first(item, ("random_output_len", "output_len", "osl")))
    ratio = number(item.get("random_range_ratio"))
    if ratio is not None and ratio < 1.0:
        # Lengths are drawn down to ratio x nominal: the means tell what ran.
        asked_in = asked_out = None
    totals = number(item.get("total_input_tokens")), number(item.get("total_output_tokens"))
    means = [total / completed if total and completed else None for total in totals]
    return asked_in or means[0], asked_out or means[1]


def _sglang(item: Mapping[str, Any], path: str) -> list[Point]:
    points = _vllm(item, path)
    for point in points:
        point |= {"source": "SGLang benchmark", "engine": point["engine"] or "sglang"}
    return points


def _aiperf(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """AIPerf and GenAI-Perf: metric -> {unit, avg, p50 ...}."""

    def metric(name: str, statistic: str = "avg") -> float | None:
        entry = item.get(name)
        if not isinstance(entry, Mapping):
            return number(entry) if statistic == "avg" else None
        value = number(entry.get(statistic))
        if value is None:
            return None
        unit = str(entry.get("unit", "")).lower()
        scale = {"s": _MS, "sec": _MS, "seconds": _MS, "us": 1e-3, "ns": 1e-6}.get(unit, 1.0)
        is_time = name.endswith("latency") or name.startswith("time_to")
        return value * scale if is_time else value

    stated = item.get("input_config")
    config: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    model = _aiperf_model(item, config)
    concurrency, rate = _aiperf_load(config)
    has_median = metric("inter_token_latency", "p50") is not None
    statistic = "p50" if has_median else "avg"
    errors = item.get("error_request_count")
    point: Point = {
        "source": "AIPerf" if "aiperf_version" in item else "GenAI-Perf", "source_ref": str(item.get("benchmark_id") or ""),
        "measured_on": dated(item.get("start_time")), "model_name": model, "model": model_key(model),
        "weight_precision": precision_in(model), "scenario": "rate" if rate and not concurrency else "concurrency",
        "concurrency": concurrency, "request_rate": rate, "latency_statistic": "median" if has_median else "mean",
        "isl": metric("input_sequence_length"), "osl": metric("output_sequence_length"),
        "requests_per_s": metric("request_throughput"), "output_tps": metric("output_token_throughput"),
        "total_tps": metric("total_token_throughput"), "ttft_ms": metric("time_to_first_token", statistic),
        "ttft_p99_ms": metric("time_to_first_token", "p99"), "tpot_ms": metric("inter_token_latency", statistic),
        "tpot_p99_ms": metric("inter_token_latency", "p99"), "e2e_ms": metric("request_latency", statistic),
        "e2e_p99_ms": metric("request_latency", "p99"), "completed": metric("request_count"),
        "failed": number(errors.get("avg")) if isinstance(errors, Mapping) else None,
    }  # fmt: skip
    if item.get("was_cancelled") is True:
        point["_skipped"] = "the run was cancelled"
    return [point]


def _aiperf_model(item: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    names: list[str] = []
    tokenizer = config.get("tokenizer")
    if isinstance(tokenizer, Mapping) and isinstance(tokenizer.get("name"), str):
        names.append(tokenizer["name"])
    models = first(config, ("models", "model_names", "model"))
    if isinstance(models, Mapping):
        models = models.get("items")
    endpoint = config.get("endpoint")
    if models is None and isinstance(endpoint, Mapping):
        models = first(endpoint, ("model_names", "models"))
    for entry in models if isinstance(models, list) else [models]:
        names.append(str(entry.get("name") if isinstance(entry, Mapping) else entry or ""))
    names.append(str(item.get("model") or ""))
    return next(
        (name for name in names if name and model_key(name)), next((name for name in reversed(names) if name), "")
    )


def _aiperf_load(config: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Concurrency and request rate of the measured phase."""
    phases = config.get("phases")
    if isinstance(phases, list):
        for phase in phases:
            if isinstance(phase, Mapping) and not phase.get("exclude_from_results") and phase.get("name") != "warmup":
                return number(phase.get("concurrency")), number(first(phase, ("request_rate", "rate")))
    for holder in (config, config.get("loadgen"), config.get("stimulus"), _inner(config, "perf_analyzer", "stimulus")):
        if isinstance(holder, Mapping):
            concurrency, rate = number(holder.get("concurrency")), number(holder.get("request_rate"))
            if concurrency or rate:
                return concurrency, rate
    return None, None


def _inner(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _guidellm_model(value: Mapping[str, Any]) -> str:
    for path in (("args", "model"), ("config", "spec", "model"), ("config", "model"), ("config", "backend", "model"),
                 ("config", "backend_kwargs", "model")):  # fmt: skip
        found = _inner(value, *path)
        if isinstance(found, str):
            return found
    match = re.search(r"'model': '([^']+)'", str(value.get("config"))[:5000])
    return match.group(1) if match else ""


def _guidellm(item: Mapping[str, Any], path: str, model: str, report: Mapping[str, Any]) -> list[Point]:  # noqa: ARG001
    metrics = item["metrics"]

    def metric(name: str, statistic: str) -> float | None:
        entry = metrics.get(name)
        entry = entry.get("successful") if isinstance(entry, Mapping) and "successful" in entry else entry
        if not isinstance(entry, Mapping):
            return None
        return number(entry.get(statistic)) if statistic in entry else number(_inner(entry, "percentiles", statistic))

    strategy = (
        first(item, ("strategy",)) or _inner(item, "config", "strategy") or _inner(item, "args", "strategy") or {}
    )
    kind = str(strategy.get("type_") or "") if isinstance(strategy, Mapping) else ""
    model = model or str(_inner(item, "worker", "backend_model") or _inner(item, "request_loader", "processor") or "")
    rate = number(strategy.get("rate")) if isinstance(strategy, Mapping) else None
    streams = number(first(strategy, ("streams", "max_concurrency"))) if isinstance(strategy, Mapping) else None
    is_open = kind in ("constant", "poisson", "async") and bool(rate)
    totals = metrics.get("request_totals")
    count = _inner(item, "scheduler_metrics", "requests_made") or totals
    requests_per_s = metric("requests_per_second", "mean")
    osl = metric("output_token_count", "mean")
    output = metric("output_tokens_per_second", "mean")
    duration = number(item.get("duration"))
    completed = number(_inner(count, "successful"))
    if completed and osl and duration:
        # The tool's own rate averages over streamed pieces; tokens over time is what the others print.
        output = completed * osl / duration
    point: Point = {
        "source": "GuideLLM", "source_ref": str(_inner(report, "metadata", "guidellm_version") or ""),
        "measured_on": dated(item.get("start_time")), "model_name": model, "model": model_key(model),
        "weight_precision": precision_in(model), "latency_statistic": "median",
        "scenario": "rate" if is_open else "offline" if kind == "throughput" else "concurrency",
        "request_rate": rate if is_open else None,
        "concurrency": (1.0 if kind == "synchronous" else None if is_open or kind == "throughput" else streams)
        or metric("request_concurrency", "mean"),
        "isl": metric("prompt_token_count", "mean"), "osl": osl, "requests_per_s": requests_per_s, "output_tps": output,
        "ttft_ms": metric("time_to_first_token_ms", "median"), "ttft_p99_ms": metric("time_to_first_token_ms", "p99"),
        "tpot_ms": metric("inter_token_latency_ms", "median") or metric("time_per_output_token_ms", "median"),
        "tpot_p99_ms": metric("inter_token_latency_ms", "p99") or metric("time_per_output_token_ms", "p99"),
        "completed": completed, "failed": number(_inner(count, "errored")),
    }  # fmt: skip
    latency_s, latency_p99_s = metric("request_latency", "median"), metric("request_latency", "p99")
    point["e2e_ms"] = latency_s * _MS if latency_s else None
    point["e2e_p99_ms"] = latency_p99_s * _MS if latency_p99_s else None
    return [point]


def _inference_perf(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    successes, load = item["successes"], item.get("load_summary") or {}
    # Server-side metrics stand directly under successes, the client's under latency and throughput.
    is_server_side = "latency" not in successes
    latency = successes if is_server_side else successes.get("latency") or {}
    throughput = successes.get("throughput") or {}

    def seconds(name: str, statistic: str) -> float | None:
        value = number(_inner(latency, name, statistic))
        return value * _MS if value else None

    rate = number(load.get("requested_rate") or load.get("achieved_rate"))
    point: Point = {
        "source": "inference-perf", "scenario": "rate", "request_rate": rate, "latency_statistic": "median",
        "isl": number(_inner(successes, "prompt_len", "mean")), "osl": number(_inner(successes, "output_len", "mean")),
        "requests_per_s": number(throughput.get("requests_per_sec") or successes.get("rate")),
        "output_tps": number(throughput.get("output_tokens_per_sec") or _inner(successes, "output_len", "rate")),
        "total_tps": number(throughput.get("total_tokens_per_sec")), "ttft_ms": seconds("time_to_first_token", "median"),
        "ttft_p99_ms": seconds("time_to_first_token", "p99"), "tpot_ms": seconds("time_per_output_token", "median"),
        "tpot_p99_ms": seconds("time_per_output_token", "p99"), "e2e_ms": seconds("request_latency", "median"),
        "e2e_p99_ms": seconds("request_latency", "p99"), "completed": number(successes.get("count")),
        "failed": number(_inner(item, "failures", "count")),
    }  # fmt: skip
    if is_server_side:
        rate_in, requests = number(_inner(successes, "prompt_len", "rate")), point["requests_per_s"]
        if requests:
            point |= {"isl": rate_in / requests if rate_in else None}
            point["osl"] = point["output_tps"] / requests if point["output_tps"] else None
        point["note"] = "server-side averages over the window of collection"
    elif rate is None:
        point["note"] = "all stages of a run together"
    if not point["completed"]:
        point["_skipped"] = "every request failed"
    return [point]


def _llmperf(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    def seconds(name: str, statistic: str) -> float | None:
        value = number(item.get(f"results_{name}_s_{statistic}"))
        return value * _MS if value else None

    model = str(item.get("model") or "")
    return [
        {
            "source": "LLMPerf", "source_ref": str(item.get("name") or ""), "model_name": model, "model": model_key(model),
            "measured_on": dated(item.get("timestamp") or item.get("version")), "scenario": "concurrency",
            "latency_statistic": "median", "concurrency": number(item.get("num_concurrent_requests")),
            "isl": number(first(item, ("results_number_input_tokens_mean", "mean_input_tokens"))),
            "osl": number(first(item, ("results_number_output_tokens_mean", "mean_output_tokens"))),
            "requests_per_s": _per_minute(item.get("results_num_completed_requests_per_min")),
            "output_tps": number(item.get("results_mean_output_throughput_token_per_s")),
            "ttft_ms": seconds("ttft", "quantiles_p50"), "ttft_p99_ms": seconds("ttft", "quantiles_p99"),
            "tpot_ms": seconds("inter_token_latency", "quantiles_p50"),
            "tpot_p99_ms": seconds("inter_token_latency", "quantiles_p99"),
            "e2e_ms": seconds("end_to_end_latency", "quantiles_p50"),
            "e2e_p99_ms": seconds("end_to_end_latency", "quantiles_p99"),
            "completed": number(item.get("results_num_completed_requests")),
            "failed": number(item.get("results_number_errors")),
            "note": "a provider's endpoint: its hardware and the load of others are not known",
        }
    ]  # fmt: skip


def _per_minute(value: Any) -> float | None:
    amount = number(value)
    return amount / 60.0 if amount else None


def _llmperf_requests(item: Mapping[str, Any], path: str) -> list[Point]:
    """Individual responses: their medians make one point."""
    from statistics import fmean, median, quantiles

    items: Sequence[Mapping[str, Any]] = item["requests"]
    good = [item for item in items if item.get("error_code") in (None, "") and number(item.get("ttft_s"))]
    if not good:
        return [{"_skipped": "every request failed"}]

    def column(name: str) -> list[float]:
        return [value for item in good if (value := number(item.get(name)))]

    def p99(values: list[float]) -> float | None:
        return quantiles(values, n=100)[98] if len(values) >= 100 else None

    ttft, itl, e2e = column("ttft_s"), column("inter_token_latency_s"), column("end_to_end_latency_s")
    isl, osl = column("number_input_tokens"), column("number_output_tokens")
    model = path.rsplit("/", 1)[-1].removesuffix(".json")
    return [
        {
            "source": "LLMPerf", "source_ref": model, "scenario": "concurrency", "latency_statistic": "median",
            "isl": fmean(isl) if isl else None, "osl": fmean(osl) if osl else None,
            "ttft_ms": median(ttft) * _MS, "tpot_ms": median(itl) * _MS if itl else None,
            "e2e_ms": median(e2e) * _MS if e2e else None,
            "ttft_p99_ms": value * _MS if (value := p99(ttft)) else None, "completed": float(len(good)),
            "failed": float(len(items) - len(good)),
            "note": "medians of individual responses; concurrency and hardware not stated",
        }
    ]  # fmt: skip


def _llmperf_bench(item: Mapping[str, Any], path: str) -> list[Point]:
    name = path.rsplit("/", 1)[-1]
    model = next((part for part in re.split(r"_(?!_)", name) if model_key(part)), "")
    tp = re.search(r"tp_(\d+)", name)
    return [
        {
            "source": "llmperf-bench", "source_ref": name, "model_name": model, "model": model_key(model),
            "engine": "tgi" if "tgi" in path.lower() else "", "scenario": "concurrency", "latency_statistic": "mean",
            "concurrency": number(item.get("concurrency")), "isl": number(item.get("input_token_length")),
            "osl": number(item.get("output_token_length")), "output_tps": number(item.get("throughput_token_per_s")),
            "ttft_ms": number(item.get("first-time-to-token_mean_in_ms")), "tpot_ms": number(item.get("latency_ms_per_token")),
            "tp": number(tp.group(1)) if tp else None, "chips": number(tp.group(1)) if tp else None,
        }
    ]  # fmt: skip


def _multi_turn(item: Mapping[str, Any], path: str) -> list[Point]:
    """A replay of conversations: distributions as {mean, p50, p99}, milliseconds."""

    def of(name: str, *statistics: str) -> float | None:
        return number(first(item[name], statistics)) if isinstance(item.get(name), Mapping) else number(item.get(name))

    return [
        {
            "source": "multi-turn replay", "source_ref": path.rsplit("/", 1)[-1], "scenario": "concurrency",
            "latency_statistic": "median", "concurrency": number(item.get("concurrency")), "isl": of("isl", "mean", "median"),
            "osl": of("osl", "mean", "median"), "requests_per_s": number(item.get("request_throughput_per_s")),
            "output_tps": number(item.get("output_throughput_tok_per_s")),
            "total_tps": number(item.get("total_token_throughput_tok_per_s")), "ttft_ms": of("ttft_ms", "p50", "mean"),
            "ttft_p99_ms": of("ttft_ms", "p99"), "tpot_ms": of("tpot_ms", "p50", "mean"), "tpot_p99_ms": of("tpot_ms", "p99"),
            "e2e_ms": of("e2e_ms", "p50", "mean"), "e2e_p99_ms": of("e2e_ms", "p99"),
            "completed": number(item.get("completed_turns")), "failed": number(item.get("failed_turns")),
            "prefix_hit": number(item.get("cache_hit_rate")),
        }
    ]  # fmt: skip


def _accelmark(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    chip, model, software = item["chip"], item.get("model") or {}, item.get("software") or {}
    parallel = _inner(item, "task", "parallelism") or {}
    name = str(chip.get("name") or "")
    shared: Point = {
        "source": "AccelMark", "source_ref": str(_inner(item, "meta", "run_name") or ""),
        "measured_on": dated(_inner(item, "meta", "date")), "model_name": str(model.get("model_id") or ""),
        "model": model_key(str(model.get("model_id") or "")), "weight_precision": precision_in(str(model.get("precision") or "")),
        "accelerator_name": name, "accelerator": accelerator_key(name), "chips": number(chip.get("count")),
        "engine": engine_name(str(software.get("framework") or "")),
        "engine_version": str(software.get("framework_version") or ""),
        "tp": number(parallel.get("tensor_parallel_size")), "pp": number(parallel.get("pipeline_parallel_size")),
        "latency_statistic": "median",
    }  # fmt: skip
    chips = shared["chips"] or 1.0
    points: list[Point] = []
    for scenario, result in item["metrics"].items():
        if not isinstance(result, Mapping):
            continue
        # Series over time stand beside the figures of a scenario; only its sweeps are points of their own.
        lists = [
            inner
            for name, inner in result.items()
            if name.startswith("results_by") and isinstance(inner, list) and inner and isinstance(inner[0], Mapping)
        ]
        entries: list[Mapping[str, Any]] = [entry for inner in lists for entry in inner] or [result]
        for entry in entries:
            rate = number(first(entry, ("target_qps", "achieved_qps")))
            tps = number(
                first(entry, ("throughput_tokens_per_sec", "throughput_tokens_per_second", "output_tokens_per_sec",
                              "tokens_per_sec_median", "sustained_throughput_tokens_per_sec", "throughput_median"))
            )  # fmt: skip
            if tps is None:
                tps = next((number(v) for k, v in entry.items() if "token" in k and "sec" in k and number(v)), None)
            is_burst = scenario == "offline"
            points.append(
                {
                    **shared, "scenario": "rate" if rate else "offline" if is_burst else "concurrency",
                    "request_rate": rate, "output_tps": tps, "output_tps_per_chip": tps / chips if tps else None,
                    "concurrency": number(first(entry, ("client_concurrency", "concurrency", "batch_size")))
                    or (1.0 if scenario == "interactive" else None),
                    "ttft_ms": number(first(entry, ("ttft_ms_p50", "ttft_p50_ms", "ttft_ms_median"))),
                    "ttft_p99_ms": number(first(entry, ("ttft_ms_p99", "ttft_p99_ms"))),
                    "tpot_ms": number(first(entry, ("tpot_ms_p50", "tpot_p50_ms", "tpot_ms_median"))),
                    "tpot_p99_ms": number(first(entry, ("tpot_ms_p99", "tpot_p99_ms"))),
                }
            )  # fmt: skip
    return points or [{"_skipped": "no scenario with figures"}]


def _phase(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """A phase of a system load test: fixed concurrency, the system's output rate, each query's speed and latency."""

    def find(*words: str) -> tuple[str, float] | None:
        for key, value in item.items():
            lower = key.lower().replace(" ", "_")
            if all(word in lower for word in words) and number(value) is not None:
                return lower, number(value) or 0.0
        return None

    def milliseconds(*words: str) -> float | None:
        hit = find(*words)
        if hit is None:
            return None
        return hit[1] if "ms" in re.split(r"[_()]", hit[0]) else hit[1] * _MS

    system = find("system", "throughput") or find("output", "throughput")
    speed = find("query", "speed") or find("output", "speed") or find("tokens_per_second", "query")
    concurrency = find("concurren")
    hardware, model = str(first(item, ("hardware", "accelerator", "gpu", "system")) or ""), str(item.get("model") or "")
    return [
        {
            "source": "system load test", "scenario": "concurrency", "latency_statistic": "median",
            "concurrency": concurrency[1] if concurrency else None, "model_name": model, "model": model_key(model),
            "accelerator_name": hardware, "accelerator": accelerator_key(hardware),
            "chips": number(first(item, ("chips", "num_gpus", "gpus", "accelerators"))) or hardware_in_path(hardware)[1],
            "isl": number(first(item, ("isl", "input_tokens", "input_length"))),
            "osl": number(first(item, ("osl", "output_tokens", "output_length"))),
            "output_tps": system[1] if system else None, "tps_per_user": speed[1] if speed else None,
            "tpot_ms": _MS / speed[1] if speed and speed[1] else None,
            "ttft_ms": milliseconds("first", "token") or milliseconds("ttft"),
            "e2e_ms": milliseconds("end", "latency") or milliseconds("e2e") or milliseconds("latency"),
        }
    ]  # fmt: skip


def _trtllm_report(item: Mapping[str, Any], path: str) -> list[Point]:  # noqa: ARG001
    """`trtllm-bench --report_json`."""
    engine, world, performance = item.get("engine") or {}, item.get("world_info") or {}, item["performance"]
    info, model = item.get("request_info") or {}, str(_inner(item, "engine", "model") or "")
    tp, pp = number(world.get("tp_size")), number(world.get("pp_size"))
    chips = number(world.get("world_size")) or ((tp or 1) * (pp or 1) if tp else None)
    output = number(
        first(performance, ("system_output_throughput_tok_s", "output_throughput_tok_s", "token_throughput_tok_s"))
    )
    latency = item.get("streaming_metrics") or {}
    return [
        {
            "source": "trtllm-bench", "model_name": model, "model": model_key(model), "engine": "trtllm",
            "engine_version": str(engine.get("version") or ""), "scenario": "offline",
            "weight_precision": precision_in(str(engine.get("quantization") or engine.get("dtype") or "")),
            "kv_precision": precision_in(str(engine.get("kv_cache_dtype") or "")), "tp": tp, "pp": pp, "chips": chips,
            "isl": number(info.get("avg_input_length")), "osl": number(info.get("avg_output_length")),
            "completed": number(info.get("num_requests")), "concurrency": number(info.get("avg_num_concurrent_requests")),
            "requests_per_s": number(performance.get("request_throughput_req_s")), "output_tps": output,
            "total_tps": number(performance.get("system_total_throughput_tok_s")), "latency_statistic": "mean",
            "ttft_ms": number(first(latency, ("avg_ttft_ms",))), "tpot_ms": number(first(latency, ("avg_tpot_ms",))),
            "output_tps_per_chip": output / chips if output and chips else None,
        }
    ]  # fmt: skip


_CONSOLE = {
    "successful requests": "completed", "failed requests": "failed", "benchmark duration (s)": "duration",
    "total input tokens": "total_input_tokens", "total generated tokens": "total_output_tokens",
    "request throughput (req/s)": "request_throughput", "output token throughput (tok/s)": "output_throughput",
    "total token throughput (tok/s)": "total_token_throughput", "maximum request concurrency": "max_concurrency",
    "max request concurrency": "max_concurrency", "traffic request rate": "request_rate",
    "request rate configured (rps)": "request_rate", "backend": "backend",
}  # fmt: skip
"""Labels of the console block of vLLM's and SGLang's benchmark, and the keys of its JSON."""


def _text_shape(document: Document) -> tuple[str, Sequence[Mapping[str, Any]], Reader] | None:
    if "PERFORMANCE OVERVIEW" in document.text:
        return "trtllm-bench", [{"text": block} for block in _blocks(document.text)], _trtllm_console
    if "Serving Benchmark Result" in document.text:
        return (
            "vllm",
            [_console(block) for block in re.split(r"=+ Serving Benchmark Result =+", document.text)[1:]],
            _vllm,
        )
    return None


def _blocks(text: str) -> list[str]:
    """Reports of a console log, each from its engine details to its performance."""
    parts = re.split(r"=\s*ENGINE DETAILS", text)
    return parts[1:] if len(parts) > 1 else parts


def _console(block: str) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for line in block.split("\n==")[0].splitlines():
        label, found, value = line.partition(":")
        if not found:
            continue
        name = label.strip().lower()
        match = re.match(r"(mean|median|p\d+) (ttft|tpot|itl|e2el|e2e latency) \(ms\)", name)
        key = f"{match.group(1)}_{match.group(2).replace('e2e latency', 'e2el')}_ms" if match else _CONSOLE.get(name)
        if key:
            item[key] = value.strip()
    return item


def _trtllm_console(item: Mapping[str, Any], path: str) -> list[Point]:
    values: dict[str, str] = {}
    for line in str(item["text"]).splitlines():
        label, found, value = line.partition(":")
        if found and not label.startswith("["):
            values.setdefault(re.sub(r"\s*\(.*?\)", "", label).strip().lower(), value.strip())
    tp, pp = number(values.get("tp size")), number(values.get("pp size"))
    ep = number(values.get("ep size"))
    chips = (tp or 1) * (pp or 1) if tp else None
    output = number(first(values, ("token throughput", "total output throughput", "output throughput")))
    model = values.get("model", "")
    point: Point = {
        "source": "trtllm-bench", "source_ref": path.rsplit("/", 1)[-1], "model_name": model, "model": model_key(model),
        "engine": "trtllm", "engine_version": first(values, ("tensorrt-llm version", "version")) or "", "scenario": "offline",
        "weight_precision": precision_in(values.get("quantization", "")) or precision_in(values.get("dtype", "")),
        "kv_precision": precision_in(values.get("kv cache dtype", "")), "tp": tp, "pp": pp, "ep": ep, "chips": chips,
        "isl": number(values.get("average input length")), "osl": number(values.get("average output length")),
        "completed": number(values.get("number of requests")), "requests_per_s": number(values.get("request throughput")),
        "output_tps": output, "output_tps_per_chip": output / chips if output and chips else None,
        "note": "every request at once, no latency limit",
    }  # fmt: skip
    return [point]


_RECORDS: tuple[tuple[str, tuple[tuple[str, ...], ...], Reader], ...] = (
    ("sglang", (("total_output_tokens_retokenized", "median_e2e_latency_ms"), ("output_throughput",)), _sglang),
    ("vllm", (("output_throughput",), ("request_throughput", "completed"), ("mean_ttft_ms", "median_ttft_ms")), _vllm),
    ("vllm", (("output_throughput",), ("request_throughput", "completed"), ("p50_ttft_ms", "p50_tpot_ms")), _vllm),
    ("sglang-offline", (("successful_requests",), ("total_latency",), ("output_throughput",)), engine_bench.sglang_offline),
    ("sglang-batch", (("prefill_latency",), ("median_decode_latency",), ("batch_size",)), engine_bench.sglang_batch),
    ("vllm-throughput", (("elapsed_time",), ("tokens_per_second",), ("requests_per_second",)), engine_bench.vllm_throughput),
    ("multi-turn", (("output_throughput_tok_per_s",), ("ttft_ms",)), _multi_turn),
    ("llmperf", (("num_concurrent_requests",), ("results_ttft_s_mean", "results_ttft_s_quantiles_p50")), _llmperf),
    ("system-load-test", (("concurrency", "concurrent_requests", "Concurrency"),
                          ("system_output_throughput", "System Output Throughput", "system_throughput", "output_speed",
                           "system_output_tokens_per_second", "median_output_speed_per_query")), _phase),
)  # fmt: skip
"""Shapes of records: tool, names of which one each must be there, reader."""
