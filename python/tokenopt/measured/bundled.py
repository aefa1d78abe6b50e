"""The measured points that ship with tokenopt: concurrency sweeps and published figures, read for one model at a time.

A search asks for one model, so a row of another is not even split into cells. The sweeps pass the rules of
:mod:`tokenopt.measured.serving_data`: what they drop is no measurement of an aggregated deployment.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenopt.measured.formats.document import Point
from tokenopt.measured.names import engine_name, number, precision_in
from tokenopt.measured.serving_data import clean

_DATA = Path(__file__).parent / "data"
SWEEPS = _DATA / "serving_sweeps.csv"
PUBLISHED = _DATA / "published.csv"

_SCENARIOS = {
    "fixed-concurrency": "concurrency", "fixed-qps": "rate", "offline-max": "offline", "offline-burst": "offline",
    "static-batch": "batch",
}  # fmt: skip
_QUEUE_LIMITED = "queue in front of the server: fewer requests ran than were in flight"


def bundled_points(model: str | None = None) -> list[Point]:
    """Bundled serving points in the columns of :mod:`tokenopt.measured.columns`.

    Args:
        model: Only this catalogue key.
    """
    return list(_points(model))


@lru_cache(maxsize=4)
def _points(model: str | None) -> tuple[Point, ...]:
    return (*_sweep_points(model), *(_published_point(row) for row in _rows(PUBLISHED, model)))


def _rows(file: Path, model: str | None) -> Iterator[Mapping[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        header = next(handle)
        lines = handle if model is None else (line for line in handle if f",{model}," in line)
        for row in csv.DictReader([header, *lines]):
            if model is None or row["model"] == model:
                yield row


def published_rows(ids: Iterator[str] | list[str]) -> dict[str, Mapping[str, str]]:
    """Rows of the published figures by id, as they were printed."""
    wanted = set(ids)
    return {row["id"]: row for row in _rows(PUBLISHED, None) if row["id"] in wanted}


def _sweep_points(model: str | None) -> Iterator[Point]:
    raw = list(_rows(SWEEPS, model))
    by_id = {row["id"]: row for row in raw}
    for row in clean(raw).rows:
        printed = by_id[row.id]
        isl, osl = number(printed["isl"]) or row.isl, number(printed["osl"]) or row.osl
        output = row.output_tps_per_chip
        yield {
            "kind": "serving", "source": row.source, "tool": "bundled sweep", "source_ref": row.id, "measured_on": row.date,
            "model": row.model, "model_name": row.model, "accelerator": row.accelerator, "accelerator_name": row.accelerator,
            "engine": row.engine, "engine_version": row.version, "weight_precision": row.weight_precision, "mode": row.mode,
            "speculative": "none", "scenario": "concurrency", "latency_statistic": "mean", "chips": float(row.chips),
            "tp": float(row.tp), "pp": float(row.pp), "ep": float(row.ep), "attn_dp": float(row.attn_dp), "isl": isl, "osl": osl,
            "concurrency": row.concurrency, "output_tps_per_chip": output, "output_tps": output * row.chips,
            "total_tps_per_chip": output * (isl + osl) / osl, "tps_per_user": 1.0 / row.tpot_s, "tpot_ms": row.tpot_s * 1e3,
            "ttft_ms": row.ttft_s * 1e3 if row.ttft_s else None, "note": _QUEUE_LIMITED if row.is_queue_limited else "",
        }  # fmt: skip


def _published_point(row: Mapping[str, str]) -> Point:
    scenario, _, speculative = row["scenario"].partition("+")
    isl, osl = number(row["isl"]), number(row["osl"])
    output, total = number(row["output_tps_per_gpu"]), number(row["total_tps_per_gpu"])
    if output is None and total is not None and isl and osl:
        # Prompt and output lengths are drawn alike, so output has its nominal share.
        output = total * osl / (isl + osl)
    tpot, per_user = number(row["tpot_ms"]), number(row["tps_per_user"])
    chips, tp, ep = number(row["n_gpus"]), number(row["tp"]), number(row["ep"])
    has_ranks = number(row["attn_dp"]) == 1 and tp is not None
    is_disagg = row["disagg"] == "1"
    return {
        "kind": "serving", "source": row["source"], "tool": "bundled figures", "source_ref": row["id"],
        "measured_on": row["date"], "model": row["model"], "model_name": row["model"], "accelerator": row["gpu"],
        "accelerator_name": row["gpu"], "engine": engine_name(row["framework"]) if row["framework"] else "",
        "engine_version": row["framework_version"],
        "weight_precision": precision_in(row["weight_precision"]) or row["weight_precision"],
        "kv_precision": row["kv_precision"], "mode": "disagg" if is_disagg else "agg",
        "speculative": {"mtp": "mtp", "spec": "draft"}.get(speculative, "none"),
        "scenario": _SCENARIOS.get(scenario, scenario), "latency_statistic": "mean" if row["is_mean_ttft"] == "1" else "median",
        "chips": chips,
        "prefill_chips": number(row["prefill_gpus"]), "decode_chips": number(row["decode_gpus"]),
        "tp": 1.0 if has_ranks else tp, "attn_dp": tp if has_ranks else None, "pp": number(row["pp"]), "ep": ep,
        "isl": isl, "osl": osl, "concurrency": number(row["concurrency"]), "output_tps_per_chip": output,
        "total_tps_per_chip": total, "tps_per_user": per_user or (1e3 / tpot if tpot else None),
        "tpot_ms": tpot or (1e3 / per_user if per_user else None), "ttft_ms": number(row["ttft_ms"]),
        "note": _QUEUE_LIMITED if row["is_queue_limited"] == "1" else "",
    }  # fmt: skip


def is_queue_limited(point: Mapping[str, Any]) -> bool:
    """Whether fewer requests ran than the client kept in flight: the point's batch is not its concurrency."""
    return str(point.get("note") or "").startswith("queue in front")


def summary_of_bundled(where: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is bundled, by kind, model, accelerator, engine, precision and shape; `where` holds globs by column."""
    by = (
        "kind",
        "model",
        "model_name",
        "accelerator",
        "accelerator_name",
        "engine",
        "weight_precision",
        "mode",
        "source",
    )
    groups: dict[tuple[Any, ...], list[str]] = {}
    for point in bundled_points():
        if all(fnmatch(str(point.get(name) or "").lower(), glob.lower()) for name, glob in where.items()):
            key = (*(point.get(name) or "" for name in by), point.get("isl"), point.get("osl"))
            groups.setdefault(key, []).append(point["measured_on"])
    return [
        {**dict(zip((*by, "isl", "osl"), key, strict=True)), "points": len(days), "first": min(days), "last": max(days)}
        for key, days in sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))
    ]
