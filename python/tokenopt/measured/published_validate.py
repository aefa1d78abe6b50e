"""Scoring predictions of published measurements by class: other vendors, older chips, other scenarios."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.engines import Calibration, base_calibration, default_calibration
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import columns_of, nothing_predicted
from tokenopt.measured.published import PublishedRow, is_published, read_csv, read_published
from tokenopt.measured.published_fit import LEAVE_OUT, FamilyCalibrator, FamilyFit, stack_parameters
from tokenopt.measured.published_rows import NO_FIT, CompiledPublished, compile_published
from tokenopt.measured.validate import without_nan
from tokenopt.plugins import PluginRegistry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTITIES = ("primary", "tpot_ms", "output_tps_per_chip", "ttft_ms")
"""The primary quantity of a row is its time per output token where printed, else chip time per token."""

SUPERSEDED = "superseded: the same stack and lengths were measured at least two weeks later"
SUPERSEDED_DAYS = 14
SLOWER_THAN_16_BIT = "quantised weights slower than 16-bit ones on the same chip and load: a fallback kernel"


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


def errors_of(ratio: NDArray[np.float64]) -> Errors:
    """Errors of predicted over measured; what is not finite is left out."""
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


def split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files with the columns of concurrency sweeps, and files of published measurements."""
    curves: list[Path] = []
    published: list[Path] = []
    for file in files:
        (published if is_published(columns_of(file)) else curves).append(file)
    return curves, published


def load_published(files: Sequence[Path], registry: PluginRegistry, *, may_be_empty: bool = False) -> CompiledPublished:
    """Reads and compiles files of published measurements.

    Args:
        files: Files with the columns of published measurements.
        registry: Plugins that describe the accelerators.
        may_be_empty: Whether files without a row that can be predicted are accepted, for their reasons.

    Raises:
        SpecError: A file cannot be read, or no row can be predicted.
    """
    raw = [entry for file in files for entry in read_csv(file)]
    compiled = compile_published(read_published(raw, registry.accelerators), registry)
    if not compiled.rows and not may_be_empty:
        raise nothing_predicted(files, compiled.refused.values())
    return compiled


def parameter_sets(compiled: CompiledPublished, calibration: Calibration | None = None) -> NDArray[np.float64]:
    """One parameter set a level, as a calibration resolves it."""
    import numpy as np

    calibration = calibration or default_calibration()
    return np.array([stack_parameters(calibration, level) for level in compiled.levels])


BUNDLED_PUBLISHED = Path(__file__).parent / "data" / "published.csv"
"""Published measurements of other vendors, older chips and other scenarios; each row carries its source and date."""

UNFITTED_CLASSES = (
    "disaggregated",
    "speculative",
    "MLPerf server",
    "MLPerf interactive",
    "open loop, saturated or short",
)
"""Classes that hold further unknowns (pools, acceptance, limits, queues) and are scored, not fitted."""


def family_calibrator(
    compiled: CompiledPublished, registry: PluginRegistry, base: Calibration | None = None
) -> FamilyCalibrator:
    """A calibrator of families and generations on the rows that may be fitted.

    Args:
        compiled: Rows.
        registry: Plugins that describe the accelerators.
        base: What the deviations stand on; the shipped calibration on concurrency sweeps by default.
    """
    import numpy as np

    base = base or base_calibration()
    before = compiled.predict(parameter_sets(compiled, base))
    reasons = unscored(compiled, before)
    classes = classes_of(compiled, registry)
    is_usable = np.isfinite(ratios(compiled, before)["primary"]) & np.array(
        [
            not reason and not name.startswith(UNFITTED_CLASSES) and "speculative" not in name
            for reason, name in zip(reasons, classes, strict=True)
        ]
    )
    return FamilyCalibrator(compiled, base, is_usable)


def predictions(
    compiled: CompiledPublished, registry: PluginRegistry, leave_out: str | None = None
) -> tuple[str, NDArray[np.float64]]:
    """How predictions came about, and the predictions.

    Args:
        compiled: Rows.
        registry: Plugins that describe the accelerators.
        leave_out: A name of `LEAVE_OUT`: each row is predicted by a refit without the rows that share its key.

    Raises:
        SpecError: Unknown name.
    """
    if not compiled.rows:
        import numpy as np

        return "shipped calibration", np.empty((0, 4))
    if not leave_out:
        return "shipped calibration", compiled.predict(parameter_sets(compiled))
    if leave_out not in LEAVE_OUT:
        raise SpecError(f"leave-out is {leave_out!r}, expected {', '.join(LEAVE_OUT)}")
    calibrator = family_calibrator(compiled, registry)
    calibrator.fit()
    keys = [
        LEAVE_OUT[leave_out](row, compiled.levels[level], vendor)
        for row, level, vendor in zip(compiled.rows, compiled.level_of, compiled.vendors, strict=True)
    ]
    return f"refitted without the {leave_out}", calibrator.leave_out(keys)


def calibration_text(compiled: CompiledPublished, registry: PluginRegistry, base: Calibration | None = None) -> str:
    """The file of further families and generations that fits published rows best, with the spread of a left-out model.

    Args:
        compiled: Rows.
        registry: Plugins that describe the accelerators.
        base: What the deviations stand on; the shipped calibration on concurrency sweeps by default.
    """
    base = base or base_calibration()
    calibrator = family_calibrator(compiled, registry, base)
    fit = calibrator.result(calibrator.fit(), {chip.family: chip.vendor for chip in registry.accelerators.values()})
    left_out = calibrator.leave_out([(row.model, row.accelerator) for row in compiled.rows])
    return text_of(compiled, calibrator, fit, family_spread(compiled, calibrator, left_out), base)


def family_spread(
    compiled: CompiledPublished, calibrator: FamilyCalibrator, left_out: NDArray[np.float64]
) -> dict[str, float]:
    """Log standard deviation of measured over predicted time, by family, of predictions that never saw the row."""
    import numpy as np

    logs = np.abs(np.log(ratios(compiled, left_out)["primary"]))
    by_family: dict[str, list[float]] = {}
    for index in calibrator.rows.tolist():
        if np.isfinite(logs[index]):
            by_family.setdefault(compiled.levels[compiled.level_of[index]].family, []).append(float(logs[index]))
    # The 80% quantile of a centred normal is 1.2816 standard deviations.
    return {family: float(np.percentile(values, 80) / 1.2816) for family, values in sorted(by_family.items())}


def text_of(
    compiled: CompiledPublished,
    calibrator: FamilyCalibrator,
    fit: FamilyFit,
    spread: Mapping[str, float],
    base: Calibration,
) -> str:
    """The file of a fit: what it rests on, what it found, how far to trust it."""
    rows = calibrator.rows.tolist()
    known = set(base.seen.get("family", ()))
    new = [index for index in rows if compiled.levels[compiled.level_of[index]].family not in known]
    newest = max((compiled.rows[index].date for index in rows), default="")
    header = {
        "name": f"families {newest}",
        "basis": "calibrated",
        "as_of": newest,
        "rows": str(len(rows)),
        "source": ", ".join(sorted({compiled.rows[index].source for index in rows})),
        "over": base.name,
    }
    chosen = {family: value for family, value in spread.items() if family not in known}
    return families_toml(fit, header, seen_published(compiled, new), chosen)


def seen_published(compiled: CompiledPublished, rows: Sequence[int]) -> dict[str, list[str]]:
    """What rows of new families cover, by level."""
    chosen = [compiled.rows[index] for index in rows]
    return {
        "accelerator": sorted({row.accelerator for row in chosen}),
        "family": sorted({compiled.levels[compiled.level_of[index]].family for index in rows}),
        "model": sorted({row.model for row in chosen}),
        "pair": sorted({f"{row.model} {row.accelerator}" for row in chosen}),
    }


def families_toml(
    fit: FamilyFit, header: Mapping[str, str], seen: Mapping[str, Sequence[str]], spread: Mapping[str, float]
) -> str:
    """The file of further families: sorted, rounded to six digits, so that a refit gives the same text.

    Args:
        fit: Fitted deviations.
        header: Name, basis, date and source.
        seen: Names with rows behind them, by level.
        spread: Log standard deviation of a left-out model, by family.
    """
    lines = ["# Written by `tokenopt calibrate serving`; do not edit.", "", "[calibration]"]
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in header.items()]
    comments = {
        "family": "# Factors on the calibration of concurrency sweeps.",
        "generation": "# Seconds that a generation of an engine adds.",
    }
    for level, names in sorted(fit.deviations.items()):
        lines += ["", comments[level]]
        for name, values in sorted(names.items()):
            lines += [f"[{level}.{json.dumps(name)}]"]
            lines += [f"{parameter} = {value:.6g}" for parameter, value in sorted(values.items())]
            lines += [""]
        lines.pop()
    lines += ["", "# Log standard deviation of the above."]
    for level, names in sorted(fit.uncertainty.items()):
        for name, values in sorted(names.items()):
            lines += [f"[deviation_uncertainty.{level}.{json.dumps(name)}]"]
            lines += [f"{parameter} = {value:.3g}" for parameter, value in sorted(values.items())]
    lines += ["", "# What was measured.", "[seen]"]
    lines += [f"{level} = {json.dumps(sorted(names))}" for level, names in sorted(seen.items())]
    lines += ["", "# Log standard deviation of measured over predicted time, left-out models.", "[family_spread]"]
    lines += [f"{json.dumps(name)} = {value:.3g}" for name, value in sorted(spread.items())]
    return "\n".join(lines) + "\n"


def ratios(compiled: CompiledPublished, predictions: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Predicted over measured of every quantity; NaN where nothing was measured or predicted.

    The primary ratio is one of times: a rate enters inverted, so that above 1 always means predicted too slow.
    """
    import numpy as np

    rows = compiled.rows
    tpot = predictions[:, 0] / np.array([row.tpot_s or np.nan for row in rows])
    ttft = predictions[:, 1] / np.array([row.ttft_s or np.nan for row in rows])
    output = predictions[:, 2] / np.array([row.output_tps_per_chip or np.nan for row in rows])
    per_output = np.array([(row.isl + row.osl) / row.osl for row in rows])
    total = predictions[:, 2] * per_output / np.array([row.total_tps_per_chip or np.nan for row in rows])
    rate = np.where(np.isfinite(output), output, total)
    # All requests at once: the printed time per token is that of a shrinking batch, the rate is the result.
    has_tpot = np.isfinite(tpot) & np.array([not row.scenario.startswith("offline") for row in rows])
    return {
        "primary": np.where(has_tpot, tpot, 1.0 / rate),
        "tpot_ms": tpot,
        "output_tps_per_chip": rate,
        "ttft_ms": ttft,
    }


def unscored(compiled: CompiledPublished, predictions: NDArray[np.float64]) -> list[str]:
    """Why each row is not scored: what its reader found, a fallback kernel, saturation; empty when it is scored."""
    import numpy as np

    reasons = [row.reason for row in compiled.rows]
    sixteen_bit: dict[object, float] = {}
    for row in compiled.rows:
        if row.weight_precision == "bf16":
            sixteen_bit[_twin(row)] = _measured_time(row)
    newest: dict[object, date] = {}
    for row in compiled.rows:
        day = _day(row)
        if day and day > newest.get(_load_of(row), date.min):
            newest[_load_of(row)] = day
    for index, row in enumerate(compiled.rows):
        day = _day(row)
        if np.isnan(predictions[index, 0]):
            reasons[index] = NO_FIT
        elif reasons[index]:
            continue
        elif day and (newest[_load_of(row)] - day).days >= SUPERSEDED_DAYS:
            reasons[index] = SUPERSEDED
        elif row.weight_precision != "bf16":
            twin = sixteen_bit.get(_twin(row))
            if twin and _measured_time(row) > twin:
                reasons[index] = SLOWER_THAN_16_BIT
    return reasons


def _day(row: PublishedRow) -> date | None:
    try:
        return date.fromisoformat(row.date)
    except ValueError:
        return None


def _load_of(row: PublishedRow) -> object:
    """What two runs share that differ in software alone; layouts change with it."""
    return (row.source.split()[0] if row.source else "", row.model, row.accelerator, row.engine, row.weight_precision,
            row.isl, row.osl, row.scenario)  # fmt: skip


def _twin(row: PublishedRow) -> object:
    """What two runs share that differ in precision alone."""
    return (
        row.model,
        row.accelerator,
        row.engine,
        row.version,
        row.scenario,
        row.layout,
        row.concurrency,
        repr(row.load),
    )


def _measured_time(row: PublishedRow) -> float:
    return row.tpot_s or 1.0 / (row.output_tps_per_chip or row.total_tps_per_chip or float("inf"))


def class_of(row: PublishedRow, vendor: str, topology: str, family: str) -> str:
    """Class of the accuracy table."""
    base = row.scenario.split("+")[0]
    if row.is_disaggregated or base.endswith(("-decode", "-prefill")):
        return "disaggregated, speculative" if row.is_speculative else "disaggregated"
    if row.is_speculative:
        return "speculative decoding"
    if row.source.startswith("MLPerf"):
        return f"MLPerf {base.removesuffix('-max')}"
    if base == "fixed-qps":
        return "open loop, saturated or short" if is_saturated(row) else "open loop"
    if row.load == "endless":
        return "offline maximum"
    if vendor != "nvidia":
        return f"other vendor: {vendor}"
    if topology in ("pcie", "single"):
        return "NVIDIA PCIe cards"
    return "NVIDIA Hopper and Blackwell" if family in ("hopper", "blackwell") else "NVIDIA A100 class and older"


def classes_of(compiled: CompiledPublished, registry: PluginRegistry) -> list[str]:
    """Class of every row."""
    chips = [registry.accelerators[row.accelerator] for row in compiled.rows]
    return [
        class_of(row, chip.vendor, chip.scale_up_topology, chip.family)
        for row, chip in zip(compiled.rows, chips, strict=True)
    ]


def is_saturated(row: PublishedRow) -> bool:
    """Whether an open-loop run is no steady state, judged by what was measured.

    Little's law gives its running requests from rate and measured request time: above 0.8 of the batch cap, or a run
    shorter than three of its requests, or an output rate below 0.9 of the offered one.
    """
    run = row.load["open"]
    request_s = row.osl * (row.tpot_s or 0.0)
    if row.output_tps_per_chip and row.output_tps_per_chip * row.layout.chips < 0.9 * run["per_s"] * row.osl:
        return True
    running = float(run["per_s"]) * request_s
    return running > 0.8 * (row.max_batch or float("inf")) or float(run.get("requests", "inf")) < 3.0 * running


@dataclass(frozen=True, slots=True)
class PublishedValidation:
    """Scores of predictions of published measurements.

    Attributes:
        label: How the predictions came about.
        overall: Errors by quantity.
        by: Errors by slice (`class`, `accelerator`, `model`, `engine`), name and quantity.
        unscored: Predicted rows that are not scored, by reason.
        refused: Rows that cannot be predicted, by reason.
    """

    label: str
    overall: dict[str, Errors]
    by: dict[str, dict[str, dict[str, Errors]]]
    unscored: dict[str, int]
    refused: dict[str, int]


def score(
    label: str, compiled: CompiledPublished, predictions: NDArray[np.float64], registry: PluginRegistry
) -> PublishedValidation:
    """Errors of predictions, overall and by class, accelerator, model and engine."""
    import numpy as np

    reasons = unscored(compiled, predictions)
    is_scored = np.array([not reason for reason in reasons])
    of = ratios(compiled, predictions)
    classes = classes_of(compiled, registry)
    names: dict[str, Callable[[int], str]] = {
        "class": lambda index: classes[index],
        "accelerator": lambda index: compiled.rows[index].accelerator,
        "model": lambda index: compiled.rows[index].model,
        "engine": lambda index: compiled.rows[index].engine,
    }

    def errors(chosen: NDArray[np.bool_]) -> dict[str, Errors]:
        return {name: errors_of(of[name][chosen & is_scored]) for name in QUANTITIES}

    by: dict[str, dict[str, dict[str, Errors]]] = {}
    for slice_name, key in names.items():
        labels = np.array([key(index) for index in range(len(compiled.rows))])
        by[slice_name] = {name: errors(labels == name) for name in sorted(set(labels))}
    return PublishedValidation(
        label=label,
        overall=errors(np.ones(len(reasons), bool)),
        by=by,
        unscored=_count(reason for reason in reasons if reason and reason != NO_FIT),
        refused=_count([*compiled.refused.values(), *(reason for reason in reasons if reason == NO_FIT)]),
    )


def _count(reasons: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items()))


COLUMNS = (
    "id", "class", "ttft_ms", "tpot_ms", "output_tps_per_chip", "total_tps_per_chip", "pred_ttft_ms", "pred_tpot_ms",
    "pred_output_tps_per_chip", "pred_total_tps_per_chip", "reason",
)  # fmt: skip


def rows_csv(compiled: CompiledPublished, predictions: NDArray[np.float64], registry: PluginRegistry) -> str:
    """Every row of the input: measured and predicted values, and why it is not scored or not predicted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    reasons = unscored(compiled, predictions)
    for index, row in enumerate(compiled.rows):
        chip = registry.accelerators[row.accelerator]
        tpot_s, ttft_s, tps, _ = (float(value) for value in predictions[index])
        line = {
            "id": row.id,
            "class": class_of(row, chip.vendor, chip.scale_up_topology, chip.family),
            "ttft_ms": _milliseconds(row.ttft_s),
            "tpot_ms": _milliseconds(row.tpot_s),
            "output_tps_per_chip": _figure(row.output_tps_per_chip),
            "total_tps_per_chip": _figure(row.total_tps_per_chip),
            "reason": reasons[index],
        }
        if tpot_s == tpot_s:
            line |= {
                "pred_ttft_ms": _milliseconds(ttft_s),
                "pred_tpot_ms": _milliseconds(tpot_s),
                "pred_output_tps_per_chip": _figure(tps),
                "pred_total_tps_per_chip": _figure(tps * (row.isl + row.osl) / row.osl),
            }
        writer.writerow(line)
    for row_id, reason in compiled.refused.items():
        writer.writerow({"id": row_id, "reason": reason})
    return text.getvalue()


def _milliseconds(seconds: float | None) -> str:
    return _figure(seconds * 1e3) if seconds else ""


def _figure(value: float | None) -> str:
    return f"{value:.6g}" if value else ""


def to_dict(validation: PublishedValidation) -> dict[str, Any]:
    """Plain dicts, for JSON; a class without rows has no errors."""
    from dataclasses import asdict

    plain = {"schema": 1, **asdict(validation)}
    cleaned: dict[str, Any] = without_nan(plain)
    return cleaned
