"""MLPerf Inference: summary JSON, results tables (wide and long), run logs and system descriptions.

Traps: accelerators are per node; some rows of a language model say Queries/s over figures that are tokens/s; the same
figure stands under the 99 and the 99.9 accuracy target; latencies in logs are nanoseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenopt.catalog.model_names import model_key
from tokenopt.measured.formats.document import Document, Parsed, Point, dated
from tokenopt.measured.names import accelerator_key, engine_name, number, precision_in

_NS_PER_MS = 1e6
_MLLOG = ":::MLLOG"
_CONSTRAINTS_NOTE = "p99 of both latencies held by the benchmark's rules"
_MIXED = re.compile(r"\(x\d+\).*(,| and ).*\(x\d+\)", re.IGNORECASE)
_SCENARIOS = ("Interactive", "Server", "Offline", "SingleStream", "MultiStream")


@dataclass(frozen=True, slots=True)
class System:
    """A system description that logs are read with.

    Attributes:
        name: Stem of its file, without a prefix that says what it is.
        submitter: Who ran it.
        accelerator: Accelerator as written.
        chips: Accelerators of all nodes, 0 for a system of processors alone.
        software: Framework and its version.
    """

    name: str
    submitter: str
    accelerator: str
    chips: int
    software: str


@dataclass(slots=True)
class Systems:
    """The system descriptions of an import."""

    found: list[System] = field(default_factory=list)

    def for_path(self, path: str) -> System | None:
        """The one whose name the path of a log holds; the longest where several fit."""
        plain = _plain(path)
        fitting = [system for system in self.found if _plain(system.name) in plain]
        return max(fitting, key=lambda system: len(system.name), default=None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


def system_of(document: Document) -> System | None:
    """The system description in a document, None where it is something else."""
    if document.syntax != "json" or '"accelerator' not in document.text[:20_000]:
        return None
    value = document.json_value
    if not isinstance(value, Mapping) or not {"number_of_nodes", "system_name"} <= value.keys():
        return None
    stem = document.name.rsplit("/", 1)[-1].removesuffix(".json")
    name = re.sub(r"^(inference|training)_v[\d.]+_system_", "", stem)
    submitter = str(value.get("submitter") or "")
    # A copy in one folder may carry the submitter before the system's own name.
    for prefix in (submitter, submitter.replace(" ", ""), submitter.replace(" ", "-")):
        if prefix and _plain(name).startswith(_plain(prefix) + "-") and len(name) > len(prefix) + 1:
            name = name[len(prefix) + 1 :]
            break
    per_node = number(value.get("accelerators_per_node")) or 0
    nodes = number(value.get("number_of_nodes")) or 0
    return System(
        name, submitter, str(value.get("accelerator_model_name") or "").strip(), int(per_node * nodes),
        str(value.get("framework") or ""),
    )  # fmt: skip


def recognises(document: Document) -> bool:
    """Whether this is one of the shapes of MLPerf Inference."""
    if document.syntax == "json":
        value = document.json_value
        if system_of(document) is not None:
            return True
        return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and _is_summary(value[0])
    head = document.text[:5_000_000]
    if "MLPerf Results Summary" in head or (_MLLOG in head and "loadgen_version" in head):
        return True
    return document.syntax == "table" and _table_kind(document) != "" and "Minutes" not in document.text[:100_000]


def _is_summary(item: Mapping[str, Any]) -> bool:
    return {"Performance_Result", "Performance_Units"} <= item.keys() or {"UsedModel", "Scenario", "a#"} <= item.keys()


def read(document: Document, systems: Systems, detailed: Sequence[str] = ()) -> Parsed:
    """Points of the document.

    Args:
        document: The file.
        systems: System descriptions of the same import.
        detailed: Paths of detail logs in the same import, without their last word: their summaries say the same.
    """
    if document.syntax == "json":
        system = system_of(document)
        if system is not None:
            parsed = Parsed("mlperf-system")
            parsed.skipped["system description, used with the logs of the same import"] += 1
            return parsed
        return _read_summary(document.json_value)
    if document.syntax == "text":
        if _MLLOG in document.text[:5_000_000]:
            return _read_detail(document, systems)
        if document.path.replace("mlperf_log_summary.txt", "") in detailed:
            parsed = Parsed("mlperf-log")
            parsed.skipped["summary of a run whose detail log is read"] += 1
            return parsed
        return _read_log_summary(document, systems)
    return _read_table(document)


def log_stem(path: str) -> str:
    """Path of a run without the name of its detail log, empty for another file."""
    return path.replace("mlperf_log_detail.txt", "") if path.endswith("mlperf_log_detail.txt") else ""


def _read_summary(items: Sequence[Any]) -> Parsed:
    parsed = Parsed("mlperf-summary")
    for item in items:
        if not isinstance(item, Mapping):
            parsed.skipped["no record"] += 1
            continue
        nodes, per_node = number(item.get("Nodes")) or 1, number(item.get("a#"))
        accelerator = str(item.get("Accelerator") or "")
        point = _point(
            parsed, str(item.get("Model") or item.get("UsedModel") or ""), str(item.get("Scenario") or ""),
            number(item.get("Performance_Result")), str(item.get("Performance_Units") or ""), accelerator,
            nodes * per_node if per_node else None,
        )  # fmt: skip
        if point is None:
            continue
        version = str(item.get("version") or item.get("ID") or "")
        tokens = re.search(r"TOKENS_PER_SAMPLE:\s*([\d.]+)", str(item.get("Accuracy") or ""))
        precision = str(item.get("weight_data_types") or "")
        power = (
            number(item.get("Power_Result")) if str(item.get("Power_Units") or "").lower().startswith("watt") else None
        )
        point |= {
            "source": f"MLPerf Inference {version}".strip(),
            "source_ref": f"{item.get('ID', '')} {item.get('Location') or item.get('Details') or ''}".strip(),
            "osl": number(tokens.group(1)) if tokens else None,
            "weight_precision": precision_in(precision) or precision.lower(),
            "engine_version": str(item.get("Software") or ""),
            "engine": engine_name(str(item.get("Software") or "").split(",")[0]),
        }
        if power and point.get("chips"):
            point["power_w_per_chip"] = power / point["chips"]
            point["note"] = "power is the whole system's at the wall, shared over the accelerators"
        if str(item.get("Category") or "").lower() == "open":
            point["note"] = "; ".join(filter(None, (point.get("note"), "open division")))
        if str(item.get("errors") or "0") not in ("0", ""):
            parsed.skipped["errors in the run"] += 1
            continue
        parsed.points.append(point)
    return parsed


def _point(
    parsed: Parsed, model: str, scenario: str, result: float | None, units: str, accelerator: str, chips: float | None
) -> Point | None:
    """What every shape states, or None with the reason counted."""
    key = model_key(model)
    if not key:
        parsed.skipped[f"not a language model of the catalogue: {model or 'no name'}"] += 1
        return None
    unit = units.strip().lower()
    if unit not in ("tokens/s", "queries/s"):
        parsed.skipped[f"language model in {units or 'no unit'}"] += 1
        return None
    if not result:
        parsed.skipped["no result"] += 1
        return None
    if not accelerator or not chips:
        parsed.skipped["no accelerator (processors alone)"] += 1
        return None
    if _MIXED.search(accelerator):
        parsed.skipped["mixed accelerators in one system"] += 1
        return None
    point: Point = {
        "kind": "serving", "model": key, "model_name": model, "accelerator_name": accelerator,
        "accelerator": accelerator_key(re.sub(r"\(x\d+\)", "", accelerator)), "chips": chips,
        "scenario": {"server": "server", "interactive": "interactive"}.get(scenario.lower(), "offline"),
        "output_tps": result, "output_tps_per_chip": result / chips, "latency_statistic": "",
    }  # fmt: skip
    if scenario.lower() not in ("offline", "server", "interactive"):
        parsed.skipped[f"scenario {scenario or 'not stated'}"] += 1
        return None
    if unit == "queries/s":
        point["note"] = "printed as Queries/s, its size is that of tokens/s"
    return point


def _table_kind(document: Document) -> str:
    """`long`: one row a result; `wide`: benchmarks side by side; empty for neither."""
    for row in document.rows[:12]:
        cells = [cell.strip().lower() for cell in row]
        if "public id" in cells and ("scenario" in cells or "model mlc" in cells):
            return "long"
        if "public id" in cells:
            return "wide"
    return ""


def _read_table(document: Document) -> Parsed:
    return _read_long(document) if _table_kind(document) == "long" else _read_wide(document)


def _read_long(document: Document) -> Parsed:
    parsed = Parsed("mlperf-table")
    header: list[str] = []
    for cells in document.rows:
        names = [re.sub(r"\s+", " ", cell).strip().lower() for cell in cells]
        if not header:
            header = names if "public id" in names else []
            continue
        if not any(names):
            continue
        # Repeated names: the first one counts.
        row = {name: cells[index].strip() for index, name in reversed(list(enumerate(header))) if index < len(cells)}

        def cell(*prefixes: str, row: Mapping[str, str] = row) -> str:
            return next(
                (value for prefix in prefixes for name, value in row.items() if name.startswith(prefix) and value), ""
            )

        nodes, per_node = number(cell("# of nodes")) or 1, number(cell("accelerators per node", "# of accelerators"))
        total = number(cell("total accelerators")) or (nodes * per_node if per_node else None)
        point = _point(
            parsed, cell("model mlc", "benchmark model"), cell("scenario"), number(cell("avg. result", "result")),
            cell("units"), cell("accelerator (click", "accelerator"), total,
        )  # fmt: skip
        if point is None:
            continue
        public_id = cell("public id")
        point |= {"source": _release(public_id), "source_ref": f"{public_id} {cell('system name')}".strip()}
        if cell("division").lower().startswith("open"):
            point["note"] = "; ".join(filter(None, (point.get("note"), "open division")))
        parsed.points.append(point)
    return parsed


def _release(public_id: str) -> str:
    match = re.match(r"v?(\d+\.\d+)-", public_id)
    return f"MLPerf Inference v{match.group(1)}" if match else "MLPerf Inference"


def _read_wide(document: Document) -> Parsed:
    """Benchmarks side by side: names and scenarios above the header, four lines a system (counts, nodes, result)."""
    parsed = Parsed("mlperf-table")
    rows = document.rows
    top = next(index for index, row in enumerate(rows) if "Public ID" in [cell.strip() for cell in row])
    header = [cell.strip() for cell in rows[top]]
    width = max(len(row) for row in rows)
    scenarios = _padded(rows[top - 1], width) if top else [""] * width
    models = _filled(_padded(rows[top - 2], width)) if top > 1 else [""] * width
    units = _padded(header, width)
    place = next((i for i, name in enumerate(header) if name.lower().startswith("division")), -1)
    measure = place + 1
    if not 0 < measure < width:
        parsed.skipped["table without a column of measures"] += 1
        return parsed
    names = {re.sub(r"\s+", " ", name).lower(): i for i, name in reversed(list(enumerate(header))) if i < measure}

    def column(*prefixes: str) -> int:
        return next((i for prefix in prefixes for name, i in names.items() if name.startswith(prefix)), -1)

    at_id, at_chip = column("public id"), column("accelerator (click", "accelerator")
    at_nodes, at_chips, at_division = column("# of nodes"), column("# of accelerators", "accelerators per node"), place
    system: list[str] = []
    chips: dict[int, float] = {}
    nodes: dict[int, float] = {}
    for raw in rows[top + 1 :]:
        row = _padded(raw, width)
        if row[at_id].strip():
            system, chips, nodes = row, {}, {}
        label = row[measure].strip().lower()
        if label.startswith("# of accelerators"):
            chips = {i: value for i in range(measure + 1, width) if (value := number(row[i])) is not None}
        elif label.startswith("# of nodes"):
            nodes = {i: value for i in range(measure + 1, width) if (value := number(row[i])) is not None}
        elif label.startswith("avg. result") and system:
            for i in range(measure + 1, width):
                if not row[i].strip():
                    continue
                per_node = chips.get(i) or (number(system[at_chips]) if at_chips >= 0 else None)
                count = (nodes.get(i) or (number(system[at_nodes]) if at_nodes >= 0 else None) or 1) * (per_node or 0)
                point = _point(
                    parsed,
                    models[i].strip(),
                    scenarios[i].strip(),
                    number(row[i]),
                    units[i],
                    system[at_chip].strip(),
                    count,
                )
                if point is not None:
                    reference = f"{system[at_id].strip()} {system[column('system name')].strip()}"
                    point |= {"source": _release(system[at_id].strip()), "source_ref": reference}
                    if "interactive" in models[i].lower():
                        point["scenario"] = "interactive"
                    if system[at_division].strip().lower().startswith("open"):
                        point["note"] = "open division"
                    parsed.points.append(point)
    return parsed


def _padded(row: Sequence[str], width: int) -> list[str]:
    return [*row, *[""] * (width - len(row))]


def _filled(row: Sequence[str]) -> list[str]:
    """A merged header: a blank cell has the name to its left."""
    filled, last = [], ""
    for cell in row:
        last = cell.strip() or last
        filled.append(last)
    return filled


def _run_point(
    parsed: Parsed, document: Document, systems: Systems, scenario: str, tokens_per_s: float | None
) -> Point | None:
    system = systems.for_path(document.path)
    path = document.path.replace("\\", "/")
    if system is not None:
        path = path.replace(system.name, "/")
    model = next((part for part in reversed(re.split(r"[/_]", path)) if model_key(part)), "")
    if system is not None and not system.chips:
        parsed.skipped["no accelerator (processors alone)"] += 1
        return None
    if not tokens_per_s:
        parsed.skipped["no token throughput: not a language model, or the run did not end"] += 1
        return None
    chips = float(system.chips) if system else None
    # Interactive runs are server runs with tighter limits: the folder tells them apart.
    named = next(
        (name for name in _SCENARIOS if re.search(rf"(?<![a-z]){name}(?![a-z])", path, re.IGNORECASE)), scenario
    )
    point: Point = {
        "kind": "serving", "model_name": model, "model": model_key(model) if model else "",
        "scenario": {"server": "server", "interactive": "interactive"}.get(named.lower(), "offline"),
        "output_tps": tokens_per_s, "latency_statistic": "mean", "source_ref": document.name,
        "source": f"MLPerf Inference {match.group(0)}" if (match := re.search(r"v\d\.\d", document.path)) else "MLPerf Inference",
    }  # fmt: skip
    if system is not None:
        point |= {
            "chips": chips, "accelerator_name": system.accelerator, "accelerator": accelerator_key(system.accelerator),
            "engine": engine_name(system.software.split(",")[0]), "engine_version": system.software,
        }  # fmt: skip
    return point


def _read_detail(document: Document, systems: Systems) -> Parsed:
    parsed = Parsed("mlperf-log")
    values = {str(line["key"]): line.get("value") for line in document.lines_of(_MLLOG) if "key" in line}
    scenario = str(values.get("effective_scenario") or values.get("requested_scenario") or "")
    if str(values.get("result_validity", "")).upper() != "VALID":
        parsed.skipped[f"run is {values.get('result_validity') or 'not finished'}"] += 1
        return parsed
    if str(values.get("effective_test_mode") or values.get("requested_test_mode") or "") not in ("PerformanceOnly", ""):
        parsed.skipped["accuracy run, no performance"] += 1
        return parsed
    tokens = number(values.get("result_completed_tokens_per_second")) or number(values.get("result_tokens_per_second"))
    point = _run_point(parsed, document, systems, scenario, tokens)
    if point is None:
        return parsed
    point["measured_on"] = dated(values.get("test_datetime") or values.get("power_begin"))
    completed = number(values.get("result_completed_samples_per_sec")) or number(
        values.get("result_samples_per_second")
    )
    _latencies(
        point,
        {
            "ttft_ms": values.get("result_first_token_mean_latency_ns"),
            "ttft_p99_ms": values.get("result_first_token_99.00_percentile_latency_ns"),
            "tpot_ms": values.get("result_time_to_output_token_mean")
            or values.get("result_time_per_output_token_mean"),
            "tpot_p99_ms": values.get("result_time_per_output_token_99.00_percentile_ns"),
            "e2e_ms": values.get("result_mean_latency_ns"),
            "e2e_p99_ms": values.get("result_99.00_percentile_latency_ns"),
        },
    )
    return _finished(parsed, point, completed)


def _read_log_summary(document: Document, systems: Systems) -> Parsed:
    parsed = Parsed("mlperf-log")
    values: dict[str, str] = {}
    for line in document.text.splitlines():
        name, found, value = line.partition(":")
        if found:
            values.setdefault(re.sub(r"\s+", " ", name).strip().lower(), value.strip())
    if values.get("result is", "").upper() != "VALID":
        parsed.skipped[f"run is {values.get('result is') or 'not finished'}"] += 1
        return parsed
    if values.get("mode", "PerformanceOnly") != "PerformanceOnly":
        parsed.skipped["accuracy run, no performance"] += 1
        return parsed
    tokens = number(values.get("completed tokens per second")) or number(values.get("tokens per second"))
    point = _run_point(parsed, document, systems, values.get("scenario", ""), tokens)
    if point is None:
        return parsed
    completed = number(values.get("completed samples per second")) or number(values.get("samples per second"))
    _latencies(
        point,
        {
            "ttft_ms": values.get("mean first token latency (ns)"),
            "ttft_p99_ms": values.get("99.00 percentile first token latency (ns)"),
            "tpot_ms": values.get("mean time to output token (ns)"),
            "tpot_p99_ms": values.get("99.00 percentile time to output token (ns)"),
            "e2e_ms": values.get("mean latency (ns)"),
            "e2e_p99_ms": values.get("99.00 percentile latency (ns)"),
        },
    )
    return _finished(parsed, point, completed)


def _latencies(point: Point, nanoseconds: Mapping[str, Any]) -> None:
    for name, value in nanoseconds.items():
        amount = number(value)
        if amount:
            point[name] = amount / _NS_PER_MS


def _finished(parsed: Parsed, point: Point, samples_per_s: float | None) -> Parsed:
    if samples_per_s:
        point["requests_per_s"] = samples_per_s
        point["osl"] = point["output_tps"] / samples_per_s
    if point.get("chips"):
        point["output_tps_per_chip"] = point["output_tps"] / point["chips"]
    if point["scenario"] != "offline":
        point["note"] = _CONSTRAINTS_NOTE
    parsed.points.append(point)
    return parsed
