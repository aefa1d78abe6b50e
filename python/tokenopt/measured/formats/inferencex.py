"""InferenceX: answers of its API and database, per-run results after processing, and exports of its dashboard.

Traps: API latencies are seconds; the header of the dashboard export says ms over figures that are seconds (its own
interactivity tells); `tput_per_gpu` counts input and output over all GPUs, while its input and output variants divide by
the GPUs of their pool; without disaggregation both GPU counts name the same GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenopt.catalog.model_names import model_key
from tokenopt.measured.formats.document import Document, Parsed, Point, dated, first, is_zero, records
from tokenopt.measured.names import accelerator_key, engine_name, number, precision_in

SOURCE = "InferenceX"
_MS = 1e3


def recognises(document: Document) -> bool:
    """Whether this is one of the InferenceX shapes."""
    if document.syntax == "json":
        found = _records(document.json_value)
        return bool(found) and any(_is_record(item) or _is_agg(item) for item in found[:50])
    if document.syntax == "table":
        header = {cell.strip().lower() for cell in (document.rows[0] if document.rows else [])}
        return {"hardware key", "concurrency"} <= header
    return False


def read(document: Document) -> Parsed:
    """Points of the document."""
    if document.syntax == "table":
        return _read_export(document)
    parsed = Parsed("inferencex")
    for item in _records(document.json_value):
        if _is_agg(item):
            _take(parsed, _agg_point(item))
        elif not _is_record(item):
            parsed.skipped["no InferenceX record"] += 1
        elif not isinstance(item.get("metrics"), Mapping):
            parsed.skipped["availability only, no figures"] += 1
        elif "task" in item:
            parsed.skipped["accuracy evaluation, no throughput"] += 1
        else:
            _take(parsed, _point(item))
    return parsed


def _records(value: Any) -> list[Mapping[str, Any]]:
    """Records of an answer: a list, a wrapper, or lists by model name."""
    if isinstance(value, Mapping) and value and all(isinstance(inner, list) for inner in value.values()):
        return [item for inner in value.values() for item in inner if isinstance(item, Mapping)]
    return records(value)


def _is_record(item: Mapping[str, Any]) -> bool:
    return {"hardware", "framework", "model"} <= item.keys() and ("metrics" in item or "isl" in item)


def _is_agg(item: Mapping[str, Any]) -> bool:
    return "tput_per_gpu" in item and ("hw" in item or "hardware" in item) and "metrics" not in item


def _take(parsed: Parsed, point: Point) -> None:
    if is_zero(point.get("total_tps_per_chip"), point.get("output_tps_per_chip"), point.get("tpot_ms")):
        parsed.skipped["no throughput or latency"] += 1
    else:
        parsed.points.append(point)


def _flag(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1", "yes")


def _point(item: Mapping[str, Any]) -> Point:
    """A record of the API or the database."""
    metrics = item["metrics"]
    is_disagg = _flag(item.get("disagg"))
    prefill, decode = number(item.get("num_prefill_gpu")), number(item.get("num_decode_gpu"))
    chips, notes = decode, []
    if is_disagg:
        chips = (prefill or 0) + (decode or 0) or None
        if prefill and prefill == decode and not number(item.get("prefill_num_workers")):
            # Early disaggregated records hold the whole deployment in both counts.
            chips, prefill, decode = decode, None, None
            notes.append("split of the chips not stated")
    elif chips:
        tp, ep = number(item.get("decode_tp")) or 1, number(item.get("decode_ep")) or 1
        # Single-node records with expert parallelism may print tp x ep as a count of chips.
        if ep > 1 and chips == tp * ep and chips > 8:
            chips = tp
            notes.append("printed as tp x ep chips, taken as tp")
    concurrency = number(item.get("conc"))
    point: Point = {
        "source_ref": str(item.get("run_url") or ""),
        "measured_on": dated(item.get("date")),
        "isl": number(item.get("isl")), "osl": number(item.get("osl")), "concurrency": concurrency,
        "chips": chips, "tp": number(item.get("decode_tp")), "ep": number(item.get("decode_ep")),
        "engine_version": str(item.get("image") or ""),
        "mode": "disagg" if is_disagg else "agg",
        "speculative": str(item.get("spec_method") or ""),
        **_names(item, item.get("hardware")),
    }  # fmt: skip
    _degrees(point, item, is_disagg)
    if is_disagg:
        point |= {"prefill_chips": prefill, "decode_chips": decode, "layout": _workers(item)}
    _rates(point, metrics)
    if item.get("offload_mode") not in (None, "off"):
        notes.append(f"offload {item['offload_mode']}")
    if notes:
        point["note"] = "; ".join(notes)
    return point


def _degrees(point: Point, item: Mapping[str, Any], is_disagg: bool) -> None:
    """Attention ranks, and zero degrees that mean the degree is not stated."""
    for name in ("tp", "ep"):
        if not point.get(name):
            point.pop(name, None)
    has_dp = _flag(item.get("decode_dp_attention") if "decode_dp_attention" in item else item.get("dp_attention"))
    if has_dp and point.get("tp"):
        # Data-parallel attention runs one rank on each chip of the pool.
        point |= {"attn_dp": point["tp"], "tp": 1.0}
    elif point.get("tp") and not is_disagg:
        point["attn_dp"] = 1.0


def _workers(item: Mapping[str, Any]) -> str:
    parts = []
    for pool in ("prefill", "decode"):
        count, tp, ep = (item.get(f"{pool}_{name}") for name in ("num_workers", "tp", "ep"))
        dp = " dp-attention" if _flag(item.get(f"{pool}_dp_attention")) else ""
        parts.append(f"{pool} {count} x tp{tp} ep{ep}{dp}")
    return ", ".join(parts)


def _names(item: Mapping[str, Any], hardware: Any) -> Point:
    model, name = str(item.get("model") or ""), str(hardware or "")
    return {
        "kind": "serving", "source": SOURCE, "scenario": "concurrency",
        "model_name": model, "model": model_key(model),
        "accelerator_name": name, "accelerator": accelerator_key(name),
        "engine": engine_name(str(item.get("framework") or "")),
        "weight_precision": precision_in(str(item.get("precision") or "")) or str(item.get("precision") or ""),
    }  # fmt: skip


def _rates(point: Point, metrics: Mapping[str, Any]) -> None:
    """Throughput and latency; seconds become ms."""
    statistic = (
        "median" if metrics.get("median_tpot") is not None or metrics.get("median_intvty") is not None else "mean"
    )
    point["latency_statistic"] = statistic
    total = number(metrics.get("tput_per_gpu"))
    point["total_tps_per_chip"] = total
    for name, key in (("ttft_ms", f"{statistic}_ttft"), ("tpot_ms", f"{statistic}_tpot"), ("e2e_ms", f"{statistic}_e2el"),
                      ("ttft_p99_ms", "p99_ttft"), ("tpot_p99_ms", "p99_tpot"), ("e2e_p99_ms", "p99_e2el")):  # fmt: skip
        seconds = number(metrics.get(key))
        if seconds:
            point[name] = seconds * _MS
    interactivity = number(metrics.get(f"{statistic}_intvty"))
    if interactivity:
        point["tps_per_user"] = interactivity
        point.setdefault("tpot_ms", _MS / interactivity)
    elif point.get("tpot_ms"):
        point["tps_per_user"] = _MS / point["tpot_ms"]
    point["power_w_per_chip"] = number(metrics.get("avg_power_w"))
    chips = point.get("chips")
    if not chips:
        return
    output = number(metrics.get("output_tput_per_gpu"))
    if total:
        point["total_tps"] = total * chips
    if output:
        decode = point.get("decode_chips") or (None if point["mode"] == "disagg" else chips)
        if decode:
            point["output_tps"] = output * decode
            point["output_tps_per_chip"] = output * decode / chips
    if not point.get("output_tps") and total and point.get("isl") and point.get("osl"):
        # Lengths are drawn from the same range, so the mean shares are those of the nominal lengths.
        share = point["osl"] / (point["isl"] + point["osl"])
        point |= {"output_tps": total * chips * share, "output_tps_per_chip": total * share}


def _agg_point(item: Mapping[str, Any]) -> Point:
    """A per-run result after processing: flat, latencies in seconds."""
    tp, ep = number(item.get("tp")), number(item.get("ep"))
    is_disagg = _flag(item.get("disagg"))
    prefill, decode = number(item.get("num_prefill_gpu")), number(item.get("num_decode_gpu"))
    chips = (prefill or 0) + (decode or 0) or None if is_disagg else number(item.get("num_gpus")) or decode or tp
    point: Point = {
        "measured_on": dated(item.get("date")), "source_ref": str(item.get("run_url") or ""),
        "isl": number(item.get("isl")), "osl": number(item.get("osl")),
        "concurrency": number(first(item, ("conc", "max_concurrency"))), "chips": chips, "tp": tp, "ep": ep,
        "engine_version": str(first(item, ("image", "framework_version")) or ""),
        "mode": "disagg" if is_disagg else "agg",
        "speculative": str(first(item, ("spec_decoding", "spec_method", "mtp")) or ""),
        **_names(item, first(item, ("hw", "hardware"))),
    }  # fmt: skip
    _degrees(point, item, is_disagg)
    if is_disagg:
        point |= {"prefill_chips": prefill, "decode_chips": decode}
    _rates(point, item)
    return point


def _read_export(document: Document) -> Parsed:
    """An export of the dashboard."""
    parsed = Parsed("inferencex-export")
    header = [cell.strip() for cell in document.rows[0]]
    for cells in document.rows[1:]:
        if len(cells) != len(header):
            parsed.skipped["row with another number of cells"] += bool(cells)
            continue
        row = {name.lower(): value for name, value in zip(header, cells, strict=True)}
        _take(parsed, _export_point(row))
    return parsed


def _export_point(row: Mapping[str, str]) -> Point:
    def cell(prefix: str) -> float | None:
        return next((number(value) for name, value in row.items() if name.startswith(prefix)), None)

    is_disagg = _flag(row.get("disaggregated"))
    prefill, decode, tp = cell("num prefill gpus"), cell("num decode gpus"), cell("tp")
    chips = (prefill or 0) + (decode or 0) or None if is_disagg else tp
    item = {"model": row.get("model"), "framework": row.get("framework"), "precision": row.get("precision")}
    point: Point = {
        "measured_on": dated(row.get("date")), "isl": cell("isl"), "osl": cell("osl"),
        "concurrency": cell("concurrency"), "chips": chips, "tp": tp, "ep": cell("ep"),
        "mode": "disagg" if is_disagg else "agg", "speculative": str(row.get("spec decoding") or ""),
        **_names(item, row.get("hardware")),
    }  # fmt: skip
    _degrees(point, {"dp_attention": row.get("dp attention")}, is_disagg)
    if is_disagg:
        point |= {"prefill_chips": prefill, "decode_chips": decode}
    # The header says ms; what the figures are shows in interactivity = 1 / time per token.
    tpot, interactivity = cell("median tpot"), cell("median interactivity")
    is_seconds = tpot is not None and interactivity is not None and tpot * interactivity < 30.0
    scale = 1.0 if is_seconds else 1.0 / _MS
    metrics: dict[str, Any] = {
        "tput_per_gpu": cell("throughput/gpu"), "output_tput_per_gpu": cell("output throughput/gpu"),
        "median_intvty": interactivity,
    }  # fmt: skip
    for title, key in (("ttft", "ttft"), ("tpot", "tpot"), ("e2e latency", "e2el")):
        for statistic in ("mean", "median", "p99"):
            value = cell(f"{statistic} {title}")
            metrics[f"{statistic}_{key}"] = value * scale if value is not None else None
    _rates(point, metrics)
    if is_seconds and any("(ms)" in name for name in row):
        point["note"] = "header says ms, figures are seconds"
    return point
