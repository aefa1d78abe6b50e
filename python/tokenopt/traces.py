"""Request traces: when requests arrived and how long they were, read from the shapes in which they are published.

A trace is any of

* CSV with a header: arrival (`arrival`, `arrived_at`, `timestamp` in seconds, or a date), prompt (`isl`,
  `num_prefill_tokens`, `ContextTokens`, `Request tokens` ...) and output (`osl`, `num_decode_tokens`, `GeneratedTokens`,
  `Response tokens` ...); without an arrival it gives lengths alone;
* JSON lines with `timestamp` (ms), `input_length`, `output_length` and, where known, `hash_ids` of prefix blocks;
* the JSON log of a replay, one object a request with `record_time`, `total_chunk_time`, `in_len`, `out_len`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenopt.errors import SpecError
from tokenopt.units import MS_PER_S

ARRIVAL_COLUMNS = ("arrival", "arrival_s", "arrived_at", "arrival_time", "timestamp")
ISL_COLUMNS = (
    "isl", "num_prefill_tokens", "contexttokens", "input_length", "input_tokens", "prompt_tokens", "request tokens",
)  # fmt: skip
OSL_COLUMNS = (
    "osl", "num_decode_tokens", "generatedtokens", "output_length", "output_tokens", "completion_tokens",
    "response tokens",
)  # fmt: skip
PREFIX_BLOCK_TOKENS = 512
"""Tokens of a prefix block in traces that name blocks by hash (Mooncake, FAST'25)."""
MOST_REQUESTS = 20_000_000


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        name: File it was read from.
        arrivals_s: Seconds from the first request; None where the file gives lengths alone.
        isl: Prompt tokens.
        osl: Output tokens.
        cached: Prompt tokens whose prefix an earlier request had, with a cache that never forgets; empty where the file
            does not say.
        skipped: Requests without output, left out.
    """

    name: str
    arrivals_s: Sequence[float] | None
    isl: Sequence[float]
    osl: Sequence[float]
    cached: Sequence[float] = ()
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.isl)

    def summary(self) -> TraceSummary:
        """Means and spreads."""
        return TraceSummary.of(self)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """What a trace looks like.

    Attributes:
        requests: Requests.
        seconds: From the first arrival to the last; None without arrivals.
        requests_per_s: Mean rate; None without arrivals.
        isl, osl: Mean lengths, tokens.
        isl_cv, osl_cv: Standard deviation over mean.
        prefix_hit: Share of prompt tokens found in the prefix cache.
        bursts: Window (s) and variance over mean of the number of arrivals in such windows, from ten mean gaps to a
            tenth of the trace; about 1 in each for independent users, empty without arrivals.
    """

    requests: int
    seconds: float | None
    requests_per_s: float | None
    isl: float
    osl: float
    isl_cv: float
    osl_cv: float
    prefix_hit: float
    bursts: Sequence[tuple[float, float]] = ()

    @classmethod
    def of(cls, trace: Trace) -> TraceSummary:
        """The summary of a trace."""
        isl, isl_cv = _mean_and_cv(trace.isl)
        osl, osl_cv = _mean_and_cv(trace.osl)
        seconds = rate = None
        bursts: list[tuple[float, float]] = []
        if trace.arrivals_s is not None and len(trace) > 1 and trace.arrivals_s[-1] > 0:
            seconds = trace.arrivals_s[-1]
            rate = (len(trace) - 1) / seconds
            bursts = _bursts(trace.arrivals_s)
        return cls(
            requests=len(trace),
            seconds=seconds,
            requests_per_s=rate,
            isl=isl,
            osl=osl,
            isl_cv=isl_cv,
            osl_cv=osl_cv,
            prefix_hit=sum(trace.cached) / sum(trace.isl) if trace.cached else 0.0,
            bursts=bursts,
        )

    def burstiness_over(self, window_s: float) -> float:
        """Variance over mean of arrivals in windows of about `window_s`; 1, as for independent users, where unknown."""
        if not self.bursts:
            return 1.0
        return min(self.bursts, key=lambda burst: abs(math.log(burst[0] / window_s)))[1]


def load_trace(path: Path) -> Trace:
    """Reads a trace.

    Args:
        path: CSV, JSON lines or JSON file.

    Returns:
        The trace, sorted by arrival.

    Raises:
        SpecError: The file cannot be read as a trace; one sentence says where and why.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"trace {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SpecError(f"trace {path} is not a text file") from None
    start = text.lstrip()[:1]
    if not start:
        raise SpecError(f"trace {path} is empty")
    rows = _json_rows(path, text) if start in "{[" else _csv_rows(path, text)
    return _trace(path, rows)


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    arrival_s: float | None
    isl: float
    osl: float
    blocks: Sequence[Any] | None = None


def _csv_rows(path: Path, text: str) -> Iterable[_Row]:
    reader = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(reader)]
    places = {
        what: next((header.index(name) for name in names if name in header), None)
        for what, names in (("arrival", ARRIVAL_COLUMNS), ("isl", ISL_COLUMNS), ("osl", OSL_COLUMNS))
    }
    for what, names in (("isl", ISL_COLUMNS), ("osl", OSL_COLUMNS)):
        if places[what] is None:
            raise SpecError(
                f"trace {path} has no column of {'prompt' if what == 'isl' else 'output'} lengths: "
                f"its header is {', '.join(header)[:120]}",
                [f"expected one of {', '.join(names)}"],
            )
    arrival_place = places["arrival"]
    for number, cells in enumerate(reader, start=2):
        if not cells:
            continue
        where = f"line {number}"
        if len(cells) < len(header):
            raise SpecError(f"trace {path}, {where}: {len(cells)} cells, expected {len(header)}")
        yield _Row(
            where,
            None if arrival_place is None else _seconds(path, where, cells[arrival_place]),
            _tokens(path, where, "prompt length", cells[places["isl"] or 0]),
            _tokens(path, where, "output length", cells[places["osl"] or 0]),
        )


def _json_rows(path: Path, text: str) -> Iterable[_Row]:
    try:
        document = json.loads(text)
    except ValueError:
        yield from _json_lines(path, text)
        return
    entries: Iterable[tuple[str, Any]]
    if isinstance(document, Mapping) and document and all(isinstance(item, Mapping) for item in document.values()):
        entries = [(f"entry {key}", item) for key, item in document.items()]
    elif isinstance(document, list):
        entries = [(f"entry {index}", item) for index, item in enumerate(document)]
    else:
        entries = [("line 1", document)]
    for where, entry in entries:
        yield _json_row(path, where, entry)


def _json_lines(path: Path, text: str) -> Iterable[_Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise SpecError(f"trace {path}, {where} is not JSON: {error}") from None
        yield _json_row(path, where, entry)


def _json_row(path: Path, where: str, entry: Any) -> _Row:
    if isinstance(entry, Mapping):
        if {"input_length", "output_length"} <= set(entry):
            at = entry.get("timestamp")
            blocks = entry.get("hash_ids")
            if blocks is not None and not isinstance(blocks, list):
                raise SpecError(f"trace {path}, {where}: hash_ids is {blocks!r}, expected a list")
            return _Row(
                where,
                None if at is None else _number(path, where, "timestamp", at) / MS_PER_S,
                _tokens(path, where, "input_length", entry["input_length"]),
                _tokens(path, where, "output_length", entry["output_length"]),
                blocks,
            )
        if {"in_len", "out_len", "record_time", "total_chunk_time"} <= set(entry):
            # The log notes the end of a request, and counts streamed text that may be longer than the tokens asked for.
            ended = _number(path, where, "record_time", entry["record_time"])
            took = _number(path, where, "total_chunk_time", entry["total_chunk_time"])
            out = _tokens(path, where, "out_len", entry["out_len"])
            if "out_len_expected" in entry:
                out = min(out, _tokens(path, where, "out_len_expected", entry["out_len_expected"]))
            return _Row(where, ended - took, _tokens(path, where, "in_len", entry["in_len"]), out)
    raise SpecError(
        f"trace {path}, {where} is no request of a known shape",
        ["expected input_length, output_length and timestamp (ms), or the columns arrival, isl, osl as CSV"],
    )


def _trace(path: Path, rows: Iterable[_Row]) -> Trace:
    kept: list[_Row] = []
    skipped = 0
    for row in rows:
        # A request that failed has no output, and a turn without prompt is none.
        if row.osl < 1 or row.isl < 1:
            skipped += 1
            continue
        kept.append(row)
        if len(kept) > MOST_REQUESTS:
            raise SpecError(f"trace {path} holds more than {MOST_REQUESTS:,} requests")
    if not kept:
        raise SpecError(f"trace {path} holds no request with a prompt and an output")
    arrivals: list[float] | None = None
    known = [row.arrival_s for row in kept if row.arrival_s is not None]
    if len(known) == len(kept):
        kept.sort(key=lambda row: row.arrival_s or 0.0)
        first = kept[0].arrival_s or 0.0
        arrivals = [(row.arrival_s or 0.0) - first for row in kept]
    elif known:
        raise SpecError(f"trace {path}: {len(kept) - len(known)} requests have no arrival, the others have one")
    return Trace(
        name=str(path),
        arrivals_s=arrivals,
        isl=[row.isl for row in kept],
        osl=[row.osl for row in kept],
        cached=_cached(kept),
        skipped=skipped,
    )


def _cached(rows: Sequence[_Row]) -> list[float]:
    """Prompt tokens of each request that an earlier one has left in a cache that never forgets."""
    if all(row.blocks is None for row in rows):
        return []
    seen: set[Any] = set()
    cached = []
    for row in rows:
        hits = 0
        blocks = row.blocks or []
        for block in blocks:
            if block not in seen:
                break
            hits += 1
        seen.update(blocks)
        cached.append(min(float(hits * PREFIX_BLOCK_TOKENS), row.isl - 1))
    return cached


def _seconds(path: Path, where: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            return datetime.fromisoformat(text.strip()).timestamp()
        except ValueError:
            raise SpecError(f"trace {path}, {where}: arrival {text!r} is neither seconds nor a date") from None
    if not math.isfinite(seconds):
        raise SpecError(f"trace {path}, {where}: arrival {text!r} is not a finite number")
    return seconds


def _number(path: Path, where: str, name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise SpecError(f"trace {path}, {where}: {name} is {value!r}, expected a number")


def _tokens(path: Path, where: str, name: str, value: object) -> float:
    try:
        tokens = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        tokens = math.nan
    if not (math.isfinite(tokens) and 0 <= tokens <= 1e9):
        raise SpecError(f"trace {path}, {where}: {name} is {value!r}, expected a number of tokens")
    return tokens


def _mean_and_cv(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return mean, math.sqrt(variance) / mean


def _bursts(arrivals_s: Sequence[float]) -> list[tuple[float, float]]:
    """Window and index of dispersion of the counts in it, windows doubling."""
    span = arrivals_s[-1]
    found = []
    window = 10.0 * span / len(arrivals_s)
    while window <= span / 10:
        windows = int(span / window)
        counts = [0] * windows
        for at in arrivals_s:
            index = int(at / window)
            if index < windows:
                counts[index] += 1
        mean = sum(counts) / windows
        if mean > 0:
            found.append((window, sum((count - mean) ** 2 for count in counts) / windows / mean))
        window *= 2
    return found
