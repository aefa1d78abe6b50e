"""Calibration of the training model: few physical parameters, one global set, shrunken deviations.

A parameter moves as ``value = prior * exp(global + sum of deviations)``, inside its physical bounds, with Gaussian priors
on every exponent. What was never measured keeps the level above. The core predicts all rows at once, so no formula
stands here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenopt.measured.training_rows import CompiledTraining, Level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GLOBAL_SD = {
    "gemm_efficiency": 0.10,
    "rowwise_factor": 0.2,
    "half_rate_elements": 0.4,
    "half_rate_growth": 0.3,
    "power_exponent": 0.3,
    "expert_gemm_factor": 0.02,
    "attention_efficiency": 0.25,
    "scan_factor": 0.3,
    "bandwidth_efficiency": 0.10,
    "elementwise_factor": 0.3,
    "permute_factor": 0.3,
    "cast_factor": 0.3,
    "adapter_factor": 0.3,
    "link_efficiency": 0.10,
    "network_efficiency": 0.10,
    "tensor_exposed": 0.3,
    "async_tensor_exposed": 0.3,
    "expert_exposed": 0.3,
    "context_exposed": 0.5,
    "pipeline_exposed": 0.5,
    "data_exposed": 0.4,
    "sharded_exposed": 0.4,
    "layer_overhead_s": 0.5,
    "moe_layer_overhead_s": 0.4,
    "expert_overhead_s": 0.4,
    "step_overhead_s": 0.5,
    "head_stage_share": 0.3,
    # The mean of all stacks, from which each deviates.
    "software_factor": 0.3,
}
"""Log standard deviation of each fitted parameter's prior; what is not named keeps its prior."""

ROW_SD = 0.08
"""Log standard deviation of a measured rate that weights the residuals: the floor between releases and publishers."""
STEP = 1e-4
MAX_EVALUATIONS = 30


@dataclass(frozen=True, slots=True)
class Deviation:
    """One exponent: a parameter's deviation at one name of one level."""

    level: str
    name: str
    parameter: str
    sd: float


@dataclass(frozen=True, slots=True)
class TrainingStructure:
    """Which deviations exist, as (level, parameter): log standard deviation of the prior.

    Levels: `accelerator`, `family` of the accelerator, `stack` of software, `format`, `release` of mixture-of-experts
    layers.
    """

    sd: tuple[tuple[str, str, float], ...] = (
        ("accelerator", "chip_factor", 0.12),
        ("stack", "software_factor", 0.20),
        ("family", "attention_efficiency", 0.30),
        ("stack", "attention_efficiency", 0.15),
        ("stack", "tensor_exposed", 0.30),
        ("format", "gemm_efficiency", 0.10),
        ("release", "moe_software_factor", 0.20),
    )

    def deviations(self, levels: Sequence[Level]) -> list[Deviation]:
        """Every deviation that the rows' levels give rise to, in a fixed order."""
        found = []
        for level, parameter, sd in self.sd:
            names = {name_at(entry, level) for entry in levels} - {""}
            found += [Deviation(level, name, parameter, sd) for name in sorted(names)]
        return found


def name_at(level: Level, what: str) -> str:
    """Name of a level of the hierarchy; empty where it does not apply (releases matter to mixture-of-experts layers)."""
    if what == "release" and not level.is_moe:
        return ""
    return str(getattr(level, what))


@dataclass(slots=True)
class TrainingFit:
    """A fitted parameter set.

    Attributes:
        base: Global value by parameter.
        deviations: Factor by level, name and parameter.
        uncertainty: Log standard deviation of each global value, from the curvature at the optimum.
    """

    base: dict[str, float]
    deviations: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    uncertainty: dict[str, float] = field(default_factory=dict)


class TrainingCalibrator:
    """Fits parameter sets to compiled rows."""

    def __init__(self, rows: CompiledTraining, structure: TrainingStructure | None = None) -> None:
        import numpy as np

        from tokenopt import _core

        table = json.loads(_core.training_parameters())
        self.names = [entry["name"] for entry in table]
        self._prior = np.array([entry["prior"] for entry in table])
        self._low = np.array([entry["low"] for entry in table])
        self._high = np.array([entry["high"] for entry in table])
        self._free = [name for name in self.names if name in GLOBAL_SD]
        self._deviations = (structure or TrainingStructure()).deviations(rows.levels)
        self._sd = np.array([GLOBAL_SD[name] for name in self._free] + [item.sd for item in self._deviations])
        self._levels = rows.levels
        self._columns = [
            [index for index, level in enumerate(rows.levels) if name_at(level, item.level) == item.name]
            for item in self._deviations
        ]
        self.rows = rows.resolved(self.parameter_sets(np.zeros(len(self._sd))))
        predicted = self.rows.predict(self.parameter_sets(np.zeros(len(self._sd))))
        self.measured = predicted[:, 2]
        self.is_scored = np.array([not row.unscored for row in self.rows.rows]) & np.isfinite(self.measured)
        self.is_scored &= np.isfinite(predicted[:, 1])

    def parameter_sets(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """One parameter set a level of the rows, inside physical bounds."""
        import numpy as np

        log_factor = np.zeros((len(self._levels), len(self.names)))
        for index, name in enumerate(self._free):
            log_factor[:, self.names.index(name)] += exponents[index]
        for index, item in enumerate(self._deviations):
            log_factor[self._columns[index], self.names.index(item.parameter)] += exponents[len(self._free) + index]
        values: NDArray[np.float64] = np.clip(self._prior * np.exp(log_factor), self._low, self._high)
        return values

    def predict(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions of every row."""
        return self.rows.predict(self.parameter_sets(exponents))

    def slopes(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivative of the logarithm of every row's rate by every exponent."""
        import numpy as np

        here = np.log(self.predict(exponents)[:, 1])
        columns = []
        for index in range(len(exponents)):
            moved = exponents.copy()
            moved[index] += STEP
            columns.append((np.log(self.predict(moved)[:, 1]) - here) / STEP)
        return np.stack(columns, axis=1)

    def fit(
        self,
        is_used: NDArray[np.bool_] | None = None,
        start: NDArray[np.float64] | None = None,
        slopes: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Exponents that fit the scored rows in use.

        Args:
            is_used: Rows to fit; all scored ones by default.
            start: Exponents to start from; the priors by default.
            slopes: Derivatives to keep all along (a refit close to where they were taken); exact ones by default.

        Returns:
            The optimum.
        """
        import numpy as np
        from scipy.optimize import least_squares

        used = np.flatnonzero(self.is_scored if is_used is None else self.is_scored & is_used)
        groups = [self.rows.rows[index].group for index in used]
        sizes = Counter(groups)
        # Rows of a group say much the same: it counts as the root of its size.
        weight = np.array([sizes[group] ** -0.25 for group in groups]) / ROW_SD
        log_measured = np.log(self.measured[used])

        def residuals(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
            data = (np.log(self.predict(exponents)[used, 1]) - log_measured) * weight
            # Soft L1: quadratic near zero, linear for outliers.
            robust = np.sign(data) * np.sqrt(2.0 * (np.sqrt(1.0 + data * data) - 1.0))
            return np.concatenate([robust, exponents / self._sd])

        def jacobian(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
            data = (np.log(self.predict(exponents)[used, 1]) - log_measured) * weight
            root = np.sqrt(1.0 + data * data)
            softness = np.abs(data) / (root * np.sqrt(2.0 * (root - 1.0)) + 1e-300)
            softness[np.abs(data) < 1e-6] = 1.0
            of_rates = self.slopes(exponents) if slopes is None else slopes
            return np.concatenate([of_rates[used] * (weight * softness)[:, None], np.diag(1.0 / self._sd)])

        low, high = self._bounds()
        first = np.clip(np.zeros(len(self._sd)) if start is None else start, low + 1e-9, high - 1e-9)
        answer = least_squares(
            residuals, first, jac=jacobian, bounds=(low, high), max_nfev=MAX_EVALUATIONS, ftol=1e-5, xtol=1e-5
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

    def result(self, exponents: NDArray[np.float64]) -> TrainingFit:
        """The fitted values by name; deviations of what has no scored row are left out."""
        import numpy as np

        base = dict(zip(self.names, map(float, self._prior), strict=True))
        covariance = np.linalg.pinv(self._curvature)
        uncertainty = {}
        for index, name in enumerate(self._free):
            column = self.names.index(name)
            value = self._prior[column] * math.exp(exponents[index])
            base[name] = float(min(max(value, self._low[column]), self._high[column]))
            uncertainty[name] = float(math.sqrt(max(covariance[index, index], 0.0)))
        scored_levels = {self.rows.level_of[index] for index in np.flatnonzero(self.is_scored)}
        deviations: dict[str, dict[str, dict[str, float]]] = {}
        for index, item in enumerate(self._deviations):
            if scored_levels & set(self._columns[index]):
                factor = float(math.exp(exponents[len(self._free) + index]))
                deviations.setdefault(item.level, {}).setdefault(item.name, {})[item.parameter] = factor
        return TrainingFit(base, deviations, uncertainty)

    def leave_out(self, keys: Sequence[object], start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions of each row by a fit that never saw the rows with its key."""
        import numpy as np

        predictions = np.full((len(keys), 6), np.nan)
        slopes = self.slopes(start)
        for key in sorted(set(keys), key=str):
            is_held_out = np.array([entry == key for entry in keys])
            if (is_held_out & self.is_scored).any():
                exponents = self.fit(~is_held_out, start, slopes)
            else:
                exponents = start
            predictions[is_held_out] = self.predict(exponents)[is_held_out]
        return predictions
