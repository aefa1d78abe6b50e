"""Calibration of the serving model: few physical parameters, one global set, shrunken deviations.

A parameter moves as ``value = prior * exp(global + sum of deviations)``, inside its physical bounds, with Gaussian priors
on every exponent. Deviations exist per engine, accelerator family and weight format; what was never measured keeps the
level above. The core predicts all rows of a parameter set at once, so no formula stands here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenopt.measured.rows import CompiledRows, Level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEDULER = (
    "burst_share", "first_token_steps", "first_token_overhead_s", "prompt_overhead_s", "step_overhead_s",
    "request_overhead_s",
)  # fmt: skip
"""What an engine's scheduler and host code decide: free to differ between engines."""

FIXED = ("memory_share", "reserved_bytes", "network_efficiency", "network_latency_s", "fused_share")
"""Parameters that the data do not identify: they keep their priors."""

_ENGINE = (
    "layer_overhead_s", "moe_layer_overhead_s", "weight_bandwidth_efficiency", "expert_bandwidth_efficiency",
    "decode_compute_efficiency", "prefill_compute_efficiency", "kv_bandwidth_efficiency",
)  # fmt: skip
_FAMILY = (
    "weight_bandwidth_efficiency", "expert_bandwidth_efficiency", "decode_compute_efficiency",
    "prefill_compute_efficiency", "link_efficiency", "collective_latency_s",
)  # fmt: skip
_FORMAT = ("decode_compute_efficiency", "prefill_compute_efficiency", "expert_bandwidth_efficiency")

GLOBAL_SD = 0.3
OVERHEAD_SD = 0.6
SCHEDULER_SD = 0.5
TPOT_SD = 0.08
"""Log standard deviation of time per output token that weights the residuals."""
TTFT_WEIGHT = 0.25
QUEUED_WEIGHT = 0.3
"""Weight of rows with a queue in front of the server, whose batch is uncertain."""
STEP = 1e-3
MAX_EVALUATIONS = 25


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
        engine_sd, family_sd, format_sd: Log standard deviations of the priors of physical deviations. The defaults have
            the least error on rows left out: twice as loose fits better in-sample and transfers worse.
    """

    engine_sd: float = 0.07
    family_sd: float = 0.05
    format_sd: float = 0.07

    def deviations(self, levels: Sequence[Level]) -> list[Deviation]:
        """Every deviation that the rows' levels give rise to, in a fixed order."""
        found = []
        for index, level, sd, parameters in (
            (0, "engine", SCHEDULER_SD, SCHEDULER),
            (0, "engine", self.engine_sd, _ENGINE),
            (1, "family", self.family_sd, _FAMILY),
            (2, "format", self.format_sd, _FORMAT),
        ):
            names = sorted({entry[index] for entry in levels})
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
    """Fits parameter sets to compiled rows."""

    def __init__(self, rows: CompiledRows, structure: Structure | None = None) -> None:
        import numpy as np

        from tokenopt import _core

        self._rows = rows
        table = json.loads(_core.serving_parameters())
        self.names = [entry["name"] for entry in table]
        self._prior = np.array([entry["prior"] for entry in table])
        self._low = np.array([entry["low"] for entry in table])
        self._high = np.array([entry["high"] for entry in table])
        self._free = [name for name in self.names if name not in FIXED]
        self._deviations = (structure or Structure()).deviations(rows.levels)
        self._sd = np.array([_global_sd(name) for name in self._free] + [item.sd for item in self._deviations])
        self._tpot_s = np.array([row.tpot_s for row in rows.rows])
        self._ttft_s = np.array([row.ttft_s or np.nan for row in rows.rows])
        self._is_scored = np.array([not row.is_queue_limited for row in rows.rows])
        self._columns = [
            [index for index, level in enumerate(rows.levels) if item.name in level] for item in self._deviations
        ]

    def parameter_sets(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """One parameter set a level of the rows, inside physical bounds."""
        import numpy as np

        log_factor = np.zeros((len(self._rows.levels), len(self.names)))
        for index, name in enumerate(self._free):
            log_factor[:, self.names.index(name)] += exponents[index]
        for index, item in enumerate(self._deviations):
            log_factor[self._columns[index], self.names.index(item.parameter)] += exponents[len(self._free) + index]
        values: NDArray[np.float64] = np.clip(self._prior * np.exp(log_factor), self._low, self._high)
        return values

    def predict(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions of every row."""
        return self._rows.predict(self.parameter_sets(exponents))

    def fit(
        self, is_used: NDArray[np.bool_] | None = None, start: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Exponents that fit the rows in use.

        Args:
            is_used: Rows to fit; all by default.
            start: Exponents to start from; the priors by default.

        Returns:
            The optimum.
        """
        import numpy as np
        from scipy.optimize import least_squares

        weight = np.where(self._is_scored, 1.0, QUEUED_WEIGHT)
        used = np.flatnonzero(np.ones(len(weight), bool) if is_used is None else is_used)
        tpot_weight = weight[used] / TPOT_SD
        ttft_weight = TTFT_WEIGHT / TPOT_SD * self._is_scored[used]

        def residuals(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
            predicted = self.predict(exponents)[used]
            tpot = np.log(predicted[:, 0] / self._tpot_s[used]) * tpot_weight
            ttft = np.log(predicted[:, 1] / self._ttft_s[used]) * ttft_weight
            data = np.nan_to_num(np.concatenate([tpot, ttft]), nan=0.0)
            # Soft L1: quadratic near zero, linear for outliers.
            robust = np.sign(data) * np.sqrt(2.0 * (np.sqrt(1.0 + data * data) - 1.0))
            return np.concatenate([robust, exponents / self._sd])

        def jacobian(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
            here = residuals(exponents)
            columns = []
            for index in range(len(exponents)):
                step = STEP if exponents[index] + STEP < high[index] else -STEP
                moved = exponents.copy()
                moved[index] += step
                columns.append((residuals(moved) - here) / step)
            return np.stack(columns, axis=1)

        low, high = self._bounds()
        first = np.clip(np.zeros(len(self._sd)) if start is None else start, low + 1e-9, high - 1e-9)
        answer = least_squares(
            residuals, first, jac=jacobian, bounds=(low, high), max_nfev=MAX_EVALUATIONS, ftol=1e-4, xtol=1e-4
        )
        optimum: NDArray[np.float64] = answer.x
        self._curvature = answer.jac.T @ answer.jac
        return optimum

    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        import numpy as np

        widest = 4.0
        low, high = np.full(len(self._sd), -widest), np.full(len(self._sd), widest)
        for index, name in enumerate(self._free):
            column = self.names.index(name)
            prior = self._prior[column]
            low[index] = max(-widest, math.log(max(self._low[column], prior * math.exp(-widest)) / prior))
            high[index] = min(widest, math.log(self._high[column] / prior))
        return low, high

    def result(self, exponents: NDArray[np.float64]) -> Fit:
        """The fitted values by name."""
        import numpy as np

        base = dict(zip(self.names, map(float, self._prior), strict=True))
        covariance = np.linalg.pinv(self._curvature)
        uncertainty = {}
        for index, name in enumerate(self._free):
            column = self.names.index(name)
            value = self._prior[column] * math.exp(exponents[index])
            base[name] = float(min(max(value, self._low[column]), self._high[column]))
            uncertainty[name] = float(math.sqrt(max(covariance[index, index], 0.0)))
        deviations: dict[str, dict[str, dict[str, float]]] = {}
        for index, item in enumerate(self._deviations):
            factor = float(math.exp(exponents[len(self._free) + index]))
            deviations.setdefault(item.level, {}).setdefault(item.name, {})[item.parameter] = factor
        return Fit(base, deviations, uncertainty, exponents)

    def leave_out(self, keys: Sequence[object], start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions of each row by a fit that never saw the rows with its key."""
        import numpy as np

        predictions = np.full((len(keys), 4), np.nan)
        for key in sorted(set(keys), key=str):
            is_held_out = np.array([entry == key for entry in keys])
            exponents = self.fit(~is_held_out, start)
            predictions[is_held_out] = self.predict(exponents)[is_held_out]
        return predictions


def _global_sd(name: str) -> float:
    return OVERHEAD_SD if name in SCHEDULER or name.endswith("_overhead_s") else GLOBAL_SD


def to_toml(fit: Fit, header: Mapping[str, str], seen: Mapping[str, Sequence[str]], spread: Mapping[str, float]) -> str:
    """The calibration file: sorted, rounded to six digits, so that a refit gives the same text.

    Args:
        fit: The fitted set.
        header: Name, basis, date and source.
        seen: Names with rows behind them, by level.
        spread: Log standard deviation of measured over predicted time, by novelty.

    Returns:
        TOML text.
    """

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    lines = ["# Written by `tokenopt calibrate serving`; do not edit.", "", "[calibration]"]
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
    return "\n".join(lines) + "\n"
