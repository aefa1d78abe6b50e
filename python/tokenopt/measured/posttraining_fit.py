"""Fits and scores what post-training software adds, on measured steps of reinforcement learning.

One global set of five physical parameters; each software deviates from it by three shrunken factors: on generation, on
training, and on everything that moves or waits. The core predicts, also during the fit.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.posttraining import PARAMETERS, PosttrainingCalibration
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import read_rows
from tokenopt.measured.posttraining_rows import RlRow, predict_rl_row, read_rl_rows, tokens_per_s_per_chip
from tokenopt.plugins import PluginRegistry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUNDLED = Path(__file__).parent / "data" / "rl_steps.csv"

PRIORS = {
    "generation_factor": (1.5, 0.5),
    "training_factor": (1.3, 0.5),
    "host_bytes_per_s": (12e9, 1.0),
    "phase_overhead_s": (1.5, 1.0),
    "refit_efficiency": (0.67, 0.7),
}
"""Centre and log standard deviation of each parameter before any fit. Engines under a trainer run without some of the
batching they are tuned for, ragged batches train slower than even ones, PCIe moves 12 to 25 GB/s, engines wake in
seconds, published refits reach 0.2 to 0.9 of a link."""
DEVIATION_SD = (0.4, 0.4, 1.0)
"""Log standard deviations of a software's deviation: generation, training, overheads."""
ROW_SD = 0.2
"""Log standard deviation of a measured step."""
LEAVE_OUT = ("model", "stack", "group", "row")


@dataclass(frozen=True, slots=True)
class CompiledRl:
    """Rows with a plan, their measured times and what their pools do.

    Attributes:
        rows: Rows that can be predicted.
        works: What the pools of each row do, in the core's shape.
        refused: Reason by id of the others.
    """

    rows: list[RlRow]
    works: list[dict[str, Any]]
    refused: dict[str, str]


def compile_rl(entries: Sequence[Mapping[str, str]], registry: PluginRegistry) -> CompiledRl:
    """Plans every step of reinforcement learning among published rows."""
    parsed, refused = read_rl_rows(entries)
    rows, works = [], []
    for row in parsed:
        plan = predict_rl_row(row, registry)
        if isinstance(plan, str):
            refused[row.id] = plan
        else:
            rows.append(row)
            works.append(plan["work"])
    return CompiledRl(rows, works, refused)


def read_entries(files: Sequence[Path]) -> list[dict[str, str]]:
    """Rows of files with the columns of published training tables.

    Raises:
        SpecError: A file cannot be read or lacks a column.
    """
    entries: list[dict[str, str]] = []
    for path in files or ([BUNDLED] if BUNDLED.exists() else []):
        entries += read_rows(path, ("id", "task", "model", "gpu", "n_gpus"), "training_published.csv")
    if not entries:
        raise SpecError("no rows to read", ["--data FILE names a file of measured training steps"])
    return entries


def require_measured(compiled: CompiledRl, at_least: int = 5) -> None:
    """Refuses data without enough measured steps.

    Raises:
        SpecError: Says how many there are.
    """
    count = sum(row.step_time_s is not None for row in compiled.rows)
    if count < at_least:
        raise SpecError(
            f"the data hold {count} steps of reinforcement learning with a time, expected at least {at_least}"
        )


class RlCalibrator:
    """Fits parameters to some of the rows."""

    def __init__(self, compiled: CompiledRl) -> None:
        self.compiled = compiled
        self.stacks = sorted({row.stack for row in compiled.rows if row.stack})

    def predict(self, chosen: Sequence[int], table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of the chosen rows under one row of parameters each."""
        from tokenopt import _core

        works = [self.compiled.works[index] for index in chosen]
        seconds: NDArray[np.float64] = _core.posttraining_steps(json.dumps(works), table)
        return seconds

    def _table(self, chosen: Sequence[int], point: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        count = len(PARAMETERS)
        base, deviations = point[:count], point[count:].reshape(len(self.stacks), len(DEVIATION_SD))
        # Overheads: longer waits, lower rates.
        spread = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, -1, 1, -1]], dtype=float)
        rows = []
        for index in chosen:
            stack = self.compiled.rows[index].stack
            shift = deviations[self.stacks.index(stack)] @ spread if stack in self.stacks else np.zeros(count)
            rows.append(base + shift)
        # A trial step of the optimizer must stay within what the core accepts.
        least, most = np.log([(0.02, 50.0), (0.02, 50.0), (1e6, 1e13), (1e-3, 1e3), (0.002, 50.0)]).T
        table: NDArray[np.float64] = np.exp(np.clip(np.array(rows), least, most))
        return table

    def fit(self, chosen: Sequence[int]) -> NDArray[np.float64]:
        """Logarithms of the global parameters and of every software's deviations, fitted to the chosen rows."""
        import numpy as np
        from scipy.optimize import least_squares

        rows = self.compiled.rows
        times = {index: rows[index].step_time_s for index in chosen}
        chosen = [index for index, time in times.items() if time is not None]
        measured = np.log(np.array([time for time in times.values() if time is not None]))
        groups = [(rows[index].model, rows[index].stack) for index in chosen]
        # Many rows of one group are not so many independent ones.
        weights = np.array([groups.count(group) ** -0.25 for group in groups]) / ROW_SD
        centre = np.log([PRIORS[name][0] for name in PARAMETERS])
        width = np.array([PRIORS[name][1] for name in PARAMETERS])
        deviation = np.tile(DEVIATION_SD, len(self.stacks))

        def residuals(point: NDArray[np.float64]) -> NDArray[np.float64]:
            predicted = np.log(self.predict(chosen, self._table(chosen, point)))
            count = len(PARAMETERS)
            return np.concatenate(
                [(predicted - measured) * weights, (point[:count] - centre) / width, point[count:] / deviation]
            )

        start = np.concatenate([centre, np.zeros(deviation.size)])
        point: NDArray[np.float64] = least_squares(residuals, start, loss="soft_l1").x
        return point

    def predictions(self, chosen: Sequence[int], point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of the chosen rows under a fit."""
        return self.predict(chosen, self._table(chosen, point))

    def calibration(self, point: NDArray[np.float64], spread: float, as_of: str) -> PosttrainingCalibration:
        """The fit as a calibration."""
        import numpy as np

        count = len(PARAMETERS)
        values = np.exp(point[:count])
        deviations = np.exp(point[count:]).reshape(len(self.stacks), len(DEVIATION_SD))
        return PosttrainingCalibration(
            name=f"posttraining {as_of}",
            basis="calibrated",
            base=dict(zip(PARAMETERS, map(float, values), strict=True)),
            stacks={
                stack: {
                    "generation_factor": float(row[0]), "training_factor": float(row[1]),
                    "host_bytes_per_s": float(1 / row[2]), "phase_overhead_s": float(row[2]),
                    "refit_efficiency": float(1 / row[2]),
                }
                for stack, row in zip(self.stacks, deviations, strict=True)
            },
            spread=spread,
            source="published reinforcement-learning steps",
        )  # fmt: skip


def left_out(calibrator: RlCalibrator, what: str) -> NDArray[np.float64]:
    """Predictions of every row by a fit without its `what`.

    Args:
        calibrator: The rows.
        what: `model`, `stack`, `group` (model on an accelerator), or `row` (eight folds).
    """
    import numpy as np

    if what not in LEAVE_OUT:
        raise SpecError(f"leave_out is {what!r}, expected {', '.join(LEAVE_OUT)}")
    rows = calibrator.compiled.rows
    keys = {
        "model": [row.model for row in rows],
        "stack": [row.stack for row in rows],
        "group": [f"{row.model} {row.accelerator}" for row in rows],
        "row": [str(index % 8) for index in range(len(rows))],
    }[what]
    predictions = np.full(len(rows), math.nan)
    for key in sorted(set(keys)):
        tested = [index for index, known in enumerate(keys) if known == key]
        point = calibrator.fit([index for index, known in enumerate(keys) if known != key])
        predictions[tested] = calibrator.predictions(tested, point)
    return predictions


def calibrated_predictions(compiled: CompiledRl, calibration: PosttrainingCalibration) -> NDArray[np.float64]:
    """Seconds of every row under a shipped calibration."""
    import numpy as np

    table = np.array([[calibration.software(row.stack)[name] for name in PARAMETERS] for row in compiled.rows])
    return RlCalibrator(compiled).predict(range(len(compiled.rows)), table)


def score(rows: Sequence[RlRow], seconds: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Median, mean and 90th percentile of |predicted / measured - 1| and the median signed error, by software, %."""
    import numpy as np

    errors: dict[str, list[float]] = {}
    for row, value in zip(rows, seconds, strict=True):
        if row.step_time_s is not None and math.isfinite(value):
            for name in ("all", row.stack or "other"):
                errors.setdefault(name, []).append(100.0 * (value / row.step_time_s - 1.0))
    return {
        name: {
            "rows": len(values),
            "median": float(np.median(np.abs(values))),
            "mape": float(np.mean(np.abs(values))),
            "p90": float(np.percentile(np.abs(values), 90)),
            "bias": float(np.median(values)),
        }
        for name, values in errors.items()
    }


_LEFT_OUT_AS = {"model": "model", "group": "group", "framework": "stack"}
"""What is left out of these steps when it is left out of training steps."""


def columns_of_steps(
    files: Sequence[Path], registry: PluginRegistry, leave_out: str | None = None
) -> dict[str, dict[str, str]]:
    """Columns of the step of each reinforcement-learning row, by id, for a table that also holds other rows.

    Args:
        files: Files of rows; the bundled steps without any.
        registry: Plugins that describe the accelerators.
        leave_out: What the other rows leave out; None = the shipped calibration predicts. What does not apply to these
            rows gives none.
    """
    from tokenopt.catalog.posttraining import default_posttraining_calibration

    compiled = compile_rl(read_entries(files), registry)
    columns = {row_id: {"reason": reason} for row_id, reason in compiled.refused.items()}
    if not compiled.rows or (leave_out and leave_out not in _LEFT_OUT_AS):
        return columns
    if leave_out:
        seconds = left_out(RlCalibrator(compiled), _LEFT_OUT_AS[leave_out])
    else:
        seconds = calibrated_predictions(compiled, default_posttraining_calibration())
    for row, value in zip(compiled.rows, seconds, strict=True):
        columns[row.id] = _columns(row, float(value))
    return columns


COLUMNS = (
    "id", "step_time_s", "tokens_per_s_per_chip", "pred_step_time_s", "pred_tokens_per_s_per_chip", "assumed", "reason",
)  # fmt: skip


def _columns(row: RlRow, seconds: float) -> dict[str, str]:
    measured = row.step_time_s
    return {
        "id": row.id,
        "step_time_s": f"{measured:.6g}" if measured else "",
        "tokens_per_s_per_chip": f"{tokens_per_s_per_chip(row, measured):.6g}" if measured else "",
        "pred_step_time_s": f"{seconds:.6g}",
        "pred_tokens_per_s_per_chip": f"{tokens_per_s_per_chip(row, seconds):.6g}",
        "assumed": ", ".join(row.assumed),
    }


def rows_csv(compiled: CompiledRl, seconds: NDArray[np.float64]) -> str:
    """Every row with its prediction, or the reason why there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row, value in zip(compiled.rows, seconds, strict=True):
        writer.writerow(_columns(row, float(value)))
    for row_id, reason in compiled.refused.items():
        writer.writerow({"id": row_id, "reason": reason})
    return text.getvalue()


def to_toml(calibration: PosttrainingCalibration) -> str:
    """A calibration file."""
    lines = [
        "# What post-training software adds, fitted by `tokenopt calibrate posttraining`. Do not edit by hand.",
        "[calibration]",
        f'name = "{calibration.name}"',
        f'basis = "{calibration.basis}"',
        f'source = "{calibration.source}"',
        f"spread = {calibration.spread:.4g}",
        "",
        "[global]",
        *(f"{name} = {value:.5g}" for name, value in calibration.base.items()),
    ]
    for stack, factors in calibration.stacks.items():
        lines += ["", f"[stack.{stack}]", *(f"{name} = {value:.5g}" for name, value in factors.items())]
    return "\n".join(lines) + "\n"


def calibrate(compiled: CompiledRl, as_of: str) -> PosttrainingCalibration:
    """Fits all rows; the spread is that of rows whose model was left out."""
    import numpy as np

    calibrator = RlCalibrator(compiled)
    point = calibrator.fit(range(len(compiled.rows)))
    predictions = left_out(calibrator, "model")
    logs = [
        math.log(value / row.step_time_s)
        for row, value in zip(compiled.rows, predictions, strict=True)
        if row.step_time_s is not None
    ]
    # Half the distance between the 16th and 84th percentile: outliers do not set the width of every interval.
    low, high = np.percentile(logs, [16, 84])
    return calibrator.calibration(point, float(high - low) / 2.0, as_of)
