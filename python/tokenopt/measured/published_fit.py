"""Deviations of accelerator families and engine generations, fitted on published measurements over a finished calibration.

The chips that the calibration was fitted on are never corrected: only families that it has not seen, and generations of
engines, may deviate. A parameter moves as ``value = calibrated * exp(deviation)`` with a Gaussian prior on the deviation,
so that a family with few rows stays near the vendor-neutral level. Rows of one stack share an offset during the fit: a
hundred rows of one model on one chip are one witness, not a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tokenopt.catalog.engines import Calibration, resolve_parameters
from tokenopt.measured.published import PublishedRow
from tokenopt.measured.published_rows import CompiledPublished, StackLevel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW_SD = 0.10
"""Log standard deviation of one measured time per token."""
STACK_SD = 0.20
"""Log standard deviation of what a stack has in common that no parameter explains."""
TTFT_SD = 0.5
STEP = 1e-3
MOST_STEPS = 16
TRIES = 5
LEAST_DAMPING = 0.05
TOLERANCE = 1e-6
WIDEST = 4.0
LEAVE_OUT_STEPS = 3
LEAVE_OUT_TOLERANCE = 1e-3

BANDWIDTHS = (
    "weight_bandwidth_efficiency", "expert_bandwidth_efficiency", "kv_bandwidth_efficiency",
    "elementwise_bandwidth_efficiency",
)  # fmt: skip
COMPUTE = ("decode_compute_efficiency", "prefill_compute_efficiency", "attention_compute_efficiency")
LAUNCHES = (
    "layer_overhead_s", "moe_layer_overhead_s", "mla_layer_overhead_s", "linear_layer_overhead_s", "step_overhead_s",
)  # fmt: skip
HOST = {"step_overhead_s": 1e-3, "request_overhead_s": 1e-4}
"""Host time that an engine generation adds, with the centres of the priors, s."""
ADDED: Mapping[str, Mapping[str, float]] = {"trtllm-pytorch offline": {"moe_layer_overhead_s": 1e-4}}
"""What a generation adds instead, with the centres of the priors, s: routing, sorting and quantising kernels around grouped
products, which full batches of current engines show and which hide behind latency at the batches of concurrency sweeps."""
OTHER = {"collective_latency_s": 1.5}
"""Centres of the priors of what all other vendors share: the calibration saw the one library whose small collectives are
single kernels over a switch; others launch a step for each hop."""


@dataclass(frozen=True, slots=True)
class Term:
    """One exponent: a deviation that some parameters share at one name of one level."""

    level: str
    name: str
    parameters: tuple[str, ...]
    sd: float


@dataclass(frozen=True, slots=True)
class FamilyStructure:
    """Which parameters deviate together, and the log standard deviations of the priors.

    Attributes:
        other: Of all vendors that the calibration was not fitted on: what a chip of one more vendor starts from.
        vendor: Of all chips of another vendor, on top: what a compiler, a launch path or a fabric changes, it changes for
            all operators alike.
        family: Of one family of such a vendor, on top. A family whose models do not agree on a direction has neither
            (:meth:`FamilyCalibrator.scattered`).
        same: Of families of the vendor that the calibration was fitted on: their kernels are those of its chips.
        host: Of the host terms of an engine generation, which may be orders above those of current engines.
    """

    other: tuple[tuple[tuple[str, ...], float], ...] = ((("collective_latency_s",), 0.2),)
    vendor: tuple[tuple[tuple[str, ...], float], ...] = (
        (BANDWIDTHS, 0.10),
        (COMPUTE, 0.20),
        (LAUNCHES, 0.6),
        (("moe_layer_overhead_s",), 0.6),
        (("mla_layer_overhead_s",), 0.6),
        (("linear_layer_overhead_s",), 0.6),
        (("collective_latency_s",), 0.3),
        (("link_efficiency",), 0.10),
        (("unpacking_compute_share",), 0.5),
    )
    family: tuple[tuple[tuple[str, ...], float], ...] = (
        (BANDWIDTHS, 0.04),
        (COMPUTE, 0.15),
        (LAUNCHES, 0.2),
        (("collective_latency_s",), 0.2),
    )
    same: tuple[tuple[tuple[str, ...], float], ...] = (
        (BANDWIDTHS, 0.08),
        (COMPUTE, 0.25),
        (("unpacking_compute_share",), 1.0),
    )
    host: float = 2.0

    def terms(self, levels: Sequence[StackLevel], vendors: Mapping[str, str], calibration: Calibration) -> list[Term]:
        """Every deviation that the rows give rise to, in a fixed order.

        Args:
            levels: Stacks of the rows.
            vendors: Vendor by family.
            calibration: What the deviations stand on.
        """
        fitted = set(calibration.seen.get("family", ()))
        known_vendors = fitted_vendors(calibration, vendors)
        found = []
        families = sorted({level.family for level in levels} - fitted)
        if {vendors[family] for family in families} - known_vendors:
            found += [Term("other", "other", names, sd) for names, sd in self.other if sd > 0]
        for vendor in sorted({vendors[family] for family in families} - known_vendors):
            found += [Term("vendor", vendor, names, sd) for names, sd in self.vendor if sd > 0]
        for family in families:
            groups = self.same if vendors[family] in known_vendors else self.family
            found += [Term("family", family, names, sd) for names, sd in groups if sd > 0]
        for generation in sorted({level.generation for level in levels if level.generation}):
            found += [Term("generation", generation, (name,), self.host) for name in ADDED.get(generation, HOST)]
        return found


@dataclass(slots=True)
class FamilyFit:
    """Fitted deviations.

    Attributes:
        deviations: Factor by level, name and parameter; of generations, seconds that add.
        uncertainty: Log standard deviation of each, keyed alike.
    """

    deviations: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    uncertainty: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


class FamilyCalibrator:
    """Fits deviations to compiled published rows, over a calibration."""

    def __init__(
        self,
        compiled: CompiledPublished,
        calibration: Calibration,
        is_usable: NDArray[np.bool_],
        structure: FamilyStructure | None = None,
    ) -> None:
        """Prepares a fit.

        Args:
            compiled: Rows.
            calibration: What the deviations stand on; deviations of its own for the fitted terms are left out.
            is_usable: Rows that may be fitted.
            structure: Widths of the priors.
        """
        import numpy as np

        self._compiled = compiled
        families = {
            level.family: compiled.vendors[compiled.level_of.index(index)]
            for index, level in enumerate(compiled.levels)
        }
        self.terms = (structure or FamilyStructure()).terms(compiled.levels, families, calibration)
        own = {("family", level.family) for level in compiled.levels} - {
            ("family", name) for name in calibration.seen.get("family", ())
        }
        self._families = families
        self._fitted_vendors = fitted_vendors(calibration, families)
        self._bare = _without(calibration, own)
        self._scattered: frozenset[str] = frozenset()
        self._moves = self._levels_moved()
        self._sd = np.array([term.sd for term in self.terms])
        self._set_of_row = np.array(compiled.level_of)
        # Rows that no term touches cannot tell anything of one.
        touched = set(np.concatenate(self._moves).tolist()) if self._moves else set()
        is_touched = np.array([level in touched for level in compiled.level_of])
        self.rows = np.flatnonzero(is_usable & is_touched)
        stacks = [_stack(compiled.rows[row]) for row in self.rows]
        names = sorted(set(stacks))
        self._membership = np.zeros((len(stacks), len(names)))
        self._membership[np.arange(len(stacks)), [names.index(stack) for stack in stacks]] = 1.0
        self._prior = np.concatenate([self._sd, np.full(len(names), STACK_SD)])
        self._measured = np.array([_measured_s(row) for row in compiled.rows])
        self._uses_tpot = np.array([_has_tpot(row) for row in compiled.rows])
        bare = np.array([stack_parameters(self._bare, level) for level in compiled.levels])
        self._bare_logs = np.log(self._times(compiled.predict(bare), np.arange(len(compiled.rows))) / self._measured)
        self._arrange(np.ones(len(self.rows)))

    def _levels_moved(self) -> list[NDArray[np.int64]]:
        """Indices of the levels that each term moves."""
        import numpy as np

        places = [set(self._places(term, self._families)) for term in self.terms]
        return [
            np.array(
                [
                    index
                    for index, level in enumerate(self._compiled.levels)
                    if {("family", level.family), ("generation", level.generation)} & of_term
                ],
                dtype=np.int64,
            )
            for of_term in places
        ]

    def scattered(self, used: NDArray[np.float64]) -> frozenset[str]:
        """Families of other vendors whose models differ from each other by more than from the calibration, on average.

        A family's deviation moves all models alike. Where some are right and others far off, it only moves the error from
        one to the other: such a family stays at the level of all other vendors.

        Args:
            used: 0 for rows that are left out.
        """
        import numpy as np

        by_family: dict[str, dict[str, list[float]]] = {}
        for position in np.flatnonzero(used).tolist():
            row = int(self.rows[position])
            family = self._compiled.levels[self._compiled.level_of[row]].family
            if self._families[family] not in self._fitted_vendors:
                of_model = by_family.setdefault(family, {}).setdefault(self._compiled.rows[row].model, [])
                of_model.append(float(self._bare_logs[row]))
        found = set()
        for family, models in by_family.items():
            offsets = np.array([np.median(logs) for logs in models.values()])
            if len(offsets) > 1 and offsets.std(ddof=1) > abs(offsets.mean()):
                found.add(family)
        return frozenset(found)

    def _arrange(self, used: NDArray[np.float64]) -> bool:
        """Lets the families deviate that rows in use speak for; whether that changed anything."""
        scattered = self.scattered(used)
        if scattered == self._scattered:
            return False
        self._scattered = scattered
        self._moves = self._levels_moved()
        return True

    def parameter_sets(
        self, exponents: NDArray[np.float64], levels: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """One parameter set a level, resolved as a search would; of all levels by default."""
        import numpy as np

        own = self._deviations_at(exponents, self._families)
        deviations = {
            level: {**self._bare.deviations.get(level, {}), **own.get(level, {})}
            for level in {*self._bare.deviations, *own}
        }
        calibration = replace(self._bare, deviations=deviations)
        chosen = (
            self._compiled.levels if levels is None else [self._compiled.levels[index] for index in levels.tolist()]
        )
        return np.array([stack_parameters(calibration, level) for level in chosen])

    def _deviations_at(
        self, exponents: NDArray[np.float64], families: Mapping[str, str]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Factors (of generations: seconds) by level, name and parameter; a vendor's stand in each of its families."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for term, exponent in zip(self.terms, exponents.tolist(), strict=True):
            for level, name in self._places(term, families):
                factors = found.setdefault(level, {}).setdefault(name, {})
                for parameter in term.parameters:
                    start = _centre(term, parameter)
                    factors[parameter] = factors.get(parameter, start) * math.exp(exponent)
        return found

    def _places(self, term: Term, families: Mapping[str, str]) -> list[tuple[str, str]]:
        """Level and name in a calibration file where a term stands: that of a vendor or of all others in each family."""
        if term.level == "other":
            return [("family", family) for family, vendor in families.items() if vendor not in self._fitted_vendors]
        if term.level == "vendor":
            of_vendor = [family for family, vendor in families.items() if vendor == term.name]
            return [("family", family) for family in of_vendor if family not in self._scattered]
        return [] if term.name in self._scattered else [(term.level, term.name)]

    def predict(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predictions of every row."""
        return self._compiled.predict(self.parameter_sets(exponents))

    def _times(self, predicted: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The primary time per token of predictions."""
        import numpy as np

        times: NDArray[np.float64] = np.where(self._uses_tpot[rows], predicted[:, 0], 1.0 / predicted[:, 2])
        return times

    def _logs(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log ratios of predicted to measured time of the rows in the fit."""
        import numpy as np

        rows = self.rows
        predicted = self._compiled.predict_jobs(rows, self._set_of_row[rows], self.parameter_sets(exponents))
        logs = np.log(self._times(predicted, rows) / self._measured[rows])
        finite: NDArray[np.float64] = np.nan_to_num(logs, nan=0.0, posinf=0.0, neginf=0.0)
        return finite

    def _jacobian(self, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivatives of the log times: only the rows that an exponent touches are predicted again."""
        import numpy as np

        sets_of_rows = self._set_of_row[self.rows]
        here = self._compiled.predict_jobs(self.rows, sets_of_rows, self.parameter_sets(exponents))
        base = self._times(here, self.rows)
        jacobian = np.zeros((len(self.rows), len(exponents)))
        sets: list[NDArray[np.float64]] = []
        lines, jobs, columns = [], [], []
        for column, levels in enumerate(self._moves):
            # Downwards: a share may start at its upper bound.
            moved = exponents.copy()
            moved[column] -= STEP
            number = np.full(len(self._compiled.levels), -1)
            number[levels] = len(sets) + np.arange(len(levels))
            touched = np.flatnonzero(number[sets_of_rows] >= 0)
            sets.extend(self.parameter_sets(moved, levels))
            lines.append(touched)
            jobs.append(number[sets_of_rows[touched]])
            columns.append(np.full(len(touched), column))
        line = np.concatenate(lines)
        predicted = self._compiled.predict_jobs(self.rows[line], np.concatenate(jobs), np.array(sets))
        change = np.log(self._times(predicted, self.rows[line]) / base[line]) / -STEP
        jacobian[line, np.concatenate(columns)] = np.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)
        return jacobian

    def _cost(self, logs: NDArray[np.float64], values: NDArray[np.float64], used: NDArray[np.float64]) -> float:
        """Soft-L1 loss of the rows plus the priors; `values` are exponents and offsets of stacks."""
        import numpy as np

        data = (logs + self._membership @ values[len(self._sd) :]) * used / ROW_SD
        priors = values / self._prior
        return float(2.0 * (np.sqrt(1.0 + data * data) - 1.0).sum() + priors @ priors)

    def fit(self) -> NDArray[np.float64]:
        """Exponents that fit the rows: Gauss-Newton with a soft-L1 loss, from no deviation at all."""
        import numpy as np

        exponents, self._optimum = self._solve(np.zeros(len(self._sd)), np.ones(len(self.rows)), MOST_STEPS)
        return exponents

    def _solve(
        self,
        start: NDArray[np.float64],
        used: NDArray[np.float64],
        steps: int,
        jacobian: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
        """The optimum of the rows in use, and the last linearisation: exponents, logs and Jacobian."""
        import numpy as np

        count = len(self._sd)
        values = np.concatenate([start, np.zeros(len(self._prior) - count)])
        logs = self._logs(start)
        known = self._cost(logs, values, used)
        damping = 0.0
        for number in range(steps):
            here = self._jacobian(values[:count]) if jacobian is None or number > 0 else jacobian
            linear = values[:count].copy(), logs, here
            # Where a bound bends the path, shorter steps turn towards the steepest descent (Levenberg-Marquardt).
            for _ in range(TRIES):
                moved = values + self._step(linear[2], logs, values, used, damping)
                moved[:count] = np.clip(moved[:count], -WIDEST, WIDEST)
                moved_logs = self._logs(moved[:count])
                moved_cost = self._cost(moved_logs, moved, used)
                if moved_cost < known:
                    damping *= 0.2
                    break
                damping = max(4.0 * damping, LEAST_DAMPING)
            else:
                break
            is_converged = known - moved_cost < (TOLERANCE if jacobian is None else LEAVE_OUT_TOLERANCE) * known
            values, logs, known = moved, moved_logs, moved_cost
            if is_converged:
                break
        return values[:count], linear

    def _step(
        self,
        jacobian: NDArray[np.float64],
        logs: NDArray[np.float64],
        values: NDArray[np.float64],
        used: NDArray[np.float64],
        damping: float = 0.0,
    ) -> NDArray[np.float64]:
        """The damped Gauss-Newton step of exponents and offsets; `used` is 0 for a row that is left out."""
        import numpy as np

        count = len(self._sd)
        weight = used / ROW_SD
        data = (logs + self._membership @ values[count:]) * weight
        robust = 1.0 / np.sqrt(1.0 + data * data)
        gradient = self._prior**-2 * values
        gradient[:count] += jacobian.T @ (weight * robust * data)
        gradient[count:] += self._membership.T @ (weight * robust * data)
        # Each row has one offset, so that the offsets' own block is diagonal and is eliminated first.
        curvature = weight * weight * robust
        across = (jacobian * curvature[:, None]).T @ self._membership
        diagonal = self._membership.T @ curvature + self._prior[count:] ** -2
        reduced = (jacobian * curvature[:, None]).T @ jacobian + np.diag(self._prior[:count] ** -2)
        reduced -= (across / diagonal) @ across.T
        self._curvature = reduced
        damped = reduced + damping * np.diag(np.diag(reduced))
        exponents = np.linalg.solve(damped, gradient[:count] - (across / diagonal) @ gradient[count:])
        offsets = (gradient[count:] - across.T @ exponents) / diagonal
        step: NDArray[np.float64] = -np.concatenate([exponents, offsets])
        return step

    def leave_out(self, keys: Sequence[object]) -> NDArray[np.float64]:
        """Predictions of each row by a fit that never saw the rows with its key.

        A key none of whose rows was fitted costs nothing.

        Args:
            keys: One a row of the compiled rows.
        """
        import numpy as np

        start = self._optimum[0]
        predictions = self.predict(start)
        key_of_row = [keys[row] for row in self.rows.tolist()]
        for key in sorted(set(key_of_row), key=str):
            used = np.array([entry != key for entry in key_of_row], float)
            is_rearranged = self._arrange(used)
            # From no deviation: what only the left-out rows told is gone, not fading.
            first = np.where(self._is_known_without(used), start, 0.0)
            # Where nothing is forgotten, the derivatives at the optimum of all rows serve the first step.
            jacobian = self._optimum[2] if (first == start).all() and not is_rearranged else None
            exponents, _ = self._solve(first, used, LEAVE_OUT_STEPS, jacobian)
            rows = np.flatnonzero([entry == key for entry in keys])
            predictions[rows] = self._compiled.predict_jobs(
                rows, self._set_of_row[rows], self.parameter_sets(exponents)
            )
        self._arrange(np.ones(len(self.rows)))
        return predictions

    def _is_known_without(self, used: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which exponents keep at least half of the rows that tell of them."""
        import numpy as np

        touched = self._optimum[2] != 0.0
        kept: NDArray[np.bool_] = 2.0 * (touched * used[:, None]).sum(axis=0) >= np.maximum(touched.sum(axis=0), 1)
        return kept

    def result(self, exponents: NDArray[np.float64], families: Mapping[str, str]) -> FamilyFit:
        """Factors by level, name and parameter, on the calibration; of generations, seconds that add to it.

        Args:
            exponents: The optimum.
            families: Vendor by family, of the whole catalogue.
        """
        import numpy as np

        _, logs, jacobian = self._optimum
        self._step(jacobian, logs, np.zeros(len(self._prior)), np.ones(len(self.rows)))
        fit = FamilyFit(self._deviations_at(exponents, {**families, **self._families}))
        covariance = np.linalg.inv(self._curvature)
        for index, term in enumerate(self.terms):
            for level, name in self._places(term, {**families, **self._families}):
                known = fit.uncertainty.setdefault(level, {}).setdefault(name, {})
                for parameter in term.parameters:
                    known[parameter] = math.hypot(known.get(parameter, 0.0), float(np.sqrt(covariance[index, index])))
        return fit


def stack_parameters(calibration: Calibration, level: StackLevel) -> list[float]:
    """Parameters of a stack in the core's order, as a calibration resolves them."""
    resolved = resolve_parameters(calibration, level.engine, level.family, level.precision, generation=level.generation)
    return list(resolved.values())


def _centre(term: Term, parameter: str) -> float:
    """Where the prior of a factor, or of the seconds that a generation adds, is centred."""
    if term.level == "generation":
        return ADDED.get(term.name, HOST)[parameter]
    return OTHER.get(parameter, 1.0) if term.level == "other" else 1.0


def fitted_vendors(calibration: Calibration, vendors: Mapping[str, str]) -> set[str]:
    """Vendors of the families that a calibration was fitted on; `vendors` by family."""
    return {vendors[name] for name in calibration.seen.get("family", ()) if name in vendors}


def _without(calibration: Calibration, own: set[tuple[str, str]]) -> Calibration:
    """The calibration less its deviations at the levels and names that are fitted."""
    kept = {
        level: {name: factors for name, factors in names.items() if (level, name) not in own}
        for level, names in calibration.deviations.items()
    }
    return replace(calibration, deviations=kept)


def _stack(row: PublishedRow) -> tuple[str, ...]:
    """What has an offset of its own: a model on a chip with an engine and format, as one source ran it."""
    return row.model, row.accelerator, row.engine, row.weight_precision, row.source, row.scenario


def _has_tpot(row: PublishedRow) -> bool:
    return bool(row.tpot_s) and not row.scenario.startswith("offline")


def _measured_s(row: PublishedRow) -> float:
    """Measured time per token: per request where printed, else per chip."""
    if row.tpot_s and _has_tpot(row):
        return row.tpot_s
    if row.output_tps_per_chip:
        return 1.0 / row.output_tps_per_chip
    if row.total_tps_per_chip:
        return (row.isl + row.osl) / row.osl / row.total_tps_per_chip
    return float("nan")


LEAVE_OUT: Mapping[str, Callable[[PublishedRow, StackLevel, str], object]] = {
    "group": lambda row, _level, _vendor: (row.model, row.accelerator),
    "accelerator": lambda row, _level, _vendor: row.accelerator,
    "family": lambda _row, level, _vendor: level.family,
    "vendor": lambda _row, _level, vendor: vendor,
    "model": lambda row, _level, _vendor: row.model,
}
"""What is left out at a time: a model on a chip, a chip, a family, a vendor, a model."""
