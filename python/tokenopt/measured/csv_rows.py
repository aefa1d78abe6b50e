"""Rows of measured tables as text, whatever wrote the file, with names in the catalogue's spelling.

Tables come out of spreadsheets, databases and scripts: with a byte-order mark, other line ends or separators, columns in
another order or in capitals, numbers with thousands separators, dates and flags in words. Models, accelerators and engines
are named as their makers, providers or repositories do. What is spelled as the catalogue does is never changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from tokenopt.catalog.model_names import model_key
from tokenopt.catalog.models import bundled_model_keys
from tokenopt.errors import SpecError
from tokenopt.measured.formats.document import Document, dated
from tokenopt.measured.names import accelerator_key, engine_name, precision_in

_MAX_FILE_BYTES = 2**30

_HEADERS: Mapping[str, str] = {
    "model_id": "model", "model_name": "model", "hf_id": "model", "hardware": "accelerator", "chip": "accelerator",
    "accelerator_name": "accelerator", "gpus": "n_gpus", "num_gpus": "n_gpus", "n_chips": "n_gpus", "input_len": "isl",
    "output_len": "osl", "max_concurrency": "concurrency", "conc": "concurrency", "precision_weights": "weight_precision",
}  # fmt: skip
"""Other names of columns; taken only where the table has no column of that name."""

_PRECISIONS = frozenset(
    ("bf16", "fp16", "fp8", "fp8-blockwise", "fp8-rowwise", "fp4", "nvfp4", "mxfp4", "mxfp8", "int8", "int4", "w8a8",
     "w8a16", "w4a16", "fp32", "auto", "native")
)  # fmt: skip
_WORDS_OF_8_BITS = re.compile(r"\b(?:e4m3|e5m2|float8|f8)\w*", re.IGNORECASE)
_NOTHING = frozenset(("", "n/a", "na", "nan", "none", "null", "nil", "-", "--", "?", "unknown", "inf", "infinity"))
_TEXT_COLUMNS = frozenset(
    (
        "id",
        "source",
        "source_ref",
        "notes",
        "quality",
        "engine_version",
        "framework_version",
        "framework",
        "engine",
        "model",
    )
)
_WHOLE = frozenset(
    f"{pool}{name}"
    for pool in ("", "prefill_", "decode_")
    for name in ("tp", "pp", "ep", "cp", "vpp", "dp", "attn_dp", "moe_tp", "moe_ep", "workers", "gpus")
) | {"n_gpus", "chips", "micro_batch"}  # fmt: skip
_POSITIVE = frozenset(("isl", "osl", "concurrency", "seq_len", "global_batch", "prefill_batch", "decode_batch"))
_RESULTS = frozenset(
    ("ttft_ms", "tpot_ms", "tps_per_user", "output_tps_per_gpu", "total_tps_per_gpu", "output_tps_per_chip", "step_time_s",
     "tokens_per_s_per_gpu", "mfu", "tflops_per_gpu", "time_to_train_min", "gpu_hours", "total_tokens", "params_b",
     "active_params_b")
)  # fmt: skip
"""What was measured: a figure that nothing can have is none, the operating point stands."""
_MOST = {"n_gpus": 1_000_000, "chips": 1_000_000, "micro_batch": 1_000_000}
_MOST_DEGREES = 65_536
_MOST_OF_A_QUANTITY = 1e18
UNUSABLE = "unusable"
"""Column that says why a row can be no operating point, whatever else it holds: a figure that none can have."""
_FLAGS = {
    "true": "1",
    "yes": "1",
    "y": "1",
    "on": "1",
    "t": "1",
    "false": "0",
    "no": "0",
    "n": "0",
    "off": "0",
    "f": "0",
}
_FLAG_COLUMNS = ("attn_dp", "disagg", "is_exact", "prefill_attn_dp")
_MODES = {
    "agg": "agg", "aggregated": "agg", "aggregate": "agg", "colocated": "agg", "co-located": "agg", "standard": "agg",
    "disagg": "disagg", "disaggregated": "disagg", "pd": "disagg", "p/d": "disagg", "dis-agg": "disagg",
}  # fmt: skip
_TASKS = {
    "pretraining": "pretrain", "pretrained": "pretrain", "continuedpretraining": "pretrain", "finetune": "sft",
    "finetuning": "sft", "fullfinetune": "sft", "supervisedfinetuning": "sft", "peft": "lora", "qlora": "lora",
    "rewardmodel": "reward-model", "rm": "reward-model",
}  # fmt: skip
_ENGINES = frozenset(
    ("trtllm", "vllm", "sglang", "vllm-tpu", "vllm-ascend", "neuronx", "transformers-neuronx", "optimum-habana",
     "atom", "tgi", "deepseek-internal")
)  # fmt: skip
_ROUTERS = ("dynamo-", "mori-")
_MONTHS = {name: number for number, name in enumerate(
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1)}  # fmt: skip


def read_rows(path: Path, needed: Sequence[str], like: str) -> list[dict[str, str]]:
    """Rows of a file.

    Args:
        path: A delimited text file with one line of column names.
        needed: Columns without which it is not one.
        like: Name of the layout, for messages.

    Returns:
        Text by column; every row has every column, and a name: that of its line where the file gives none.

    Raises:
        SpecError: The file cannot be read, is no table, has no row or lacks a column.
    """
    table = _cells(path)
    header = _header(table[0], needed)
    missing = [name for name in needed if name != "id" and name not in header]
    if missing:
        raise SpecError(f"{path} has no column {missing[0]}, expected those of {like}")
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        entry = dict.fromkeys(header, "")
        entry.update(zip(header, cells, strict=False))
        rows.append(spelled(entry, f"line {number}"))
    if not rows:
        raise SpecError(f"{path} holds no row")
    return rows


def nothing_predicted(files: Sequence[Path], refused: Iterable[str]) -> SpecError:
    """The error of files without any row that can be predicted, with the commonest reasons."""
    reasons = Counter(refused).most_common(3)
    hints = [f"{count} row{'s' if count > 1 else ''}: {reason}" for reason, count in reasons]
    return SpecError(f"no row of {', '.join(map(str, files))} can be predicted", hints)


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a file, in lower case.

    Raises:
        SpecError: The file cannot be read or is no table.
    """
    return _header(_cells(path)[0], ())


def _cells(path: Path) -> list[list[str]]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SpecError(f"{path} is larger than {_MAX_FILE_BYTES // 2**30} GiB, expected a table of measured rows")
        content = path.read_bytes()
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist, expected a CSV file of measured rows") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or error}") from error
    document = Document(str(path), str(path), content)
    if document.syntax == "json":
        raise SpecError(f"{path} is JSON, expected a CSV file with a line of column names")
    table = [cells for cells in document.rows if any(cell.strip() for cell in cells)]
    if not table:
        raise SpecError(f"{path} holds no row")
    return table


def _header(cells: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Column names in lower case; names that mean a needed column which is not there take its place."""
    names = [re.sub(r"\s+", "_", cell.strip().lower()) for cell in cells]
    for index, name in enumerate(names):
        other = _HEADERS.get(name, "")
        if other == "accelerator" and "gpu" in needed:
            other = "gpu"
        if other and other not in names and (other in needed or other == "n_gpus"):
            names[index] = other
    pairs = (
        ("gpu", "accelerator"),
        ("framework", "engine"),
        ("date", "measured_on"),
        ("precision", "weight_precision"),
    )
    for one, other in (*pairs, *((second, first) for first, second in pairs)):
        if one in needed and one not in names and other in names:
            names[names.index(other)] = one
    return names


def spelled(entry: Mapping[str, str], number: str = "") -> dict[str, str]:
    """A row with names, numbers, dates and flags as the readers of tables expect them.

    Args:
        entry: The row as text.
        number: What to call a row without an `id`.
    """
    row = {name: value.strip() for name, value in entry.items()}
    row["id"] = row.get("id") or number
    for name, value in row.items():
        if name in ("notes", "id") or not value:
            continue
        if value.lower() in _NOTHING:
            row[name] = ""
        elif name in _FLAG_COLUMNS and value.lower() in _FLAGS:
            row[name] = _FLAGS[value.lower()]
        elif name not in _TEXT_COLUMNS and len(value) > 4 and re.fullmatch(r"\d{1,3}([,_ ]\d{3})+(\.\d+)?", value):
            row[name] = re.sub(r"[,_ ]", "", value)
    if row.get("model"):
        row["model"] = spelled_model(row["model"])
    for name in ("accelerator", "gpu"):
        if row.get(name):
            row[name] = accelerator_key(row[name]) or row[name].lower()
    for name in ("weight_precision", "precision", "kv_precision"):
        if row.get(name):
            row[name] = _precision(row[name])
    for name in ("date", "measured_on"):
        if row.get(name):
            row[name] = day_of(row[name])
    for name, version in (("engine", "engine_version"), ("framework", "framework_version")):
        # Training tables name software in sentences; serving ones name an engine.
        if row.get(name) and (name == "engine" or "scenario" in row):
            row[name], printed = _engine(row[name])
            row[version] = row.get(version) or printed
    if row.get("task"):
        task = re.sub(r"[\s_]+", "-", row["task"].lower())
        row["task"] = _TASKS.get(task.replace("-", ""), task)
    if row.get("mode"):
        row["mode"] = _MODES.get(row["mode"].lower(), row["mode"])
    if row.get("scenario"):
        row["scenario"] = re.sub(r"[\s_]+", "-", row["scenario"].lower())
    for name in _RESULTS & set(row):
        if _absurd(name, row[name]):
            row[name] = ""
    row[UNUSABLE] = next(filter(None, (_absurd(name, value) for name, value in row.items())), "")
    return row


def _absurd(name: str, text: str) -> str:
    """Why a figure can be none of its column; empty when it can. Zero stands for blank, as tables write it."""
    if not text or name not in _WHOLE | _POSITIVE | _RESULTS:
        return ""
    if name in _WHOLE and text.lower() in ("auto", "epnone"):
        return ""
    try:
        value = float(text)
    except ValueError:
        return f"{name} is {text[:40]!r}, expected a number"
    if value < 0 or value > _MOST_OF_A_QUANTITY:
        return f"{name} is {text[:40]}, expected a number from 0 to {_MOST_OF_A_QUANTITY:g}"
    most = _MOST.get(name, _MOST_DEGREES)
    if name in _WHOLE and (value != int(value) or value > most):
        return f"{name} is {text[:40]}, expected a whole number from 1 to {most:,}"
    return ""


@cache
def _engine(text: str) -> tuple[str, str]:
    """Name of an engine, as tables spell it, and the version that stands behind its name."""
    found = re.fullmatch(r"(.*?)[ =@:/-]+v?(\d+\.\d+\S*)", text)
    name, version = (found.group(1), found.group(2)) if found else (text, "")
    lower = re.sub(r"\s*\+\s*", "+", name.lower().replace("_", "-"))
    if lower in _ENGINES or "+" in lower or "(" in lower:
        return lower, version
    known = engine_name(lower)
    for router in _ROUTERS:
        known = known.removeprefix(router)
    return known, version


@cache
def spelled_model(name: str) -> str:
    """Catalogue key of a model, or its name in lower case where the catalogue lacks it."""
    lower = name.lower()
    return lower if lower in bundled_model_keys() else model_key(name) or lower


def _precision(text: str) -> str:
    lower = text.lower()
    if lower in _PRECISIONS:
        return lower
    return precision_in(_WORDS_OF_8_BITS.sub("fp8", lower)) or lower


def day_of(text: str) -> str:
    """A date as ISO writes it, to the day, month or year that it gives; as it is where it is none of the known forms.

    Of two numbers that may both be a month the first one is, as benchmark tables write it.
    """
    if re.fullmatch(r"\d{4}(-\d\d(-\d\d)?|-Q[1-4])?", text):
        return text
    found = re.match(r"(\d{4})[-/.](\d{1,2})(?:[-/.](\d{1,2}))?(?!\d)", text) or re.match(
        r"(20\d\d)(\d\d)(\d\d)(?!\d)", text
    )
    if found:
        return _iso(found.group(1), found.group(2), found.group(3))
    found = re.match(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?!\d)", text)
    if found:
        first, mark, second, year = found.groups()
        is_day_first = mark == "." or int(first) > 12
        return _iso(year, second if is_day_first else first, first if is_day_first else second)
    found = re.search(
        r"(?:(\d{1,2})[ -]+)?([a-z]{3})[a-z]*\.?[ -]+(?:(\d{1,2})(?:st|nd|rd|th)?,?[ -]+)?(\d{4})", text.lower()
    )
    if found and found.group(2) in _MONTHS:
        return _iso(found.group(4), str(_MONTHS[found.group(2)]), found.group(1) or found.group(3))
    found = re.search(r"q([1-4])[ -/]*(\d{4})|(\d{4})[ -/]*q([1-4])", text.lower())
    if found:
        return f"{found.group(2) or found.group(3)}-Q{found.group(1) or found.group(4)}"
    if re.fullmatch(r"1\d{9}(\.\d+)?", text):
        return dated(float(text))
    return text if re.match(r"(19|20)\d\d(?!\d)", text) else ""


def _iso(year: str, month: str, day: str | None) -> str:
    if not 1 <= int(month) <= 12:
        return year
    if day is None or not 1 <= int(day) <= 31:
        return f"{year}-{int(month):02d}"
    return f"{year}-{int(month):02d}-{int(day):02d}"
