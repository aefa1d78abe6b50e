"""MLPerf Training: run logs, results tables and the summaries of mlperf_logging; and published training tables.

A log counts sequences, not tokens; its times are ms since 1970; nodes and accelerators come from the system description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenopt.catalog.model_names import model_key
from tokenopt.measured.formats.document import Document, Parsed, Point, dated
from tokenopt.measured.formats.mlperf import Systems
from tokenopt.measured.names import accelerator_key, engine_name, number, precision_in

_MLLOG = ":::MLLOG"
_MS_PER_S, _S_PER_MIN = 1e3, 60.0
_SEQUENCE = {"llama2_70b_lora": 8192.0}
"""Sequence length by the benchmark's rules, where its logs do not print it (MLPerf Training rules v4.0, llama2_70b_lora)."""
_BENCHMARKS = re.compile(r"llama|gpt|mixtral|deepseek|qwen", re.IGNORECASE)
_NEURON = "performance [seq/sec]"


def recognises(document: Document) -> bool:
    """Whether this is a training result."""
    if document.syntax == "text":
        head = document.text[:5_000_000]
        return _MLLOG in head and ("submission_benchmark" in head or "run_start" in head or "global_batch_size" in head)
    if document.syntax == "table":
        header = [cell.strip().lower() for row in document.rows[:12] for cell in row]
        is_summary = ("accelerators_count" in header or "num_accelerators" in header) and "submitter" in header
        is_table = "public id" in header and any(cell == "minutes" for cell in header + _cells(document))
        return _NEURON in header or is_summary or is_table
    if document.syntax == "json":
        value = document.json_value
        first = value[0] if isinstance(value, list) and value else None
        return isinstance(first, Mapping) and str(first.get("Performance_Units", "")).lower().startswith("minute")
    return False


def _cells(document: Document) -> list[str]:
    return [cell.strip().lower() for row in document.rows[:40] for cell in row]


def read(document: Document, systems: Systems) -> Parsed:
    """Points of the document."""
    if document.syntax == "text":
        return _read_log(document, systems)
    if document.syntax == "json":
        return _read_records(document.json_value)
    header = [cell.strip().lower() for cell in document.rows[0]]
    if _NEURON in header:
        return _read_neuron(document)
    if "accelerators_count" in header or "num_accelerators" in header:
        return _read_summary(document)
    return _read_results_table(document)


def _read_log(document: Document, systems: Systems) -> Parsed:
    parsed = Parsed("mlperf-training-log")
    first: dict[str, Mapping[str, Any]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    for line in document.lines_of(_MLLOG):
        key = str(line.get("key"))
        first.setdefault(key, line)
        last[key] = line

    def value(key: str) -> Any:
        return first[key].get("value") if key in first else None

    stop = last.get("run_stop")
    status = str((stop or {}).get("metadata", {}).get("status", "")) if stop else "not finished"
    if stop is None or "run_start" not in first or status != "success":
        parsed.skipped[f"run is {status or 'without a status'}"] += 1
        return parsed
    benchmark = str(value("submission_benchmark") or "")
    if not model_key(benchmark):
        parsed.skipped[f"not a language model of the catalogue: {benchmark or 'no name'}"] += 1
        return parsed
    started, stopped = number(first["run_start"].get("time_ms")), number(stop.get("time_ms"))
    if started is None or stopped is None or stopped <= started:
        parsed.skipped["run without a duration"] += 1
        return parsed
    run_s = (stopped - started) / _MS_PER_S
    samples = number((stop.get("metadata") or {}).get("samples_count")) or _last_samples(document)
    seq_len = number(value("max_sequence_length")) or _SEQUENCE.get(benchmark)
    point = _training_point(benchmark)
    point |= {
        "measured_on": dated(started / _MS_PER_S), "source": _release(document.path), "source_ref": document.name,
        "global_batch": number(value("global_batch_size")), "seq_len": seq_len, "time_to_train_min": run_s / _S_PER_MIN,
    }  # fmt: skip
    _set_rate(point, samples / run_s if samples else None)
    system = systems.for_path(document.path)
    if system is not None and system.chips:
        point |= {
            "chips": float(system.chips), "accelerator_name": system.accelerator,
            "accelerator": accelerator_key(system.accelerator) or accelerator_key(system.name),
            "engine": engine_name(system.software), "engine_version": system.software,
        }  # fmt: skip
    elif (match := re.match(r"(\d+)x(.+)", str(value("submission_platform") or ""))) is not None:
        point |= {"accelerator_name": match.group(2), "accelerator": accelerator_key(match.group(2))}
    else:
        platform = str(value("submission_platform") or "")
        point |= {"accelerator_name": platform, "accelerator": accelerator_key(platform)}
    parsed.points.append(point)
    return parsed


def _last_samples(document: Document) -> float | None:
    counts = (number((line.get("metadata") or {}).get("samples_count")) for line in document.lines_of(_MLLOG))
    return max((count for count in counts if count), default=None)


def _training_point(benchmark: str) -> Point:
    return {
        "kind": "training", "scenario": "training", "model_name": benchmark, "model": model_key(benchmark),
        "source": "MLPerf Training",
    }  # fmt: skip


def _set_rate(point: Point, samples_per_s: float | None) -> None:
    """Sequences/s, and tokens/s where the length is known."""
    if samples_per_s:
        point["samples_per_s"] = samples_per_s
        if point.get("seq_len"):
            point["train_tps"] = samples_per_s * point["seq_len"]


def _release(text: str) -> str:
    match = re.search(r"v?(\d\.\d)(?!\d)", text)
    return f"MLPerf Training v{match.group(1)}" if match else "MLPerf Training"


def _read_summary(document: Document) -> Parsed:
    """The summary of mlperf_logging: one line a system, minutes under each benchmark's name."""
    parsed = Parsed("mlperf-training-summary")
    header = [cell.strip().lower() for cell in document.rows[0]]
    benchmarks = [index for index, name in enumerate(header) if model_key(name) and _BENCHMARKS.search(name)]
    for cells in document.rows[1:]:
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        if not any(row.values()):
            continue
        chips = number(row.get("accelerators_count") or row.get("num_accelerators"))
        accelerator = row.get("accelerator_model_name") or row.get("accelerator") or ""
        found = 0
        for index in benchmarks:
            minutes = number(cells[index]) if index < len(cells) else None
            if not minutes:
                continue
            found += 1
            if not chips or not accelerator:
                parsed.skipped["no accelerator (processors alone)"] += 1
                continue
            parsed.points.append(
                _training_point(header[index])
                | {
                    "source": _release(row.get("details_url", "") or document.path),
                    "time_to_train_min": minutes,
                    "source_ref": f"{row.get('submitter', '')} {row.get('system', '')}".strip(),
                    "chips": chips,
                    "accelerator_name": accelerator,
                    "accelerator": accelerator_key(accelerator),
                    "engine": engine_name(row.get("framework", "")),
                    "engine_version": row.get("framework", ""),
                }
            )
        if not found:
            parsed.skipped["no language model in the row"] += 1
    return parsed


def _read_records(items: list[Any]) -> Parsed:
    parsed = Parsed("mlperf-training-summary")
    for item in items:
        benchmark = str(item.get("Model") or item.get("UsedModel") or item.get("Benchmark") or "")
        if not model_key(benchmark):
            parsed.skipped[f"not a language model of the catalogue: {benchmark or 'no name'}"] += 1
            continue
        chips = (number(item.get("a#")) or 0) * (number(item.get("Nodes")) or 1)
        accelerator = str(item.get("Accelerator") or "")
        minutes = number(item.get("Performance_Result"))
        if not minutes or not chips:
            parsed.skipped["no result or no accelerator"] += 1
            continue
        parsed.points.append(
            _training_point(benchmark)
            | {
                "source": _release(str(item.get("version") or item.get("ID") or "")),
                "time_to_train_min": minutes,
                "source_ref": str(item.get("ID") or ""),
                "chips": chips,
                "accelerator_name": accelerator,
                "accelerator": accelerator_key(accelerator),
                "engine_version": str(item.get("Software") or ""),
            }
        )
    return parsed


def _read_results_table(document: Document) -> Parsed:
    """The table of the results site: long (one row a result) or wide (benchmarks side by side), minutes."""
    parsed = Parsed("mlperf-training-table")
    rows = document.rows
    top = next(index for index, row in enumerate(rows) if "public id" in [cell.strip().lower() for cell in row])
    header = [re.sub(r"\s+", " ", cell).strip().lower() for cell in rows[top]]
    width = max(len(row) for row in rows)
    is_long = any(name in header for name in ("model mlc", "benchmark", "benchmark / model mlc"))
    above = [cell.strip() for row in rows[max(0, top - 4) : top] for cell in [*row, *[""] * (width - len(row))]]

    def at(*prefixes: str) -> int:
        return next((i for p in prefixes for i, name in enumerate(header) if name.startswith(p)), -1)

    at_id, at_chip, at_nodes = at("public id"), at("accelerator (click", "accelerator"), at("# of nodes")
    at_total, at_per_node = at("total accelerators"), at("accelerators per node", "# of accelerators")

    def take(row: list[str], benchmark: str, minutes: float | None) -> None:
        if not model_key(benchmark):
            parsed.skipped[f"not a language model of the catalogue: {benchmark or 'no name'}"] += 1
            return
        nodes = (number(row[at_nodes]) if at_nodes >= 0 else None) or 1
        chips = (number(row[at_total]) if at_total >= 0 else None) or nodes * (
            (number(row[at_per_node]) if at_per_node >= 0 else None) or 0
        )
        if not minutes or not chips or not row[at_chip].strip():
            parsed.skipped["no result or no accelerator"] += 1
            return
        parsed.points.append(
            _training_point(benchmark)
            | {
                "source": _release(row[at_id]),
                "source_ref": row[at_id].strip(),
                "time_to_train_min": minutes,
                "chips": chips,
                "accelerator_name": row[at_chip].strip(),
                "accelerator": accelerator_key(row[at_chip]),
            }
        )

    current: list[str] = []
    for raw in rows[top + 1 :]:
        row = [*raw, *[""] * (width - len(raw))]
        if row[at_id].strip():
            current = row
        if is_long:
            if row[at_id].strip():
                take(
                    row, row[at("model mlc", "benchmark")].strip(), number(row[at("avg. result", "result", "latency")])
                )
            continue
        if "avg. result" not in " ".join(row).lower() and at("division") >= 0 and row[at("division") + 1].strip():
            continue
        for index in range(width):
            benchmark = next(
                (above[k * width + index] for k in range(len(above) // width) if model_key(above[k * width + index])),
                "",
            )
            if benchmark and current and row[index].strip():
                take(current, benchmark, number(row[index]))
    return parsed


def _read_neuron(document: Document) -> Parsed:
    """The training table of the Neuron documentation: sequences/s of all nodes."""
    parsed = Parsed("neuron-training")
    header = [cell.strip().lower() for cell in document.rows[0]]
    for cells in document.rows[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        rate, nodes = number(row.get(_NEURON)), number(row.get("nodes"))
        if not rate or not nodes or not model_key(row.get("model", "")):
            parsed.skipped["no rate, no nodes or a model that the catalogue lacks"] += 1
            continue
        instance = re.split(r"[/,]", row.get("instance-type", ""))[0]
        chips = neuron_chips(instance)
        degrees = {
            name.lower(): float(value) for name, value in re.findall(r"(TP|PP|DP)=(\d+)", row.get("topology", ""))
        }
        point = _training_point(row["model"]) | {
            "source": "AWS Neuron documentation", "source_ref": row.get("neuron version", ""), "engine": "neuronx",
            "engine_version": row.get("neuron version", ""), "seq_len": number(row.get("sequence length")),
            "global_batch": number(row.get("globalbatch")), "tp": degrees.get("tp"), "pp": degrees.get("pp"),
            "accelerator_name": instance, "accelerator": accelerator_key(instance.split(".")[0]),
            "chips": nodes * chips if chips else None, "layout": row.get("topology", ""),
            "weight_precision": precision_in(row.get("training data-type", "")),
        }  # fmt: skip
        _set_rate(point, rate)
        parsed.points.append(point)
    return parsed


def neuron_chips(instance: str) -> int | None:
    """Chips of an AWS instance of the Neuron family (instance pages of AWS, 2026)."""
    return {
        "trn1.2xlarge": 1, "trn1.32xlarge": 16, "trn1n.32xlarge": 16, "trn2.48xlarge": 16, "trn2u.48xlarge": 16,
        "inf2.xlarge": 1, "inf2.8xlarge": 1, "inf2.24xlarge": 6, "inf2.48xlarge": 12,
    }.get(instance.strip().lower())  # fmt: skip
