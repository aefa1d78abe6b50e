"""Scoring the training model against measured steps, in-sample and on what a refit never saw."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.training_calibration import (
    TrainingCalibration,
    default_training_calibration,
    resolve_training_parameters,
)
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import nothing_predicted
from tokenopt.measured.training_data import BUNDLED_ROWS, TrainingRow, clean, read_training_rows
from tokenopt.measured.training_fit import TrainingCalibrator, TrainingFit, TrainingStructure
from tokenopt.measured.training_rows import CompiledTraining, compile_training
from tokenopt.measured.validate import Errors, without_nan
from tokenopt.plugins import PluginRegistry
from tokenopt.units import SECONDS_PER_HOUR, TERA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAVE_OUT: Mapping[str, Callable[[TrainingRow], object]] = {
    "group": lambda row: row.group,
    "model": lambda row: row.model,
    "accelerator": lambda row: row.accelerator,
    "framework": lambda row: row.stack,
    "source": lambda row: row.source,
}
"""What is left out at a time: a model on an accelerator in a format, every row of a model, of an accelerator, of a
software family, of a publisher."""

GROUP_FOLDS = 10
"""Groups are many: they are left out in ten folds."""

LONG_SEQUENCE = 32_768

SLICES: Mapping[str, Callable[[TrainingRow], str]] = {
    "task": lambda row: row.task,
    "format": lambda row: row.format,
    "framework": lambda row: row.stack or "unknown",
    "accelerator": lambda row: row.accelerator,
    "source": lambda row: row.source,
    "length": lambda row: "32k tokens and more" if row.seq_len >= LONG_SEQUENCE else "below 32k tokens",
    "model": lambda row: row.model,
}

RUN_EVALUATION_SHARE = 0.10
"""Evaluation pauses of a timed benchmark run over its steps: 3% to 19% where both are logged."""
RUN_START_MIN = 0.6
"""Start and last evaluation of a timed benchmark run that do not shrink with its size, minutes: 0.3 to 0.9."""


@dataclass(frozen=True, slots=True)
class TrainingValidation:
    """Scores of a set of predictions of tokens/s per chip.

    Attributes:
        label: How the predictions came about.
        overall: Errors of all scored rows.
        by: Errors by slice and name; `searched` holds rows without a printed layout, `whole run` those that only print
            the time or chip-hours of a run.
        unscored: Rows predicted and not scored, by reason.
        refused: Rows that cannot be predicted, by reason.
    """

    label: str
    overall: Errors
    by: dict[str, dict[str, Errors]]
    unscored: dict[str, int]
    refused: dict[str, int]


def load(files: Sequence[Path], registry: PluginRegistry, *, may_be_empty: bool = False) -> CompiledTraining:
    """Reads, cleans and compiles measured steps; the bundled ones without a file.

    Args:
        files: Files with the columns of published training tables.
        registry: Plugins that describe the accelerators.
        may_be_empty: Whether files without a row that can be predicted are accepted, for their reasons.

    Raises:
        SpecError: A file cannot be read, or nothing usable is in it.
    """
    files = list(files) or [BUNDLED_ROWS]
    cleaned = clean(read_training_rows(files))
    compiled = compile_training(cleaned.rows, registry, cleaned.refused)
    if not compiled.rows and not may_be_empty:
        raise nothing_predicted(files, compiled.refused.values())
    return compiled


def without_layouts(compiled: CompiledTraining, registry: PluginRegistry) -> CompiledTraining:
    """The scored rows, one a group, as if no layout were printed."""
    kept: dict[object, TrainingRow] = {}
    for row in compiled.rows:
        if not row.unscored:
            kept.setdefault((*row.group, row.task), replace(row, layout=None))
    return compile_training(list(kept.values()), registry)


def parameter_sets(compiled: CompiledTraining, calibration: TrainingCalibration) -> NDArray[np.float64]:
    """One parameter set a level of the rows."""
    import numpy as np

    return np.array(
        [
            list(
                resolve_training_parameters(
                    calibration,
                    accelerator=level.accelerator,
                    family=level.family,
                    format=level.format,
                    stack=level.stack,
                    release=level.release if level.is_moe else "",
                ).values()
            )
            for level in compiled.levels
        ]
    )


def calibrated_predictions(
    compiled: CompiledTraining, calibration: TrainingCalibration | None = None
) -> tuple[CompiledTraining, NDArray[np.float64]]:
    """Rows with their layouts filled in, and predictions with a calibration as it ships."""
    if not compiled.rows:
        import numpy as np

        return compiled, np.empty((0, 6))
    sets = parameter_sets(compiled, calibration or default_training_calibration())
    resolved = compiled.resolved(sets)
    return resolved, resolved.predict(sets)


def leave_out_keys(rows: Sequence[TrainingRow], what: str) -> list[object]:
    """Key of each row; rows of a key are left out together.

    Raises:
        SpecError: Unknown name.
    """
    if what not in LEAVE_OUT:
        raise SpecError(f"leave-out is {what!r}, expected {', '.join(LEAVE_OUT)}")
    keys = [LEAVE_OUT[what](row) for row in rows]
    if what == "group":
        order = {key: index % GROUP_FOLDS for index, key in enumerate(sorted(set(keys), key=str))}
        return [order[key] for key in keys]
    return keys


def leave_out_predictions(
    compiled: CompiledTraining, what: str, structure: TrainingStructure | None = None
) -> tuple[CompiledTraining, NDArray[np.float64]]:
    """Predictions of each row by a refit without the rows that share its key.

    Args:
        compiled: Rows.
        what: A name of :data:`LEAVE_OUT`.
        structure: Deviations of the fit.
    """
    keys = leave_out_keys(compiled.rows, what)
    calibrator = TrainingCalibrator(compiled, structure)
    return calibrator.rows, calibrator.leave_out(keys, calibrator.fit())


def anchored(compiled: CompiledTraining, predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predictions corrected by one other measured step of the same model, accelerator, format, task and source.

    The one nearest in chips is taken; rows without one become NaN.
    """
    import numpy as np

    measured = predictions[:, 2]
    corrected = predictions.copy()
    corrected[:, :2] = np.nan
    usable = [index for index, row in enumerate(compiled.rows) if not row.unscored and math.isfinite(measured[index])]
    for index in usable:
        row = compiled.rows[index]
        others = [
            other
            for other in usable
            if other != index
            and compiled.rows[other].group == row.group
            and (compiled.rows[other].source, compiled.rows[other].task) == (row.source, row.task)
        ]
        if others:
            anchor = min(others, key=lambda other: (abs(math.log(compiled.rows[other].chips / row.chips)), other))
            factor = measured[anchor] / predictions[anchor, 1]
            corrected[index, 0] = predictions[index, 0] / factor
            corrected[index, 1] = predictions[index, 1] * factor
    return corrected


def run_rates(compiled: CompiledTraining) -> NDArray[np.float64]:
    """Tokens/s per chip over a whole run, pauses and restarts included; NaN where no run is printed."""
    import numpy as np

    rates = np.full(len(compiled.rows), np.nan)
    for index, row in enumerate(compiled.rows):
        seconds = _run_chip_seconds(row)
        if row.total_tokens and seconds:
            rates[index] = row.total_tokens / seconds
    return rates


def _run_chip_seconds(row: TrainingRow) -> float | None:
    if row.time_to_train_min:
        return row.time_to_train_min * 60.0 * row.chips
    return row.gpu_hours * SECONDS_PER_HOUR if row.gpu_hours else None


def score(label: str, compiled: CompiledTraining, predictions: NDArray[np.float64]) -> TrainingValidation:
    """Errors of predictions, overall and by slice; rows that rules keep out are counted apart."""
    import numpy as np

    measured = predictions[:, 2]
    ratio = predictions[:, 1] / measured
    is_scored = np.array([not row.unscored for row in compiled.rows])
    kinds = ["moe" if routes else "dense" for routes in compiled.is_moe]
    slices = {"class": kinds, **{name: [key(row) for row in compiled.rows] for name, key in SLICES.items()}}
    by: dict[str, dict[str, Errors]] = {}
    for slice_name, of_rows in slices.items():
        names = np.array(of_rows)
        by[slice_name] = {
            name: errors_of(ratio[is_scored & (names == name)]) for name in sorted(set(names[is_scored].tolist()))
        }
    is_searched = np.array([row.layout is None and not _is_excluded(row) for row in compiled.rows])
    by["searched"] = {"no layout printed": errors_of(ratio[is_searched])}
    is_run = ~np.isfinite(measured)
    by["whole run"] = {"time or chip-hours of a run": errors_of((predictions[:, 1] / run_rates(compiled))[is_run])}
    unscored: dict[str, int] = {}
    for row in compiled.rows:
        if row.unscored:
            unscored[row.unscored] = unscored.get(row.unscored, 0) + 1
    no_rate = int((is_scored & ~np.isfinite(measured)).sum())
    if no_rate:
        unscored["no rate printed"] = no_rate
    refused: dict[str, int] = {}
    for reason in compiled.refused.values():
        refused[reason] = refused.get(reason, 0) + 1
    no_layout = int((~np.isfinite(predictions[:, 1])).sum())
    if no_layout:
        refused["no layout fits the memory, or no anchor"] = no_layout
    return TrainingValidation(label, errors_of(ratio[is_scored]), by, unscored, refused)


def _is_excluded(row: TrainingRow) -> bool:
    return row.unscored not in ("", "no layout printed")


def errors_of(ratio: NDArray[np.float64]) -> Errors:
    """Errors of predicted over measured values, percent."""
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


COLUMNS = (
    "id", "tokens_per_s_per_chip", "step_time_s", "mfu", "tflops_per_chip", "time_to_train_min", "gpu_hours",
    "pred_tokens_per_s_per_chip", "pred_step_time_s", "pred_mfu", "pred_tflops_per_chip", "pred_time_to_train_min",
    "pred_gpu_hours", "layout", "unscored", "assumed", "reason",
)  # fmt: skip


def rows_csv(
    compiled: CompiledTraining,
    predictions: NDArray[np.float64],
    steps_of_stages: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Every row of the input with its prediction or the reason why there is none.

    Utilisation and FLOP/s are predicted in the convention of the row's source, so that they compare with what it prints.

    Args:
        compiled: The rows.
        predictions: What the core predicts for each.
        steps_of_stages: Columns by id of rows that time a reinforcement-learning step, predicted elsewhere.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    measured = predictions[:, 2]
    layouts = compiled.layouts()
    for index, row in enumerate(compiled.rows):
        step_s, rate, _, flops_per_s, utilisation, _ = predictions[index]
        printed = {
            "id": row.id,
            "tokens_per_s_per_chip": _text(measured[index]),
            "step_time_s": _text(row.step_time_s),
            "mfu": _text(row.mfu),
            "tflops_per_chip": _text(row.tflops),
            "time_to_train_min": _text(row.time_to_train_min),
            "gpu_hours": _text(row.gpu_hours),
            "unscored": row.unscored,
            "assumed": ", ".join(row.assumed),
        }
        if not math.isfinite(rate):
            writer.writerow({**printed, "reason": "no layout fits the memory"})
            continue
        run_s = row.total_tokens / rate if row.total_tokens else None
        writer.writerow(
            {
                **printed,
                "pred_tokens_per_s_per_chip": _text(rate),
                "pred_step_time_s": _text(step_s),
                "pred_mfu": _text(utilisation),
                "pred_tflops_per_chip": _text(flops_per_s / TERA),
                "pred_time_to_train_min": _text(
                    run_s / row.chips / 60.0 * (1.0 + RUN_EVALUATION_SHARE) + RUN_START_MIN if run_s else None
                ),
                "pred_gpu_hours": _text(run_s / SECONDS_PER_HOUR if run_s else None),
                "layout": json.dumps(layouts[index]),
            }
        )
    others = steps_of_stages or {}
    for row_id, reason in compiled.refused.items():
        writer.writerow({"id": row_id, **others.get(row_id, {"reason": reason})})
    return text.getvalue()


def _text(value: float | None) -> str:
    return f"{value:.6g}" if value is not None and math.isfinite(value) else ""


NOVELTIES = (("new_group", "group"), ("new_model", "model"), ("new_accelerator", "accelerator"))
"""Novelty class and what is left out to measure it, from the least new."""


def calibrate(
    compiled: CompiledTraining, structure: TrainingStructure | None = None
) -> tuple[TrainingFit, dict[str, float]]:
    """Fits all scored rows, and measures the spread of residuals by how new a case is and by dense or mixture of experts.

    Returns:
        The fit, and the log standard deviation of measured over predicted rate by class.
    """
    calibrator = TrainingCalibrator(compiled, structure)
    exponents = calibrator.fit()
    fit = calibrator.result(exponents)
    spread: dict[str, float] = {}
    left_out = {"seen": calibrator.predict(exponents)}
    for novelty, what in NOVELTIES:
        left_out[novelty] = calibrator.leave_out(leave_out_keys(compiled.rows, what), exponents)
    by_stack = calibrator.leave_out(leave_out_keys(compiled.rows, "framework"), exponents)
    for is_moe, kind in ((False, "dense"), (True, "moe")):
        widest = 0.0
        for novelty, predictions in left_out.items():
            widest = max(widest, spread_of(calibrator, predictions, is_moe))
            spread[f"{kind}_{novelty}"] = widest
        spread[f"{kind}_new_stack"] = max(widest, spread_of(calibrator, by_stack, is_moe))
        # Nothing of the kind was measured: as far again from a new accelerator as that is from a seen case.
        spread[f"{kind}_new_family"] = 2.0 * spread[f"{kind}_new_accelerator"] - spread[f"{kind}_seen"]
    return fit, spread


def spread_of(calibrator: TrainingCalibrator, predictions: NDArray[np.float64], is_moe: bool) -> float:
    """Log standard deviation whose P10 to P90 holds 80% of the scored rows of a kind; 0 without any."""
    import numpy as np

    of_kind = calibrator.is_scored & (np.array(calibrator.rows.is_moe) == is_moe)
    logs = np.abs(np.log(predictions[of_kind, 1] / calibrator.measured[of_kind]))
    return float(np.nanpercentile(logs, 80) / 1.2816) if len(logs) else 0.0


def seen_names(compiled: CompiledTraining) -> dict[str, list[str]]:
    """What the scored rows cover, by level."""
    rows = [
        (row, compiled.levels[level])
        for row, level in zip(compiled.rows, compiled.level_of, strict=True)
        if not row.unscored
    ]
    return {
        "accelerator": sorted({row.accelerator for row, _ in rows}),
        "family": sorted({level.family for _, level in rows}),
        "group": sorted({" ".join(row.group) for row, _ in rows}),
        "model": sorted({row.model for row, _ in rows}),
        "stack": sorted({row.stack for row, _ in rows if row.stack}),
    }


def to_dict(validation: TrainingValidation) -> dict[str, Any]:
    """Plain dicts, for JSON."""
    plain: dict[str, Any] = without_nan({"schema": 1, **asdict(validation)})
    return plain
