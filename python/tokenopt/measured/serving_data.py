"""Reading measured serving points in the column layout of concurrency sweeps, and cleaning them by stated rules.

A rule names what is physically wrong with a row, never a row. What a rule drops is counted under its name.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import UNUSABLE, read_rows

NEEDED = ("id", "model", "accelerator", "engine", "mode", "isl", "osl", "concurrency", "tp", "ttft_ms", "tpot_ms")
"""Columns without which a file is not one of concurrency sweeps."""

LENGTH_SHARE = {"InferenceX": 0.9}
"""Mean length over nominal length, by source: InferenceX draws lengths evenly from 80% to 100% of nominal."""

QUEUE_TTFT_S = 10.0
QUEUE_OSL = 500
"""A time to first token beyond ten seconds, or beyond half of the decode time of an answer of at least 500 tokens, holds a
queue in front of the server: its batch is then smaller than the client's concurrency."""

WAVE_TTFT_SHARE = 0.25
WAVE_CONCURRENCY = 16
"""Requests of equal length stay in step where an engine prefills before it decodes: prompts of all clients are prefilled,
then all answers are written. A sweep ran so when the median time to first token, from sixteen clients on, is beyond a
quarter of the answer's time."""

UNLABELLED_SPECULATION = (
    ("trtllm", "1.2.0rc6.post3", "", "", ""),
    ("trtllm", "1.1.0rc2.post2", "2026-01-14", "", ""),
    ("sglang", "0.5.9", "2026-03-25", "fp8", "h200-sxm"),
)
"""Engine, version, date, precision and excepted accelerator of DeepSeek runs that are 1.1 to 2.3 times faster than the same
stack without speculative decoding, confirmed by labelled rows of another source."""

IMPLAUSIBLE_SWEEPS = (
    ("engine sweep", "trtllm", "", "gb200-nvl72"),
    ("engine sweep", "vllm", "0.12.0", "h200-sxm"),
)
"""Source, engine, version and accelerator of sweeps whose members break physical rules: time per token falls with
concurrency, or the implied arithmetic rate is above 0.55 of peak."""


@dataclass(frozen=True, slots=True)
class PrefillWorkers:
    """The prefill pool of a disaggregated deployment: equal workers, each on one layout."""

    workers: int
    tp: int
    pp: int
    attn_dp: int
    ep: int

    @property
    def chips(self) -> int:
        """Chips of all workers."""
        return self.workers * self.tp * self.pp * self.attn_dp


@dataclass(frozen=True, slots=True)
class ServingRow:
    """One measured operating point.

    Attributes:
        id: Identifier in the file.
        source: Who measured.
        date: Day of the measurement, ISO.
        model: Catalogue key.
        accelerator: Catalogue key.
        engine: Engine name.
        version: Engine version, empty where not published.
        mode: `agg` or `disagg`.
        weight_precision: Label as printed (bf16, fp8, fp4).
        isl: Mean prompt length, tokens.
        osl: Mean output length, tokens.
        concurrency: Requests in flight on the deployment.
        tp, pp, attn_dp, ep: Layout of one replica or decode worker, repaired where the file prints products as chips.
        ttft_s: Measured time to first token, s; None where not published.
        tpot_s: Measured time per output token, s.
        is_queue_limited: Whether the client's concurrency exceeds what the server ran.
        workers: Decode workers.
        prefill: The prefill pool; None when aggregated.
        is_in_waves: Whether the requests of its sweep prefill together and then decode together.
        unscored: Why the row is predicted but neither fitted nor scored; empty when it is.
    """

    id: str
    source: str
    date: str
    model: str
    accelerator: str
    engine: str
    version: str
    mode: str
    weight_precision: str
    isl: float
    osl: float
    concurrency: float
    tp: int
    pp: int
    attn_dp: int
    ep: int
    ttft_s: float | None
    tpot_s: float
    is_queue_limited: bool
    workers: int = 1
    prefill: PrefillWorkers | None = None
    is_in_waves: bool = False
    unscored: str = ""

    @property
    def chips(self) -> int:
        """Chips of the deployment."""
        return self.workers * self.tp * self.pp * self.attn_dp + (self.prefill.chips if self.prefill else 0)

    @property
    def is_scored(self) -> bool:
        """Whether predictions are held against the row."""
        return not self.unscored and not self.is_queue_limited

    @property
    def output_tps_per_chip(self) -> float:
        """Output tokens/s per chip, from Little's law on the measured latencies."""
        e2e_s = (self.ttft_s or 0.0) + self.tpot_s * (self.osl - 1.0)
        return self.concurrency * self.osl / e2e_s / self.chips

    @property
    def stack(self) -> tuple[str, str, str, str]:
        """Model, accelerator, engine and precision."""
        return self.model, self.accelerator, self.engine, self.weight_precision


@dataclass(frozen=True, slots=True)
class CleanRows:
    """Rows of a file.

    Attributes:
        rows: Every row that can be predicted, in the order of the file; `unscored` says which are not held against.
        dropped: Ids of the rows that a rule keeps out of fit and score, by rule; most of them can still be predicted.
        unusable: Reason by id of the rows that lack what a prediction needs.
        repaired: Rows whose layout was taken apart.
        order: Ids in the order of the file.
    """

    rows: list[ServingRow]
    dropped: dict[str, list[str]]
    unusable: dict[str, str]
    repaired: int
    order: list[str]


def read_serving_curves(path: Path) -> list[dict[str, str]]:
    """Rows of a file with the columns of concurrency sweeps, as text.

    Raises:
        SpecError: The file cannot be read or lacks a column.
    """
    return read_rows(path, NEEDED, "serving_curves.csv")


def clean(raw: Iterable[Mapping[str, str]]) -> CleanRows:
    """Applies every rule.

    Args:
        raw: Rows of :func:`read_serving_curves`.

    Returns:
        Every row that can be predicted, and what the rules say of the others.
    """
    rows: list[ServingRow] = []
    dropped: dict[str, list[str]] = {}
    unusable: dict[str, str] = {}
    seen: set[tuple[object, ...]] = set()
    repaired = 0
    order: list[str] = []
    for entry in raw:
        order.append(entry["id"])
        missing = _missing(entry)
        if missing:
            unusable[entry["id"]] = missing
            continue
        row, was_repaired = parse_row(entry)
        reason = _refusal(entry)
        if not reason:
            signature = (
                *row.stack, row.version if row.source != "InferenceX" else "", row.isl, row.osl, row.concurrency, row.tp,
                row.pp, row.attn_dp, row.ep, row.workers, row.prefill, round(math.log(row.tpot_s), 2),
            )  # fmt: skip
            reason = "repeat" if signature in seen else ""
            seen.add(signature)
        if reason:
            dropped.setdefault(reason, []).append(row.id)
        else:
            repaired += was_repaired
        rows.append(replace(row, unscored=reason))
    rows = _with_waves(rows)
    return CleanRows(rows, dropped, unusable, repaired, order)


def _with_waves(rows: list[ServingRow]) -> list[ServingRow]:
    """The rows, those of sweeps that ran in waves marked."""

    def sweep(row: ServingRow) -> tuple[object, ...]:
        return row.source, row.version, row.stack

    shares: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        is_witness = row.source not in LENGTH_SHARE and row.prefill is None and row.concurrency >= WAVE_CONCURRENCY
        if is_witness and row.ttft_s and not row.unscored:
            shares.setdefault(sweep(row), []).append(row.ttft_s / (row.osl * row.tpot_s))
    in_waves = {key for key, found in shares.items() if statistics.median(found) > WAVE_TTFT_SHARE}
    return [replace(row, is_in_waves=sweep(row) in in_waves) for row in rows]


def _missing(entry: Mapping[str, str]) -> str:
    """What a prediction needs and the row does not say; empty when all is there."""
    if entry.get(UNUSABLE):
        return entry[UNUSABLE]
    for name in ("isl", "osl"):
        if not _number(entry, name):
            return f"no {name}"
    if not _concurrency(entry):
        return "no concurrency"
    if entry["mode"] == "disagg":
        if not _number(entry, "decode_workers") or not _number(entry, "prefill_workers"):
            return "disaggregated, number of workers not published"
        if not (_number(entry, "decode_tp") or _number(entry, "decode_attn_dp")):
            return "disaggregated, layout of the decode workers not published"
    elif entry["mode"] not in ("agg", ""):
        return f"mode {entry['mode']} is not known"
    return ""


def _concurrency(entry: Mapping[str, str]) -> float | None:
    """Requests in flight; where only the batch of a decode rank is printed, that of all ranks of all workers."""
    batch = _number(entry, "decode_batch")
    if _number(entry, "concurrency") or not batch:
        return _number(entry, "concurrency")
    return batch * (_number(entry, "decode_workers") or 1.0) * (_number(entry, "decode_attn_dp") or 1.0)


def _refusal(entry: Mapping[str, str]) -> str:
    """Name of the rule that keeps a row out of fit and score; empty when none does."""
    if not _number(entry, "tpot_ms"):
        return "no time per output token"
    version, date = entry.get("engine_version", ""), entry.get("measured_on", "")
    is_speculative = entry["model"].startswith("deepseek") and any(
        entry["engine"] == engine
        and version == with_version
        and (not on or date == on)
        and (not precision or entry["weight_precision"] == precision)
        and entry["accelerator"] != excepted
        for engine, with_version, on, precision, excepted in UNLABELLED_SPECULATION
    )
    if entry["mode"] == "disagg":
        return ""
    if is_speculative:
        return "unlabelled speculative decoding"
    if entry["accelerator"].startswith("gb200") and entry.get("source") == "InferenceX":
        return "disaggregated run printed as aggregated"
    for source, engine, of_version, accelerator in IMPLAUSIBLE_SWEEPS:
        if (entry.get("source"), entry["engine"], entry["accelerator"]) == (source, engine, accelerator) and (
            not of_version or version == of_version
        ):
            return "implausible sweep"
    repaired = _layout(entry)[0]
    experts_on = int(_number(entry, "moe_tp") or 1) * int(_number(entry, "moe_ep") or 1)
    if not repaired and experts_on > _printed_chips(entry):
        return "experts on more chips than printed"
    return ""


def parse_row(entry: Mapping[str, str]) -> tuple[ServingRow, bool]:
    """One row with its layout repaired; and whether it was.

    Raises:
        SpecError: A number is missing.
    """
    is_disaggregated = entry["mode"] == "disagg"
    was_repaired, (tp, pp, attn_dp, ep) = _layout(entry, "decode_") if is_disaggregated else _layout(entry)
    prefill = None
    if is_disaggregated:
        workers = int(_number(entry, "prefill_workers") or 1)
        prefill = PrefillWorkers(workers, *_layout(entry, "prefill_")[1])
    share = LENGTH_SHARE.get(entry.get("source", ""), 1.0)
    isl, osl, concurrency = _number(entry, "isl"), _number(entry, "osl"), _concurrency(entry)
    if not isl or not osl or not concurrency:
        raise SpecError(f"row {entry['id']} lacks isl, osl or concurrency")
    tpot_ms, ttft_ms = _number(entry, "tpot_ms"), _number(entry, "ttft_ms")
    row = ServingRow(
        id=entry["id"], source=entry.get("source", ""), date=entry.get("measured_on", ""), model=entry["model"],
        accelerator=entry["accelerator"], engine=entry["engine"], version=entry.get("engine_version", ""),
        mode=entry["mode"] or "agg", weight_precision=entry.get("weight_precision") or "native", isl=isl * share,
        osl=osl * share, concurrency=concurrency, tp=tp, pp=pp, attn_dp=attn_dp, ep=ep,
        ttft_s=ttft_ms / 1e3 if ttft_ms else None, tpot_s=tpot_ms / 1e3 if tpot_ms else math.nan,
        is_queue_limited=False, workers=int(_number(entry, "decode_workers") or 1) if is_disaggregated else 1,
        prefill=prefill,
    )  # fmt: skip
    return replace(row, is_queue_limited=_is_queue_limited(row)), was_repaired


def _is_queue_limited(row: ServingRow) -> bool:
    if row.ttft_s is None or row.prefill is not None:
        return False
    return row.ttft_s > QUEUE_TTFT_S or (row.osl >= QUEUE_OSL * 0.9 and row.ttft_s > 0.5 * row.osl * row.tpot_s)


def _printed_chips(entry: Mapping[str, str]) -> int:
    return int((_number(entry, "tp") or 1) * (_number(entry, "pp") or 1) * (_number(entry, "attn_dp") or 1))


def _layout(entry: Mapping[str, str], pool: str = "") -> tuple[bool, tuple[int, int, int, int]]:
    """Layout as (tp, pp, attn_dp, ep), and whether products printed as chip counts were taken apart.

    A run on n chips with tp = ep = n is printed by one source as n x n chips: tp (or attention ranks) n^2 with experts
    on n x n, or both tp and attention ranks n with n^2 expert ranks.
    """
    tp, pp, dp = (int(_number(entry, pool + name) or 1) for name in ("tp", "pp", "attn_dp"))
    moe_tp, moe_ep = (int(_number(entry, pool + name) or 1) for name in ("moe_tp", "moe_ep"))
    if entry.get("source") == "InferenceX" and not pool:
        if moe_tp == moe_ep > 1 and moe_tp * moe_ep in (tp, dp):
            n = moe_ep
            return True, (n, pp, 1, n) if tp > 1 else (1, pp, n, n)
        if tp == dp > 1 and moe_ep == tp * tp:
            return True, (1, pp, tp, tp)
    ep = math.gcd(moe_ep, tp * dp)
    return False, (tp, pp, dp, ep)


def _number(entry: Mapping[str, str], name: str) -> float | None:
    text = entry.get(name) or ""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
