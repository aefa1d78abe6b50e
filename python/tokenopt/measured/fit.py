"""Calibration of the serving model: few physical parameters, one global set, shrunken deviations.

A parameter moves by a global exponent and a sum of deviations, on a curve that stays inside its physical bounds (the
core's ``ParameterInfo``), with Gaussian priors on every exponent. Deviations exist per engine, accelerator family, weight
format, the three together, and release; what was never measured keeps the level above. The core predicts all rows of a
parameter set at once, so no formula stands here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tokenopt.measured.rows import CompiledRows, Level, level_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEDULER = (
    "burst_share", "first_token_steps", "first_token_overhead_s", "prompt_overhead_s", "step_overhead_s",
    "request_overhead_s",
)  # fmt: skip
"""What an engine's scheduler and host code decide: free to differ between engines."""

FIXED = (
    "memory_share", "reserved_bytes", "network_efficiency", "network_latency_s", "fused_share", "decode_anchor",
    "prefill_anchor", "unpacking_compute_share",
)  # fmt: skip
"""Parameters that the data do not identify: they keep their priors."""

FIRST_TOKEN = ("burst_share", "first_token_steps", "first_token_overhead_s", "prompt_overhead_s")
"""What decides the time to first token, and changes from release to release of an engine."""

_ENGINE = (
    "weight_bandwidth_efficiency", "expert_bandwidth_efficiency", "kv_bandwidth_efficiency", "decode_compute_efficiency",
    "prefill_compute_efficiency", "layer_overhead_s", "moe_layer_overhead_s", "mla_layer_overhead_s",
    "linear_layer_overhead_s", "collective_latency_s", "link_efficiency",
)  # fmt: skip
_FAMILY = (
    "weight_bandwidth_efficiency", "expert_bandwidth_efficiency", "decode_compute_efficiency",
    "prefill_compute_efficiency", "link_efficiency", "collective_latency_s",
)  # fmt: skip
_FORMAT = (
    "decode_compute_efficiency", "prefill_compute_efficiency", "expert_bandwidth_efficiency", "expert_half_rate_width",
)  # fmt: skip
_KERNEL = (
    *_ENGINE, "expert_tile_tokens", "elementwise_bandwidth_efficiency", "attention_compute_efficiency",
    "prefill_attention_efficiency",
)  # fmt: skip
"""Kernels are written by an engine for a family and a format: where they exist together they deviate together."""

GLOBAL_SD = 0.3
OVERHEAD_SD = 0.6
SCHEDULER_SD = 0.5
TPOT_SD = 0.14
"""Log standard deviation of time per output token that weights the residuals.

Wider than the scatter of a curve: rows of a stack err together, so each is worth less than a witness of its own. Error on
rows left out falls with the width (0.08, 0.12, 0.16, 0.2), error of rows seen rises slowly."""
TTFT_WEIGHT = 0.25
QUEUED_WEIGHT = 0.3
"""Weight of rows with a queue in front of the server, whose batch is uncertain."""
STEP = 1e-4
"""Step of numerical derivatives, in log units."""
MOST_LINEARISATIONS = 12
LEAVE_OUT_LINEARISATIONS = 1
STEPS_PER_LINEARISATION = 25
LEAST_CURVATURE = 0.2
TRIES = 6
COST_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Deviation:
    """One exponent: a parameter's deviation at one name of one level."""

    level: str
    name: str
    parameter: str
    sd: float


@dataclass(frozen=True, slots=True)
class Structure:
    """Which deviations exist, and how far they are shrunk.

    Attributes:
        terms: Level, log standard deviation of the prior, and the parameters that may deviate. The widths have the least
            error on rows left out: wider ones fit better in-sample and transfer worse.
    """

    terms: tuple[tuple[str, float, tuple[str, ...]], ...] = (
        ("engine", SCHEDULER_SD, SCHEDULER),
        ("engine", 0.05, _ENGINE),
        ("family", 0.05, _FAMILY),
        ("format", 0.07, _FORMAT),
        ("kernel", 0.2, _KERNEL),
        ("release", 0.5, FIRST_TOKEN),
    )

    def deviations(self, levels: Sequence[Level]) -> list[Deviation]:
        """Every deviation that the rows' levels give rise to, in a fixed order."""
        found = []
        for level, sd, parameters in self.terms:
            names = sorted({level_names(entry)[level] for entry in levels})
            found += [Deviation(level, name, parameter, sd) for name in names for parameter in parameters if sd > 0]
        return found


@dataclass(slots=True)
class Fit:
    """A fitted parameter set.

    Attributes:
        base: Global value by parameter.
        deviations: Factor by level, name and parameter.
        uncertainty: Log standard deviation of each global value, from the curvature at the optimum.
        exponents: The raw optimum, to start a refit from.
    """

    base: dict[str, float]
    deviations: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    uncertainty: dict[str, float] = field(default_factory=dict)
    exponents: NDArray[np.float64] | None = None


class Calibrator:
    """Fits parameter sets to compiled rows.

    The fit is a Gauss-Newton iteration on log ratios with a soft-L1 loss. The core differentiates: one call predicts every
    row once for each exponent that can touch it. The Jacobian of all rows serves every leave-out fit as a start, since
    leaving rows out only removes lines from it.
    """

    def __init__(self, rows: CompiledRows, structure: Structure | None = None) -> None:
        import numpy as np

        from tokenopt import _core

        self._rows = rows
        table = json.loads(_core.serving_parameters())
        self.names = [entry["name"] for entry in table]
        self._fixed_factor = np.zeros((1, len(self.names)))
        self._free = [name for name in self.names if name not in FIXED]
        structure = structure or Structure()
        self._deviations = structure.deviations(rows.levels)
        self._sd = np.array([_global_sd(name) for name in self._free] + [item.sd for item in self._deviations])
        self._set_of_row = np.array(rows.sets)
        self._tpot_s = np.array([row.tpot_s for row in rows.rows])
        self._ttft_s = np.array([row.ttft_s or np.nan for row in rows.rows])
        tpot_weight = np.array(
            [0.0 if row.unscored else QUEUED_WEIGHT if row.is_queue_limited else 1.0 for row in rows.rows]
        )
        tpot_weight /= TPOT_SD
        has_ttft = np.array([row.is_scored and row.ttft_s is not None and row.prefill is None for row in rows.rows])
        ttft_weight = np.where(has_ttft, TTFT_WEIGHT / TPOT_SD, 0.0)
        self._weight = np.concatenate([tpot_weight, ttft_weight])
        self._is_fitted = tpot_weight > 0
        # Each exponent: the parameter it moves, and the levels (parameter sets) that it moves it in.
        # Where leave-out fits start: the exponents, their Jacobian, and the fits by the rows held out.
        self._start: tuple[NDArray[np.float64], NDArray[np.float64], dict[bytes, NDArray[np.float64]]] | None = None
        levels = [level_names(level) for level in rows.levels]
        self._moves = [(self.names.index(name), np.arange(len(levels))) for name in self._free] + [
            (
                self.names.index(item.parameter),
                np.array([index for index, names in enumerate(levels) if names[item.level] == item.name]),
            )
            for item in self._deviations
        ]

    def parameter_sets(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """One parameter set a level of the rows, inside physical bounds."""
        import numpy as np

        from tokenopt import _core

        log_factor = self._fixed_factor.repeat(len(self._rows.levels), axis=0)
        for (parameter, levels), exponent in zip(self._moves, exponents, strict=True):
            log_factor[levels, parameter] += exponent
        return np.array(_core.parameters_at(log_factor.tolist()))

    def predict(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions of every row."""
        return self._rows.predict(self.parameter_sets(exponents))

    def _logs(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log ratios of predicted to measured TPOT, then TTFT; 0 where there is nothing to compare."""
        import numpy as np

        predicted = self.predict(exponents)
        logs = np.concatenate([np.log(predicted[:, 0] / self._tpot_s), np.log(predicted[:, 1] / self._ttft_s)])
        usable: NDArray[np.float64] = np.nan_to_num(logs, nan=0.0, posinf=0.0, neginf=0.0)
        return usable

    def _jacobian(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivatives of :meth:`_logs`, in one call of the core."""
        import numpy as np

        here = self.parameter_sets(exponents)
        base = self._rows.predict(here)
        sets: list[NDArray[np.float64]] = []
        rows: list[NDArray[np.int64]] = []
        set_of_job: list[NDArray[np.int64]] = []
        columns: list[NDArray[np.int64]] = []
        for column, (_, levels) in enumerate(self._moves):
            moved = exponents.copy()
            moved[column] += STEP
            # Only the levels that this exponent moves, and of their rows all.
            changed = self.parameter_sets(moved)[levels]
            number = np.full(len(here), -1)
            number[levels] = len(sets) + np.arange(len(levels))
            touched = np.flatnonzero((number[self._set_of_row] >= 0) & self._is_fitted)
            sets.extend(changed)
            rows.append(touched)
            set_of_job.append(number[self._set_of_row[touched]])
            columns.append(np.full(len(touched), column))
        row, column_of_job = np.concatenate(rows), np.concatenate(columns)
        predicted = self._rows.predict_jobs(row, np.concatenate(set_of_job), np.array(sets))
        n = len(self._set_of_row)
        jacobian = np.zeros((2 * n, len(exponents)))
        for quantity in (0, 1):
            change = np.log(predicted[:, quantity] / base[row, quantity]) / STEP
            jacobian[row + quantity * n, column_of_job] = np.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)
        return jacobian

    def fit(
        self,
        is_used: NDArray[np.bool_] | None = None,
        start: NDArray[np.float64] | None = None,
        jacobian: NDArray[np.float64] | None = None,
        linearisations: int = MOST_LINEARISATIONS,
    ) -> NDArray[np.float64]:
        """Exponents that fit the rows in use.

        Args:
            is_used: Rows to fit; all by default.
            start: Exponents to start from; the priors by default.
            jacobian: Derivatives at `start`, where they are known.
            linearisations: Most times that the derivatives are worked out.

        Returns:
            The optimum.
        """
        import numpy as np

        used = np.ones(len(self._set_of_row), bool) if is_used is None else is_used
        weight = self._weight * np.concatenate([used, used])
        exponents = np.zeros(len(self._sd)) if start is None else start.copy()
        logs = self._logs(exponents)

        def cost(logs: NDArray[np.float64], exponents: NDArray[np.float64]) -> float:
            data = logs * weight
            priors = exponents / self._sd
            # Soft L1: quadratic near zero, linear for outliers.
            return float(2.0 * (np.sqrt(1.0 + data * data) - 1.0).sum() + priors @ priors)

        known = cost(logs, exponents)
        damping = 1e-3
        for linearisation in range(max(linearisations, 1)):
            if jacobian is None or linearisation > 0:
                jacobian = self._jacobian(exponents)
            weighted = jacobian * weight[:, None]
            before = known
            for _ in range(STEPS_PER_LINEARISATION):
                data = logs * weight
                robust = 1.0 / np.sqrt(1.0 + data * data)
                gradient = weighted.T @ (robust * data) + exponents / self._sd**2
                # The curvature of soft L1, which falls faster than its slope: Newton, not reweighting, which crawls.
                curvature = np.maximum(robust**3, LEAST_CURVATURE * robust)
                hessian = (weighted * curvature[:, None]).T @ weighted + np.diag(1.0 / self._sd**2)
                for _ in range(TRIES):
                    step = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
                    moved = exponents + step
                    moved_logs = self._logs(moved)
                    moved_cost = cost(moved_logs, moved)
                    if moved_cost < known:
                        damping = max(0.2 * damping, 1e-6)
                        break
                    damping = 5.0 * max(damping, 1e-3)
                else:
                    break
                is_converged = known - moved_cost < COST_TOLERANCE * known
                exponents, logs, known = moved, moved_logs, moved_cost
                if is_converged:
                    break
            damping = min(damping, 1.0)
            if linearisation > 0 and before - known < COST_TOLERANCE * known:
                break
        self._curvature = hessian
        return exponents

    def result(self, exponents: NDArray[np.float64]) -> Fit:
        """The fitted values by name."""
        import numpy as np

        from tokenopt import _core

        factors = self._fixed_factor[0].copy()
        for index, name in enumerate(self._free):
            factors[self.names.index(name)] = exponents[index]
        values = _core.parameters_at([factors.tolist()])[0]
        base = dict(zip(self.names, values, strict=True))
        covariance = np.linalg.pinv(self._curvature)
        uncertainty = {}
        for index, name in enumerate(self._free):
            column = self.names.index(name)
            base[name] = values[column]
            uncertainty[name] = float(math.sqrt(max(covariance[index, index], 0.0)))
        deviations: dict[str, dict[str, dict[str, float]]] = {}
        for index, item in enumerate(self._deviations):
            factor = float(math.exp(exponents[len(self._free) + index]))
            deviations.setdefault(item.level, {}).setdefault(item.name, {})[item.parameter] = factor
        return Fit(base, deviations, uncertainty, exponents)

    def leave_out(self, keys: Sequence[object], start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameter sets of each row by a fit that never saw the rows with its key.

        Args:
            keys: One a row.
            start: Optimum of all rows, to start from.

        Returns:
            Rows x parameters.
        """
        import numpy as np

        if self._start is None or not np.array_equal(start, self._start[0]):
            self._start = start.copy(), self._jacobian(start), {}
        _, jacobian, refits = self._start
        sets = np.full((len(keys), len(self.names)), np.nan)
        for key in sorted(set(keys), key=str):
            is_held_out = np.array([entry == key for entry in keys])
            # What one thing leaves out another may too: the only layout of a pair is the pair.
            rows = is_held_out.tobytes()
            if rows not in refits:
                refits[rows] = self.fit(~is_held_out, start, jacobian, LEAVE_OUT_LINEARISATIONS)
            exponents = refits[rows]
            sets[is_held_out] = self.parameter_sets(exponents)[self._set_of_row[is_held_out]]
        return sets


def _global_sd(name: str) -> float:
    return OVERHEAD_SD if name in SCHEDULER or name.endswith("_overhead_s") else GLOBAL_SD


class FittedSet(Protocol):
    """What a fit hands to its file."""

    base: dict[str, float]
    deviations: dict[str, dict[str, dict[str, float]]]
    uncertainty: dict[str, float]


def to_toml(
    fit: FittedSet,
    header: Mapping[str, str],
    seen: Mapping[str, Sequence[str]],
    spread: Mapping[str, float],
    command: str = "serving",
    accuracy: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> str:
    """The calibration file: sorted, rounded to six digits, so that a refit gives the same text.

    Args:
        fit: The fitted set.
        header: Name, basis, date and source.
        seen: Names with rows behind them, by level.
        spread: Log standard deviation of measured over predicted time, by novelty.
        command: Which `tokenopt calibrate` command writes it.
        accuracy: Median and P90 of the error in percent, by what was left out and quantity.

    Returns:
        TOML text.
    """

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    lines = [f"# Written by `tokenopt calibrate {command}`; do not edit.", "", "[calibration]"]
    lines += [f"{name} = {quoted(value)}" for name, value in header.items()]
    lines += ["", "# Value of every parameter where nothing deviates.", "[global]"]
    lines += [f"{name} = {value:.6g}" for name, value in fit.base.items()]
    lines += ["", "# Log standard deviation of the fitted global values.", "[uncertainty]"]
    lines += [f"{name} = {value:.3g}" for name, value in fit.uncertainty.items()]
    for level in sorted(fit.deviations):
        for name in sorted(fit.deviations[level]):
            lines += ["", f"[{level}.{quoted(name)}]"]
            lines += [
                f"{parameter} = {factor:.6g}" for parameter, factor in sorted(fit.deviations[level][name].items())
            ]
    lines += ["", "# What was measured: how new a case is decides the width of its interval.", "[seen]"]
    lines += [
        f"{level} = [{', '.join(quoted(name) for name in sorted(names))}]" for level, names in sorted(seen.items())
    ]
    lines += ["", "# Log standard deviation of measured over predicted cost per token, left-out rows.", "[spread]"]
    lines += [f"{name} = {value:.3g}" for name, value in spread.items()]
    if accuracy:
        lines += ["", "# Median and P90 of the error in percent, in-sample and of refits without what is named."]
    for what, quantities in (accuracy or {}).items():
        lines += ["", f"[accuracy.{quoted(what)}]"]
        lines += [f"{quantity} = [{median:.1f}, {p90:.1f}]" for quantity, (median, p90) in quantities.items()]
    return "\n".join(lines) + "\n"
