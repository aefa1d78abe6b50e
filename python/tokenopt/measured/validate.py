"""Scoring predictions against measured serving points, in-sample and on what a refit never saw."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.engines import (
    Calibration,
    default_calibration,
    layout_kind,
    resolve_parameters,
    seen_layout,
)
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import nothing_predicted
from tokenopt.measured.fit import Calibrator, Fit, Structure
from tokenopt.measured.rows import CompiledRows, compile_rows
from tokenopt.measured.serving_data import CleanRows, ServingRow, clean, read_serving_curves
from tokenopt.plugins import PluginRegistry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAVE_OUT: Mapping[str, Callable[[ServingRow], object]] = {
    "shape": lambda row: (row.model, row.accelerator, row.weight_precision, row.isl, row.osl, row.mode),
    "layout": lambda row: (row.model, row.accelerator, _layout_kind(row)),
    "group": lambda row: (row.model, row.accelerator),
    "model": lambda row: row.model,
    "accelerator": lambda row: row.accelerator,
}
"""What is left out at a time: a shape of a stack, a kind of layout of a model on an accelerator, a model on an accelerator,
every row of a model, of an accelerator."""

NOVELTY = {"layout": "new_layout", "group": "new_pair", "model": "new_model", "accelerator": "new_accelerator"}
"""Class of novelty that a leave-out stands for."""

SHAPE_FOLDS = 10
"""Shapes are many: they are left out in ten folds."""

SLICES: Mapping[str, Callable[[ServingRow], str]] = {
    "model": lambda row: row.model,
    "accelerator": lambda row: row.accelerator,
    "engine": lambda row: row.engine,
    "format": lambda row: row.weight_precision,
    "mode": lambda row: row.mode,
}

BUNDLED_ROWS = Path(__file__).parent / "data" / "serving_sweeps.csv"
"""InferenceX points of April 2026 and companion engine sweeps; each row carries its source and date."""


NO_FIT = "does not fit in memory"
QUEUED = "queue in front of the server"


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of one quantity on a set of rows, in percent.

    Attributes:
        n: Rows.
        median: Median of |predicted / measured - 1|.
        mape: Mean of it.
        p90: Its 90th percentile.
        bias: Median of predicted / measured - 1.
    """

    n: int
    median: float
    mape: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Scores of a set of predictions.

    Attributes:
        label: How the predictions came about.
        overall: Errors by quantity.
        by: Errors by slice, name and quantity.
        dropped: Rows that cleaning rules dropped, by rule.
        refused: Rows that cannot be predicted, by reason.
        queued: Rows with a queue in front of the server: predicted, not scored.
    """

    label: str
    overall: dict[str, Errors]
    by: dict[str, dict[str, dict[str, Errors]]]
    dropped: dict[str, int]
    refused: dict[str, int]
    queued: int


def load(
    files: Sequence[Path], registry: PluginRegistry, *, may_be_empty: bool = False
) -> tuple[CleanRows, CompiledRows]:
    """Reads, cleans and compiles measured rows; the bundled ones when no file is named.

    Args:
        files: Files with the columns of concurrency sweeps.
        registry: Plugins that describe the accelerators.
        may_be_empty: Whether files without a row that can be predicted are accepted, for their reasons.

    Raises:
        SpecError: A file cannot be read, or nothing usable is in it.
    """
    cleaned = clean(row for file in files or (BUNDLED_ROWS,) for row in read_serving_curves(file))
    compiled = compile_rows(cleaned.rows, registry)
    if not compiled.rows and not may_be_empty:
        raise nothing_predicted(files, (*cleaned.unusable.values(), *compiled.refused.values()))
    return cleaned, compiled


def calibrated_sets(compiled: CompiledRows, calibration: Calibration | None = None) -> NDArray[np.float64]:
    """Parameter set of each row by a calibration as it ships."""
    import numpy as np

    calibration = calibration or default_calibration()
    sets = [
        list(resolve_parameters(calibration, engine, family, precision, as_of=release).values())
        for engine, family, precision, release in compiled.levels
    ]
    return np.array(sets)[compiled.sets]


def leave_out_sets(compiled: CompiledRows, what: str, structure: Structure | None = None) -> NDArray[np.float64]:
    """Parameter set of each row by a refit without the rows that share its key.

    Args:
        compiled: Rows.
        what: A name of :data:`LEAVE_OUT`.
        structure: Deviations of the fit.

    Raises:
        SpecError: Unknown name.
    """
    keys = leave_out_keys(compiled, what)
    calibrator = Calibrator(compiled, structure)
    return calibrator.leave_out(keys, calibrator.fit())


def leave_out_keys(compiled: CompiledRows, what: str) -> list[object]:
    """What is left out together with each row.

    Raises:
        SpecError: Unknown name.
    """
    if what not in LEAVE_OUT:
        raise SpecError(f"leave-out is {what!r}, expected {', '.join(LEAVE_OUT)}")
    keys: list[object] = [LEAVE_OUT[what](row) for row in compiled.rows]
    if what == "shape":
        order = {key: index % SHAPE_FOLDS for index, key in enumerate(dict.fromkeys(keys))}
        keys = [order[key] for key in keys]
    return keys


def row_predictions(
    compiled: CompiledRows, leave_out: str | None = None, anchors: int = 0
) -> tuple[str, NDArray[np.float64], frozenset[int]]:
    """Predictions of every row, and how they came about.

    Args:
        compiled: Rows.
        leave_out: Refit without what is named; the shipped calibration where None.
        anchors: Random measured points of each stack that shift its prediction.

    Returns:
        Label, predictions, and the rows that served as anchors: they are not scored.
    """
    import numpy as np

    if not compiled.rows:
        return "shipped calibration", np.empty((0, 4)), frozenset()
    sets = leave_out_sets(compiled, leave_out) if leave_out else calibrated_sets(compiled)
    label = f"refitted without the {leave_out}" if leave_out else "shipped calibration"
    picked: list[int] = []
    if anchors:
        from tokenopt.measured.anchors import fit_anchors, random_picks

        predicted = compiled.predict_each(sets)[:, 0]
        stacks = [(row.mode, *row.stack) for row in compiled.rows]
        is_usable = [
            row.is_scored and bool(value == value) for row, value in zip(compiled.rows, predicted, strict=True)
        ]
        picked = random_picks(stacks, is_usable, anchors)
        pairs = () if leave_out else default_calibration().seen.get("pair", ())
        is_seen = [f"{row.model} {row.accelerator}" in pairs for row in compiled.rows]
        sets = fit_anchors(compiled, sets, stacks, picked, is_seen)
        label += f", {anchors} measured points a stack"
    return label, compiled.predict_each(sets), frozenset(picked)


def score(
    label: str,
    cleaned: CleanRows,
    compiled: CompiledRows,
    predictions: NDArray[np.float64],
    skipped: frozenset[int] = frozenset(),
) -> Validation:
    """Errors of predictions, overall and by slice; rows behind a queue are counted apart, rows `skipped` not at all."""
    import numpy as np

    scored = [index for index, row in enumerate(compiled.rows) if row.is_scored and index not in skipped]
    rows = [compiled.rows[index] for index in scored]
    ratios = {
        "tpot_ms": predictions[scored, 0] / np.array([row.tpot_s for row in rows]),
        "output_tps_per_chip": predictions[scored, 2] / np.array([row.output_tps_per_chip for row in rows]),
        "ttft_ms": predictions[scored, 1] / np.array([row.ttft_s or np.nan for row in rows]),
    }
    by: dict[str, dict[str, dict[str, Errors]]] = {}
    for slice_name, key in SLICES.items():
        names = [key(row) for row in rows]
        by[slice_name] = {
            name: {
                quantity: _errors(ratio[np.array([entry == name for entry in names])])
                for quantity, ratio in ratios.items()
            }
            for name in sorted(set(names))
        }
    refused: dict[str, int] = {}
    for reason in (*cleaned.unusable.values(), *compiled.refused.values()):
        refused[reason] = refused.get(reason, 0) + 1
    no_fit = int(np.isnan(predictions[:, 0]).sum())
    if no_fit:
        refused[NO_FIT] = no_fit
    return Validation(
        label=label,
        overall={quantity: _errors(ratio) for quantity, ratio in ratios.items()},
        by=by,
        dropped={rule: len(ids) for rule, ids in sorted(cleaned.dropped.items())},
        refused=refused,
        queued=sum(row.is_queue_limited and not row.unscored for row in compiled.rows),
    )


def _errors(ratio: NDArray[np.float64]) -> Errors:
    import numpy as np

    ratio = ratio[np.isfinite(ratio)]
    if not len(ratio):
        return Errors(0, float("nan"), float("nan"), float("nan"), float("nan"))
    absolute = 100.0 * np.abs(ratio - 1.0)
    return Errors(
        n=len(ratio),
        median=float(np.median(absolute)),
        mape=float(absolute.mean()),
        p90=float(np.percentile(absolute, 90)),
        bias=float(100.0 * np.median(ratio - 1.0)),
    )


def rows_csv(cleaned: CleanRows, compiled: CompiledRows, predictions: NDArray[np.float64]) -> str:
    """Every row of the input, in its order: what was measured, what is predicted, and why it is not scored."""
    text = io.StringIO()
    names = ["id", "ttft_ms", "tpot_ms", "output_tps_per_chip", "pred_ttft_ms", "pred_tpot_ms", "pred_output_tps_per_chip",
             "reason"]  # fmt: skip
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()

    def number(value: float) -> str:
        return f"{value:.6g}" if value == value else ""

    lines: dict[str, list[dict[str, str]]] = {}
    for row, (tpot_s, ttft_s, tps, _) in zip(compiled.rows, predictions, strict=True):
        reason = row.unscored or (QUEUED if row.is_queue_limited else "")
        line = {
            "id": row.id,
            "ttft_ms": number(row.ttft_s * 1e3) if row.ttft_s else "",
            "tpot_ms": number(row.tpot_s * 1e3),
            "output_tps_per_chip": number(row.output_tps_per_chip),
            "pred_ttft_ms": number(ttft_s * 1e3),
            "pred_tpot_ms": number(tpot_s * 1e3),
            "pred_output_tps_per_chip": number(tps),
            "reason": reason if tpot_s == tpot_s else NO_FIT,
        }
        lines.setdefault(row.id, []).append(line)
    for row_id, reason in {**cleaned.unusable, **compiled.refused}.items():
        lines.setdefault(row_id, []).append({"id": row_id, "reason": reason})
    for row_id in cleaned.order:
        writer.writerow(lines[row_id].pop(0))
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration with what is known of its error.

    Attributes:
        fit: The fitted set.
        spread: Log standard deviation of measured over predicted throughput by novelty class.
        accuracy: Median and P90 of the error in percent, by what was left out and quantity, aggregated rows; in-sample, and
            of decode pools, under their own names.
    """

    fit: Fit
    spread: dict[str, float]
    accuracy: dict[str, dict[str, tuple[float, float]]]


def calibrate(compiled: CompiledRows, structure: Structure | None = None) -> Calibrated:
    """Fits all rows, and measures the error by how new a case is.

    Args:
        compiled: Rows.
        structure: Deviations of the fit.

    Returns:
        The fit with its errors.
    """
    import numpy as np

    calibrator = Calibrator(compiled, structure)
    exponents = calibrator.fit()
    fit = calibrator.result(exponents)
    scored = np.array([row.is_scored for row in compiled.rows])
    is_pool = np.array([row.prefill is not None for row in compiled.rows])
    measured = {
        "tpot": np.array([row.tpot_s for row in compiled.rows]),
        "ttft": np.array([row.ttft_s or np.nan for row in compiled.rows]),
        "output_tps_per_chip": np.array([row.output_tps_per_chip for row in compiled.rows]),
    }

    def spread(predictions: NDArray[np.float64]) -> float:
        logs = np.abs(np.log(predictions[:, 2] / measured["output_tps_per_chip"]))[scored]
        # The 80% quantile of a centred normal is 1.2816 standard deviations: the interval is judged at P10 and P90.
        return float(np.nanpercentile(logs, 80) / 1.2816)

    def errors(predictions: NDArray[np.float64], is_counted: NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
        found = {}
        for column, quantity in enumerate(measured):
            error = _errors((predictions[:, column] / measured[quantity])[is_counted & scored])
            found[quantity] = (error.median, error.p90)
        return found

    in_sample = calibrator.predict(exponents)
    spreads = {"seen": spread(in_sample)}
    accuracy = {"in-sample": errors(in_sample, ~is_pool), "in-sample pools": errors(in_sample, is_pool)}
    for what in LEAVE_OUT:
        predictions = compiled.predict_each(calibrator.leave_out(leave_out_keys(compiled, what), exponents))
        accuracy[what] = errors(predictions, ~is_pool)
        if what == "group":
            accuracy["group pools"] = errors(predictions, is_pool)
        if what in NOVELTY:
            spreads[NOVELTY[what]] = max(spread(predictions), *spreads.values())
    # Nothing of the kind is among the rows, so nothing can be left out: twice the spread of a new chip of a known family.
    spreads["new_family"] = 2.0 * spreads["new_accelerator"]
    return Calibrated(fit, spreads, accuracy)


def seen_names(compiled: CompiledRows) -> dict[str, list[str]]:
    """What the rows cover, by level."""
    rows = compiled.rows
    return {
        "accelerator": sorted({row.accelerator for row in rows}),
        "family": sorted({level[1] for level in compiled.levels}),
        "model": sorted({row.model for row in rows}),
        "pair": sorted({f"{row.model} {row.accelerator}" for row in rows}),
        "layout": sorted(seen_layout(*key, largest) for key, largest in _largest_batches(rows).items()),
    }


def _layout_kind(row: ServingRow) -> str:
    return layout_kind(row.prefill is not None, row.attn_dp)


def _largest_batches(rows: Sequence[ServingRow]) -> dict[tuple[str, str, str], float]:
    """Most requests on an attention rank by model, accelerator and kind of layout, of rows without a queue."""
    largest: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if row.is_scored:
            key = row.model, row.accelerator, _layout_kind(row)
            largest[key] = max(largest.get(key, 0.0), row.concurrency / (row.workers * row.attn_dp))
    return largest


def to_dict(validation: Validation) -> dict[str, Any]:
    """Plain dicts, for JSON; a slice without rows has no errors."""
    from dataclasses import asdict

    plain: dict[str, Any] = without_nan({"schema": 1, **asdict(validation)})
    return plain


def without_nan(value: Any) -> Any:
    """A value for JSON: null in place of what is not a number."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and value != value else value
