"""Tables of results: our own columns, and the columns of other tools told by their names and units.

A plan says which column of the file becomes which column of a point, and by what factor; it is applied to a frame, so
that a million rows take seconds, or to one row at a time without any library.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.model_names import model_in_text, model_key
from tokenopt.errors import SpecError
from tokenopt.measured.columns import NUMBER_NAMES, TEXT_NAMES
from tokenopt.measured.formats.document import Document, Parsed, Point, dated
from tokenopt.measured.names import accelerator_key, engine_name, hardware_in_path, number, precision_in

if TYPE_CHECKING:
    import polars as pl

_UNIT_MS = {"s": 1e3, "sec": 1e3, "seconds": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_LATENCY = re.compile(
    r"(?P<what>ttft|time to first token|tpot|time per output token|itl|inter token latency|e2el|e2e|end to end latency|"
    r"request latency)(?: latency)?"
)
_STATISTIC = re.compile(
    r"(?<![a-z0-9])(mean|avg|average|median|p50|p99|p90|p95|std|min|max|p25|p75|p10|p5|p1)(?![a-z0-9])"
)
_TARGET = {
    "ttft": "ttft", "time to first token": "ttft", "tpot": "tpot", "time per output token": "tpot", "itl": "itl",
    "inter token latency": "itl", "e2el": "e2e", "e2e": "e2e", "end to end latency": "e2e", "request latency": "e2e",
}  # fmt: skip
_PLAIN = {
    "model": "model_name", "model id": "model_name", "gpu": "accelerator_name", "hardware": "accelerator_name",
    "accelerator": "accelerator_name", "inst. type": "accelerator_name", "device": "accelerator_name", "chip": "accelerator_name",
    "framework": "engine", "engine": "engine", "backend": "engine", "framework version": "engine_version",
    "engine version": "engine_version", "neuron version": "engine_version", "precision": "weight_precision",
    "weight precision": "weight_precision", "weight storage data type": "weight_precision", "dtype": "weight_precision",
    "kv precision": "kv_precision", "mode": "mode", "scenario": "scenario", "source": "source", "source ref": "source_ref",
    "id": "source_ref", "measured on": "measured_on", "date": "measured_on", "notes": "note", "note": "note",
    "n gpus": "chips", "num gpus": "chips", "gpus": "chips", "chips": "chips", "num of hardware": "chips",
    "num hardware": "chips", "tp": "tp", "tp degree": "tp", "tensor parallel size": "tp", "pp": "pp", "ep": "ep", "moe ep": "ep",
    "attn dp": "attn_dp", "prefill gpus": "prefill_chips", "decode gpus": "decode_chips",
    "isl": "isl", "input length": "isl", "input len": "isl", "random input len": "isl", "input lens first": "isl",
    "isl median": "isl", "avg input len": "isl", "osl": "osl", "output length": "osl", "output len": "osl",
    "random output len": "osl", "output lens first": "osl", "osl median": "osl", "avg output len": "osl",
    "concurrency": "concurrency", "conc": "concurrency", "max concurrency": "concurrency", "concurrent requests": "concurrency",
    "concurrent queries": "concurrency", "batch size": "concurrency", "request rate": "request_rate", "qps": "request_rate",
    "completed": "completed", "completed turns": "completed", "successful requests": "completed", "failed": "failed",
    "failed turns": "failed", "num prompts": "num_prompts", "requests": "num_prompts", "duration": "duration_s",
    "benchmark duration s": "duration_s", "total input tokens": "total_input_tokens",
    "total output tokens": "total_output_tokens", "total generated tokens": "total_output_tokens",
    "request throughput": "requests_per_s", "request throughput per s": "requests_per_s",
    "request throughput req/s": "requests_per_s", "output throughput": "output_tps", "output tps total": "output_tps",
    "output token throughput tok/s": "output_tps", "output token throughput tokens/sec": "output_tps",
    "output throughput tok per s": "output_tps", "token throughput": "output_tps",
    "system output throughput": "output_tps", "system output throughput tokens/s": "output_tps",
    "system output throughput tok/s": "output_tps", "total token throughput": "total_tps",
    "total token throughput tok/s": "total_tps", "total token throughput tok per s": "total_tps",
    "total tps total": "total_tps", "throughput": "total_tps", "output tps per gpu": "output_tps_per_chip",
    "output tps per chip": "output_tps_per_chip", "total tps per gpu": "total_tps_per_chip",
    "total tps per chip": "total_tps_per_chip", "tps per user": "tps_per_user",
    "output speed per query": "tps_per_user", "per query output speed": "tps_per_user",
    "median output speed per query": "tps_per_user",
    "median output speed per query tokens/s": "tps_per_user", "output speed per query tokens/s": "tps_per_user",
    "power w per gpu": "power_w_per_chip", "cache hit rate": "prefix_hit", "quality": "note", "filename": "file_name",
    "disagg": "disagg", "latency": "e2e_s", "input output length": "both_lengths", "end to end latency s": "e2e_s",
}  # fmt: skip
"""Names of columns, without case and punctuation, and what they hold."""

_HELPERS = ("num_prompts", "duration_s", "total_input_tokens", "total_output_tokens", "file_name", "disagg", "e2e_s",
            "both_lengths", "itl_ms")  # fmt: skip
_SCENARIOS = {
    "fixed-concurrency": "concurrency", "fixed-qps": "rate", "offline-max": "offline", "offline-burst": "offline",
    "static-batch": "batch",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """Which column of a file becomes which of a point.

    Attributes:
        tool: Kind of table.
        columns: Index, target and factor of each column that is used.
        statistic: What the latencies are.
        constants: Texts that hold for every row.
    """

    tool: str
    columns: tuple[tuple[int, str, float], ...]
    statistic: str
    constants: Mapping[str, str] = field(default_factory=dict)

    def targets(self) -> set[str]:
        """What the plan fills."""
        return {target for _, target, _ in self.columns}


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9./%]+", " ", name.strip().lower()).strip()


def plan_of(header: Sequence[str]) -> Plan | None:
    """The plan for a header, None where too little of it is understood to be a table of results."""
    names = [_normal(cell) for cell in header]
    own = [cell.strip().lower() for cell in header]
    if sum(cell in TEXT_NAMES + NUMBER_NAMES for cell in own) >= max(4, 0.8 * len(own)) and "accelerator_name" in own:
        columns = [(index, cell, 1.0) for index, cell in enumerate(own) if cell in TEXT_NAMES + NUMBER_NAMES]
        return Plan("csv", tuple(columns), "")
    best: dict[str, tuple[int, int, float]] = {}
    for index, name in enumerate(names):
        target, rank, scale = _target(name)
        if target and (target not in best or rank < best[target][0]):
            best[target] = (rank, index, scale)
    found = set(best)
    has_rate = found & {"output_tps", "total_tps", "output_tps_per_chip", "total_tps_per_chip", "tps_per_user"}
    has_time = found & {"tpot_ms", "ttft_ms", "itl_ms", "e2e_s", "e2e_ms"}
    has_load = found & {"concurrency", "request_rate", "isl", "completed", "num_prompts", "both_lengths"}
    if not has_load or not (has_rate or has_time) or len(found) < 4:
        return None
    is_mean = best.get("tpot_ms", best.get("ttft_ms", (0,)))[0] == 1
    tool, constants = _tool(names)
    columns = sorted((index, target, scale) for target, (_, index, scale) in best.items())
    return Plan(tool, tuple(columns), "mean" if is_mean else "median", constants)


def _target(name: str) -> tuple[str, int, float]:
    """What a column holds, how well it says so (lower is better), and its factor to our unit."""
    if name in _PLAIN:
        return _PLAIN[name], 0, 1.0
    match = _LATENCY.search(name)
    if match is None:
        return "", 0, 1.0
    quantity = _TARGET[match.group("what")]
    statistic = _STATISTIC.search(name)
    words = name.split()
    scale = next((_UNIT_MS[word] for word in reversed(words) if word in _UNIT_MS), 1.0)
    kind = statistic.group(1) if statistic else ""
    if kind == "p99" and quantity != "itl":
        return f"{quantity}_p99_ms", 0, scale
    ranks = {"median": 0, "p50": 0, "": 0, "mean": 1, "avg": 1, "average": 1}
    if kind not in ranks or (not kind and "ms" not in words and "s" not in words):
        return "", 0, 1.0
    return f"{quantity}_ms", ranks[kind], scale


def _tool(names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Kind of table by what only it has, and what that implies."""
    found = set(names)
    if "input output length" in found:
        return "llm-inference-bench", {"source": "LLM-Inference-Bench", "scenario": "batch"}
    if "inst. type" in found:
        return "neuron", {"source": "AWS Neuron documentation", "scenario": "batch"}
    if "avg input len" in found and "token throughput" in found:
        return "trtllm-bench", {"source": "trtllm-bench", "scenario": "offline", "engine": "trtllm"}
    if "completed turns" in found:
        return "multi-turn", {"source": "multi-turn replay", "scenario": "concurrency"}
    if {"moe ep", "attn dp"} <= found:
        return "sweep", {"scenario": "concurrency"}
    if {"framework version", "output tps per gpu"} <= found:
        return "published", {}
    if any(name.startswith("system output throughput") for name in found):
        return "system-load-test", {"source": "system load test", "scenario": "concurrency"}
    return "table", {}


def recognises(document: Document) -> bool:
    """Whether this is a table of serving results."""
    return document.syntax == "table" and (is_aiperf(document) or plan_of(header_of_text(document.text)) is not None)


def is_aiperf(document: Document) -> bool:
    """Whether this is a CSV export of AIPerf or GenAI-Perf."""
    head = [cell.strip().lower() for cell in header_of_text(document.text)]
    return head[:2] == ["metric", "avg"] or head[:2] == ["metric", "value"]


def read_aiperf(document: Document) -> Parsed:
    """Blocks of metrics: distributions, then single values."""
    parsed = Parsed("aiperf")
    values: dict[str, float] = {}
    header: list[str] = []
    for row in document.rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if cells[0].lower() in ("metric", "endpoint"):
            header = [cell.lower() for cell in cells]
        elif header[:1] == ["metric"]:
            name = _normal(re.sub(r"\(.*?\)", "", cells[0]))
            for label, cell in zip(header[1:], cells[1:], strict=False):
                amount = number(cell)
                if amount is not None:
                    values[f"{name} {'avg' if label == 'value' else label}"] = amount
    has_median = "inter token latency p50" in values
    statistic = "p50" if has_median else "avg"
    point: Point = {
        "kind": "serving", "source": "AIPerf", "source_ref": document.name, "scenario": "concurrency",
        "latency_statistic": "median" if has_median else "mean", "isl": values.get("input sequence length avg"),
        "osl": values.get("output sequence length avg"), "requests_per_s": values.get("request throughput avg"),
        "output_tps": values.get("output token throughput avg"), "total_tps": values.get("total token throughput avg"),
        "ttft_ms": values.get(f"time to first token {statistic}"), "ttft_p99_ms": values.get("time to first token p99"),
        "tpot_ms": values.get(f"inter token latency {statistic}"), "tpot_p99_ms": values.get("inter token latency p99"),
        "e2e_ms": values.get(f"request latency {statistic}"), "e2e_p99_ms": values.get("request latency p99"),
        "completed": values.get("request count avg"),
    }  # fmt: skip
    model = model_in_text(document.path)
    load = re.search(r"(?:^|[/_-])c(?:onc(?:urrency)?)?[_-]?(\d+)(?=[/._-]|$)", document.path)
    point |= {"model": model, "concurrency": float(load.group(1)) if load else None}
    if not point["output_tps"] and not point["tpot_ms"]:
        parsed.skipped["nothing was measured"] += 1
    else:
        parsed.points.append(point)
    return parsed


def read_frame(document: Document) -> tuple[str, pl.DataFrame, Counter[str]]:
    """A table as a frame of points, columnar.

    Returns:
        Kind of table, the points, and rows left out by reason.
    """
    import polars as pl

    plan = plan_of(header_of_text(document.text))
    if plan is None:
        raise SpecError(f"{document.name} is not a table of results: its columns are not known")
    lines = document.text if not document.text.startswith("#") else re.sub(r"\A(?:#[^\n]*\n)+", "", document.text)
    try:
        raw = pl.read_csv(
            io.StringIO(lines), has_header=True, infer_schema=False, truncate_ragged_lines=True,
            separator=_separator(lines), null_values=[""],
        )  # fmt: skip
    except pl.exceptions.PolarsError as error:
        raise SpecError(f"{document.name} is not a table: {str(error).splitlines()[0]}") from error
    names = raw.columns
    numbers = set(NUMBER_NAMES) | set(_HELPERS) - {"file_name", "disagg"}
    chosen = []
    for index, target, scale in plan.columns:
        column = pl.col(names[index])
        if target in numbers:
            cleaned = column.str.strip_chars().str.replace_all(",", "", literal=True)
            value = cleaned.cast(pl.Float64, strict=False)
            chosen.append((value * scale if scale != 1.0 else value).alias(target))
        else:
            chosen.append(column.str.strip_chars().fill_null("").alias(target))
    frame = raw.select(chosen)
    return plan.tool, _finished(frame, plan, document), Counter()


def _separator(text: str) -> str:
    head = text.split("\n", 1)[0]
    return max("\t,;", key=head.count)


def header_of_text(text: str) -> list[str]:
    """Cells of the first line that is neither blank nor a comment, without splitting the rest."""
    import csv

    for line in text.split("\n", 60)[:60]:
        if line.strip() and not line.startswith("#"):
            return next(csv.reader([line.rstrip("\r")], delimiter=_separator(line)))
    return []


def _finished(frame: pl.DataFrame, plan: Plan, document: Document) -> pl.DataFrame:
    """Names as the catalogue has them, and figures that follow from others by division."""
    import polars as pl

    def mapped(target: str, source: str, function: Any) -> None:
        nonlocal frame
        if source in frame.columns:
            known = {text: function(text) for text in frame[source].unique().to_list()}
            frame = frame.with_columns(pl.col(source).replace_strict(known, return_dtype=pl.String).alias(target))

    have = set(frame.columns)
    for name, text in plan.constants.items():
        frame = frame.with_columns(pl.lit(text).alias(name)) if name not in have else frame
    if plan.tool == "csv":
        return frame
    if "model_name" not in have and "file_name" in have:
        mapped("model", "file_name", model_in_text)
    mapped("model", "model_name", model_key)
    if "weight_precision" not in have:
        mapped("weight_precision", "model_name" if "model_name" in have else "file_name", precision_in)
    else:
        mapped("weight_precision", "weight_precision", lambda text: precision_in(text) or text.lower())
    mapped("accelerator", "accelerator_name", _chip)
    if "chips" not in have and "accelerator_name" in have:
        known = {text: _chip_count(text) for text in frame["accelerator_name"].unique().to_list()}
        frame = frame.with_columns(
            pl.col("accelerator_name").replace_strict(known, return_dtype=pl.Float64).alias("chips")
        )
    if plan.tool == "published":
        mapped(
            "speculative", "scenario", lambda text: "mtp" if "+mtp" in text else "draft" if "+spec" in text else "none"
        )
        mapped("scenario", "scenario", lambda text: _SCENARIOS.get(text.split("+")[0], text.split("+")[0]))
    mapped("engine", "engine", engine_name)
    if "disagg" in have:
        mapped("mode", "disagg", lambda text: "disagg" if text in ("1", "true", "True") else "agg")
    mapped("measured_on", "measured_on", lambda text: dated(text) or text)
    have = set(frame.columns)

    def column(name: str) -> pl.Expr:
        return pl.col(name) if name in have else pl.lit(None, dtype=pl.Float64)

    if "both_lengths" in have:
        frame = frame.with_columns(
            isl=pl.col("both_lengths"), osl=pl.col("both_lengths"), output_tps=column("total_tps") / 2
        )
    for length, total in (("isl", "total_input_tokens"), ("osl", "total_output_tokens")):
        if total in have:
            mean = pl.col(total) / column("completed").fill_null(column("num_prompts"))
            frame = frame.with_columns(column(length).fill_null(mean).alias(length))
    have = set(frame.columns)
    if "e2e_s" in have:
        frame = frame.with_columns((pl.col("e2e_s") * 1e3).alias("e2e_ms"))
    if "itl_ms" in have and "tpot_ms" not in have:
        frame = frame.with_columns(pl.col("itl_ms").alias("tpot_ms"))
    if "tpot_ms" not in have and "tps_per_user" in have:
        frame = frame.with_columns((1e3 / pl.col("tps_per_user")).alias("tpot_ms"))
    have = set(frame.columns)
    for kind in ("output", "total"):
        if f"{kind}_tps" in have and f"{kind}_tps_per_chip" not in have and "chips" in have:
            frame = frame.with_columns((pl.col(f"{kind}_tps") / pl.col("chips")).alias(f"{kind}_tps_per_chip"))
    if "scenario" not in have:
        is_open = column("request_rate").is_finite() & (column("request_rate") > 0)
        has_load = column("concurrency").is_not_null()
        frame = frame.with_columns(
            pl.when(is_open).then(pl.lit("rate")).when(has_load).then(pl.lit("concurrency")).otherwise(pl.lit("offline"))
            .alias("scenario")
        )  # fmt: skip
    for name, text in (("kind", "serving"), ("latency_statistic", plan.statistic), ("source", "table")):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(text).alias(name))
    if "accelerator_name" not in have:
        name, chips = hardware_in_path(document.path)
        if name:
            frame = frame.with_columns(
                pl.lit(name).alias("accelerator_name"), pl.lit(accelerator_key(name)).alias("accelerator")
            )
            if chips and "chips" not in have:
                frame = frame.with_columns(pl.lit(float(chips)).alias("chips"))
    return frame.drop([name for name in _HELPERS if name in frame.columns])


def _chip(text: str) -> str:
    """Key of `8xH100 1FP8-meta`, `Inf2.48xlarge` or a plain name."""
    key = accelerator_key(text)
    if key:
        return key
    match = re.match(r"\s*\d+\s*x\s*([A-Za-z0-9-]+)", text)
    return accelerator_key(match.group(1)) if match else accelerator_key(text.split(".")[0])


def _chip_count(text: str) -> float | None:
    from tokenopt.measured.formats.mlperf_training import neuron_chips

    match = re.match(r"\s*(\d+)\s*x\s*[A-Za-z]", text)
    count = int(match.group(1)) if match else neuron_chips(text)
    return float(count) if count else None


def row_point(plan: Plan, cells: Sequence[str]) -> Point:
    """One row by a plan, without any library: what the bundled tables are read with."""
    point: Point = {**plan.constants, "kind": "serving", "latency_statistic": plan.statistic}
    for index, target, scale in plan.columns:
        text = cells[index]
        if target in NUMBER_NAMES:
            value = number(text)
            point[target] = value * scale if value is not None else None
        elif text:
            point[target] = text
    return point
