"""Recalibration on the user's own measurements: shrunken deviations of a stack over the shipped calibration.

Every stack (engine on an accelerator family) with points in the store gets a factor on a few physical parameters, found by
maximum a posteriori: residuals of predicted over measured time, and a Gaussian prior on the logarithm of each factor, so
that few points move little. Factors are judged by leaving each point out. The shipped calibration is not touched: the
result is a small file of its own, which a search picks up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.engines import Calibration, default_calibration, resolve_parameters, with_stacks
from tokenopt.errors import MissingDataError
from tokenopt.measured.rows import CompiledRows, compile_rows
from tokenopt.measured.serving_data import ServingRow
from tokenopt.measured.store import read_points
from tokenopt.plugins import PluginRegistry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SD: Mapping[str, float] = {
    "weight_bandwidth_efficiency": 0.25, "expert_bandwidth_efficiency": 0.25, "kv_bandwidth_efficiency": 0.25,
    "decode_compute_efficiency": 0.25, "prefill_compute_efficiency": 0.25, "layer_overhead_s": 0.4,
    "step_overhead_s": 0.4, "first_token_overhead_s": 0.5,
}  # fmt: skip
"""Parameters that a stack may deviate in, with the log standard deviation of their prior."""
TIME_SD = 0.08
TTFT_WEIGHT = 0.25
_QUEUE_TTFT_S = 10.0
_MOST_LEFT_OUT = 40
_STEP = 1e-3


@dataclass(frozen=True, slots=True)
class StackFit:
    """What was fitted for one stack.

    Attributes:
        stack: Engine and family.
        points: Points behind it.
        factors: Factor by parameter.
        before, after, left_out: Median error of time per token, percent: as shipped, fitted, and each point by a fit without it.
    """

    stack: str
    points: int
    factors: Mapping[str, float]
    before: float
    after: float
    left_out: float


def own_rows(registry: PluginRegistry) -> tuple[list[ServingRow], dict[str, int]]:
    """Points of the user's store that the model can be held against, and why the others cannot."""
    rows: list[ServingRow] = []
    skipped: dict[str, int] = {}
    for point in read_points(kind="serving"):
        reason = _unusable(point, registry)
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            rows.append(_row(point))
    return rows, skipped


def _unusable(point: Mapping[str, Any], registry: PluginRegistry) -> str:
    if point["scenario"] != "concurrency" or not point["concurrency"]:
        return "not a closed loop with a known concurrency"
    if not all(point[name] for name in ("tpot_ms", "isl", "osl")):
        return "no time per token or lengths"
    if not point["model"] or point["accelerator"] not in registry.accelerators:
        return "model or accelerator not stated or not in the catalogue (--model, --hardware of the import)"
    if not point["engine"] or not (point["tp"] or point["chips"]):
        return "engine or layout not stated (--engine, --tp of the import)"
    if point["mode"] == "disagg" or point["speculative"] not in ("", "none"):
        return "disaggregated or speculative"
    if (point["ttft_ms"] or 0.0) / 1e3 > _QUEUE_TTFT_S:
        return "queue in front of the server"
    return ""


def _row(point: Mapping[str, Any]) -> ServingRow:
    from tokenopt.catalog.models import load_bundled_model, native_precision

    ranks, stages = int(point["attn_dp"] or 1), int(point["pp"] or 1)
    tp = int(point["tp"] or max(1.0, point["chips"] / ranks / stages))
    return ServingRow(
        id=str(point["id"]), source=point["source"], date=point["measured_on"], model=point["model"],
        accelerator=point["accelerator"], engine=point["engine"], version=point["engine_version"], mode="agg",
        weight_precision=point["weight_precision"] or native_precision(load_bundled_model(point["model"]).architecture),
        isl=point["isl"], osl=point["osl"], concurrency=point["concurrency"], tp=tp, pp=stages, attn_dp=ranks,
        ep=math.gcd(int(point["ep"] or 1), tp * ranks), ttft_s=point["ttft_ms"] / 1e3 if point["ttft_ms"] else None,
        tpot_s=point["tpot_ms"] / 1e3, is_queue_limited=False,
    )  # fmt: skip


def calibrate_mine(registry: PluginRegistry) -> tuple[list[StackFit], CompiledRows, dict[str, int]]:
    """Fits every stack of the user's store.

    Returns:
        One fit a stack, the rows behind them, and points left out by reason.

    Raises:
        MissingDataError: The store holds no point that the model can be held against.
    """
    rows, skipped = own_rows(registry)
    compiled = compile_rows(rows, registry)
    for reason in compiled.refused.values():
        skipped[reason] = skipped.get(reason, 0) + 1
    if not compiled.rows:
        listed = "; ".join(
            f"{count:,} {reason}" for reason, count in sorted(skipped.items(), key=lambda item: -item[1])[:3]
        )
        raise MissingDataError(
            f"no point of the measured store can calibrate the model ({listed or 'it is empty'})",
            ["`tokenopt measured import FILE --hardware ... --model ... --engine ... --tp ...` adds points"],
        )
    shipped = default_calibration()
    fits = []
    for stack in sorted({f"{engine} {family}" for engine, family, *_ in compiled.levels}):
        chosen = [
            index for index, at in enumerate(compiled.sets)
            if f"{compiled.levels[at][0]} {compiled.levels[at][1]}" == stack
        ]  # fmt: skip
        fits.append(_StackFitter(compiled, shipped, stack, chosen).fit())
    return fits, compiled, skipped


class _StackFitter:
    """Fits the factors of one stack."""

    def __init__(self, compiled: CompiledRows, shipped: Calibration, stack: str, chosen: Sequence[int]) -> None:
        import numpy as np

        self._compiled, self._shipped, self._stack = compiled, shipped, stack
        self._chosen = np.array(chosen)
        self._sd = np.array(list(SD.values()))
        self._tpot_s = np.array([compiled.rows[index].tpot_s for index in chosen])
        self._ttft_s = np.array([compiled.rows[index].ttft_s or np.nan for index in chosen])

    def _predict(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions as a search would make them with these factors: of the newest release of the engine."""
        import numpy as np

        factors = {name: math.exp(value) for name, value in zip(SD, exponents, strict=True)}
        calibration = with_stacks(self._shipped, {self._stack: factors})
        sets = [
            list(resolve_parameters(calibration, engine, family, precision).values())
            for engine, family, precision, _ in self._compiled.levels
        ]
        predicted: NDArray[np.float64] = self._compiled.predict(np.array(sets))[self._chosen]
        return predicted

    def _optimum(self, is_used: NDArray[np.bool_]) -> NDArray[np.float64]:
        import numpy as np
        from scipy.optimize import least_squares

        def residuals(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
            predicted = self._predict(exponents)[is_used]
            tpot = np.log(predicted[:, 0] / self._tpot_s[is_used]) / TIME_SD
            ttft = np.log(predicted[:, 1] / self._ttft_s[is_used]) / TIME_SD * TTFT_WEIGHT
            data = np.nan_to_num(np.concatenate([tpot, ttft]), nan=0.0)
            # Quadratic near zero, linear for outliers.
            robust = np.sign(data) * np.sqrt(2.0 * (np.sqrt(1.0 + data * data) - 1.0))
            return np.concatenate([robust, exponents / self._sd])

        answer = least_squares(residuals, np.zeros(len(self._sd)), diff_step=_STEP, bounds=(-1.5, 1.5), max_nfev=40)
        optimum: NDArray[np.float64] = answer.x
        return optimum

    def _errors(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        errors: NDArray[np.float64] = 100.0 * np.abs(predicted[:, 0] / self._tpot_s - 1.0)
        return errors

    def fit(self) -> StackFit:
        """The factors, and how well they hold."""
        import numpy as np

        count = len(self._chosen)
        everything = np.ones(count, bool)
        exponents = self._optimum(everything)
        left_out = []
        for index in range(min(count, _MOST_LEFT_OUT)):
            without = everything.copy()
            without[index] = False
            left_out.append(self._errors(self._predict(self._optimum(without)))[index])
        return StackFit(
            self._stack, count, {name: float(math.exp(value)) for name, value in zip(SD, exponents, strict=True)},
            float(np.nanmedian(self._errors(self._predict(np.zeros(len(self._sd)))))),
            float(np.nanmedian(self._errors(self._predict(exponents)))), float(np.nanmedian(left_out)),
        )  # fmt: skip


def to_toml(fits: Sequence[StackFit], compiled: CompiledRows) -> str:
    """The file: deviations over the shipped calibration, and what is now measured."""
    rows = compiled.rows
    newest = max((row.date for row in rows if row.date), default="")
    lines = [
        "# Written by `tokenopt calibrate serving --mine`: deviations over the calibration that ships.", "", "[calibration]",
        f"name = {json.dumps(f'own measurements, {len(rows)} points')}", 'basis = "calibrated"', f"as_of = {json.dumps(newest)}",
        f"over = {json.dumps(default_calibration().name)}",
        f"source = {json.dumps(', '.join(sorted({row.source for row in rows})))}",
    ]  # fmt: skip
    for fit in fits:
        lines += ["", f"# {fit.points} points, median error {fit.before:.1f}% before, {fit.left_out:.1f}% left out."]
        lines += [f"[stack.{json.dumps(fit.stack)}]"]
        lines += [f"{name} = {factor:.6g}" for name, factor in fit.factors.items()]
    seen = {
        "accelerator": {row.accelerator for row in rows},
        "family": {family for _, family, *_ in compiled.levels},
        "model": {row.model for row in rows},
        "pair": {f"{row.model} {row.accelerator}" for row in rows},
    }
    lines += ["", "[seen]", *(f"{level} = {json.dumps(sorted(names))}" for level, names in seen.items())]
    return "\n".join(lines) + "\n"
