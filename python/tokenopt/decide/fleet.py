"""The cheapest fleet for several workloads over a day, as a mixed-integer program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tokenopt.decide.fleet_plan import FleetPlan
from tokenopt.decide.fleet_rates import Rates, block_rates
from tokenopt.errors import InfeasibleError, TokenoptError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.units import MILLION, SECONDS_PER_HOUR

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_GAP = 0.005
DEFAULT_TIME_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class FleetLine:
    """What the plan takes of one offer.

    Attributes:
        accelerator, vendor, provider, region, term: The offer.
        usd_per_chip_hr: Its price.
        committed_instances: Instances paid for in every hour (0 for what is paid by the hour).
        instances_by_hour: Instances that serve, hour by hour.
        chips: Most chips in use at once.
        unused_instance_hours: Paid instance-hours that serve nothing.
        usd: Cost over the plan.
    """

    accelerator: str
    vendor: str
    provider: str
    region: str
    term: str
    usd_per_chip_hr: float
    chips_per_instance: int
    committed_instances: int
    instances_by_hour: list[int]
    chips: int
    unused_instance_hours: float
    usd: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which workload runs where.

    Attributes:
        workload: Name of the workload.
        accelerator, provider, term: The offer.
        instances_by_hour: Instances that serve it.
        tps_per_instance: Output tokens/s of an instance within the limits.
        layout: Parallel layout, `running_batch` requests at once, `tpot_ms` and `ttft_ms` they see.
    """

    workload: str
    accelerator: str
    provider: str
    term: str
    instances_by_hour: list[int]
    tps_per_instance: float
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShadowPrice:
    """What one more of something is worth, from the dual of the relaxed program (fractions of instances allowed).

    Attributes:
        what: `chips` of an offer whose availability binds, `demand` of a workload, `budget`.
        name: The offer or workload.
        usd: Saving per further chip over the plan; cost per further 1M output tokens; saving per further dollar.
    """

    what: str
    name: str
    usd: float


@dataclass(frozen=True, slots=True)
class FleetResult:
    """The cheapest plan found.

    Attributes:
        status: `optimal` within the gap, or `time limit`.
        gap: Proven distance to the best possible cost, as a share.
        usd: Cost over the plan.
        usd_per_hr: Mean cost per hour.
        usd_per_m_output_tokens: Cost over the demanded output tokens.
        hours: Hours of the plan.
        elapsed_s: Seconds of the solver.
        lines: What is taken, the dearest first.
        assignments: Which workload runs where.
        shadow_prices: What binds and what relief would be worth.
        vendors: Share of capacity by vendor.
    """

    status: str
    gap: float
    usd: float
    usd_per_hr: float
    usd_per_m_output_tokens: float
    hours: int
    elapsed_s: float
    lines: list[FleetLine]
    assignments: list[Assignment]
    shadow_prices: list[ShadowPrice]
    vendors: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON."""
        return {"schema": 1, **asdict(self)}


def fleet(
    plan: FleetPlan,
    *,
    registry: PluginRegistry | None = None,
    gap: float = DEFAULT_GAP,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> FleetResult:
    """Finds the cheapest mix of offers that serves every workload in every hour.

    Args:
        plan: Workloads, offers and rules.
        registry: Plugins; the installed ones by default.
        gap: Relative gap at which the solver may stop.
        time_limit_s: Seconds of the solver.
        report: Progress: label, step, steps.

    Returns:
        The plan with its gap, shadow prices and what is unused.

    Raises:
        InfeasibleError: No plan meets the rules; the message names those that conflict.
        TokenoptError: Nothing was found within the time limit.
    """
    registry = registry or default_registry()
    rates = block_rates(plan, registry, report)
    vendors = [registry.accelerators[entry.offer.accelerator].vendor for entry in plan.offers]
    return solve(plan, rates, vendors, gap=gap, time_limit_s=time_limit_s)


def solve(plan: FleetPlan, rates: Rates, vendors: Sequence[str], *, gap: float, time_limit_s: float) -> FleetResult:
    """Solves a plan whose rates are known; see :func:`fleet`.

    Source: mixed-integer program solved by HiGHS through `scipy.optimize.milp`.
    Assumes: demand is met hour by hour and nothing is carried over; an instance serves one workload in an hour; moving
    an instance between workloads costs nothing.
    """
    program = _Program(plan, rates, vendors)
    started = time.monotonic()
    answer = program.solve(gap, time_limit_s)
    elapsed_s = time.monotonic() - started
    if answer is None:
        raise _infeasible(program)
    values, bound_gap, is_optimal = answer
    return program.result(values, bound_gap, "optimal" if is_optimal else "time limit", elapsed_s)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one rule, so that conflicts can be named."""

    name: str
    first: int
    last: int


class _Program:
    """The program: variables, rows and the rule each row belongs to.

    Variables: blocks of offer o that serve workload w in hour class h (integers); committed instances of o (integers);
    whether a vendor counts (binary); whether an offer with a minimum is taken (binary).
    """

    def __init__(self, plan: FleetPlan, rates: Rates, vendors: Sequence[str]) -> None:
        self.plan = plan
        self.rates = rates
        self.vendors = vendors
        demands = list(zip(*(workload.demand_tps for workload in plan.workloads), strict=True))
        # Hours with the same demand are one class, solved once and weighted.
        self.classes = sorted(set(demands))
        self.class_of_hour = [self.classes.index(demand) for demand in demands]
        self.weight = [self.class_of_hour.count(index) for index in range(len(self.classes))]
        self._columns: list[tuple[float, float, int]] = []
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self.groups: list[_Group] = []
        self.serve = {
            (offer, workload, hour): self._column(self._hourly_usd(offer) * rate.block_instances * self.weight[hour])
            for (offer, workload), rate in sorted(rates.items())
            for hour in range(len(self.classes))
            if self.classes[hour][workload] > 0
        }
        self.committed = {
            index: self._column(entry.offer.usd_per_chip_hr * entry.offer.chips_per_instance * plan.hours)
            for index, entry in enumerate(plan.offers)
            if entry.is_committed
        }
        self._add_demand()
        self.availability = self._add_availability()
        self._add_minimums()
        self._add_vendors()
        self._add_budget()

    def _hourly_usd(self, index: int) -> float:
        entry = self.plan.offers[index]
        return 0.0 if entry.is_committed else entry.offer.usd_per_chip_hr * entry.offer.chips_per_instance

    def _column(self, cost: float, upper: float = float("inf")) -> int:
        self._columns.append((cost, upper, 1))
        return len(self._columns) - 1

    def _row(self, coefficients: dict[int, float], low: float, high: float) -> int:
        self._rows.append((coefficients, low, high))
        return len(self._rows) - 1

    def _close(self, name: str, first: int) -> None:
        if len(self._rows) > first:
            self.groups.append(_Group(name, first, len(self._rows)))

    def _tokens(self, offer: int, workload: int) -> float:
        return self.rates[offer, workload].tps * self.plan.offers[offer].usable_share

    def _add_demand(self) -> None:
        self.demand_rows: list[tuple[int, int, int]] = []
        for number, workload in enumerate(self.plan.workloads):
            first = len(self._rows)
            for hour, demand in enumerate(self.classes):
                wanted = demand[number] * (1.0 + self.plan.headroom)
                if wanted <= 0:
                    continue
                terms = {
                    column: self._tokens(offer, number)
                    for (offer, served, at), column in self.serve.items()
                    if served == number and at == hour
                }
                self.demand_rows.append((self._row(terms, wanted, float("inf")), number, hour))
            self._close(f"demand of {workload.name}", first)

    def _add_availability(self) -> dict[int, int]:
        """Committed capacity bounds what serves in every hour; limits bound what is taken."""
        limits: dict[int, int] = {}
        for offer, entry in enumerate(self.plan.offers):
            limit = float("inf") if entry.max_instances is None else float(entry.max_instances)
            first = len(self._rows)
            for hour in range(len(self.classes)):
                terms = {
                    column: float(self.rates[at, workload].block_instances)
                    for (at, workload, when), column in self.serve.items()
                    if at == offer and when == hour
                }
                if not terms:
                    continue
                if entry.is_committed:
                    self._row({**terms, self.committed[offer]: -1.0}, -float("inf"), 0.0)
                elif entry.max_instances is not None:
                    self._row(terms, -float("inf"), limit)
            if entry.is_committed and entry.max_instances is not None:
                limits[offer] = self._row({self.committed[offer]: 1.0}, -float("inf"), limit)
            if entry.max_instances is not None:
                self._close(f"availability of {entry.label}", first)
        return limits

    def _add_minimums(self) -> None:
        for offer, entry in enumerate(self.plan.offers):
            least = entry.offer.minimum_instances
            if least <= 1:
                continue
            most = float(min(entry.max_instances or 10**9, max(self._enough(offer), least)))
            first = len(self._rows)
            taken = [{self.committed[offer]: 1.0}] if entry.is_committed else [
                {
                    column: float(self.rates[at, workload].block_instances)
                    for (at, workload, when), column in self.serve.items()
                    if at == offer and when == hour
                }
                for hour in range(len(self.classes))
            ]  # fmt: skip
            for terms in taken:
                is_taken = self._column(0.0, 1.0)
                self._row({**terms, is_taken: -float(least)}, 0.0, float("inf"))
                self._row({**terms, is_taken: -most}, -float("inf"), 0.0)
            self._close(f"least quantity of {entry.label}", first)

    def _capacity(self) -> dict[str, dict[int, float]]:
        """Token capacity over the plan by vendor, as terms."""
        by_vendor: dict[str, dict[int, float]] = {}
        for (offer, workload, hour), column in self.serve.items():
            share = self._tokens(offer, workload) * self.weight[hour]
            by_vendor.setdefault(self.vendors[offer], {})[column] = share
        return by_vendor

    def _enough(self, offer: int) -> int:
        """Instances of an offer that could serve everything alone: a tight bound keeps the program well scaled."""
        return max(
            sum(
                (int(demand[number] * (1.0 + self.plan.headroom) / self._tokens(offer, number)) + 2)
                * self.rates[offer, number].block_instances
                for number in range(len(self.plan.workloads))
                if (offer, number) in self.rates
            )
            for demand in self.classes
        )

    def _add_vendors(self) -> None:
        plan = self.plan
        capacity = self._capacity()
        if plan.min_vendors > 1:
            first = len(self._rows)
            total = sum(sum(demand) * weight for demand, weight in zip(self.classes, self.weight, strict=True))
            counts = {}
            for terms in capacity.values():
                column = self._column(0.0, 1.0)
                counts[column] = 1.0
                self._row({**terms, column: -plan.min_vendor_share * total}, 0.0, float("inf"))
            self._row(counts, float(plan.min_vendors), float("inf"))
            self._close(f"at least {plan.min_vendors} vendors", first)
        if plan.max_vendor_share < 1.0:
            first = len(self._rows)
            for vendor, terms in capacity.items():
                rest = {
                    column: (float(other == vendor) - plan.max_vendor_share) * share
                    for other, shares in capacity.items()
                    for column, share in shares.items()
                }
                if terms:
                    self._row(rest, -float("inf"), 0.0)
            self._close(f"at most {plan.max_vendor_share:.0%} from one vendor", first)

    def _add_budget(self) -> None:
        self.budget_row: int | None = None
        if self.plan.budget_usd is None:
            return
        first = len(self._rows)
        terms = {column: cost for column, (cost, _, _) in enumerate(self._columns) if cost}
        self.budget_row = self._row(terms, -float("inf"), self.plan.budget_usd)
        self._close("budget", first)

    def _matrix(
        self, left_out: frozenset[str] = frozenset()
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.float64], list[int]]:
        import numpy as np
        from scipy.sparse import csr_array

        skipped = {row for group in self.groups if group.name in left_out for row in range(group.first, group.last)}
        # Rows that tie what serves to what is committed hold whatever rule is dropped.
        used = [row for row in range(len(self._rows)) if row not in skipped or self._is_structural(row)]
        data, rows, columns = [], [], []
        for place, row in enumerate(used):
            for column, value in self._rows[row][0].items():
                data.append(value)
                rows.append(place)
                columns.append(column)
        matrix = csr_array((data, (rows, columns)), shape=(len(used), len(self._columns)))
        low = np.array([self._rows[row][1] for row in used])
        high = np.array([self._rows[row][2] for row in used])
        return matrix, low, high, used

    def _is_structural(self, row: int) -> bool:
        return any(self._rows[row][0].get(column) == -1.0 for column in self.committed.values())

    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        import numpy as np

        return np.array([cost for cost, _, _ in self._columns]), np.array([upper for _, upper, _ in self._columns])

    def cost_usd(self, values: NDArray[np.float64]) -> float:
        """Cost of the plan behind the values."""
        return float(self._arrays()[0] @ values)

    def solve(
        self, gap: float, time_limit_s: float, left_out: frozenset[str] = frozenset()
    ) -> tuple[NDArray[np.float64], float, bool] | None:
        """Values, gap and whether the gap was reached; None when infeasible."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp

        cost, upper = self._arrays()
        matrix, low, high, _ = self._matrix(left_out)
        answer = milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=Bounds(0.0, upper),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": gap, "time_limit": time_limit_s},
        )
        if answer.status == 2:
            return None
        if answer.x is None:
            raise TokenoptError(
                f"no plan was found within {time_limit_s:g} s", ["raise --time-limit, or leave out some offers"]
            )
        return np.round(answer.x), float(answer.mip_gap or 0.0), answer.status == 0

    def is_feasible(self, left_out: frozenset[str]) -> bool:
        """Whether the rules but those left out can be met together, fractions of instances allowed."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp

        _, upper = self._arrays()
        matrix, low, high, _ = self._matrix(left_out)
        answer = milp(np.zeros(len(upper)), bounds=Bounds(0.0, upper), constraints=LinearConstraint(matrix, low, high))
        return bool(answer.status == 0)

    def shadow_prices(self) -> list[ShadowPrice]:
        """What binds in the relaxed program, and what relief would be worth."""
        duals = self._duals()
        return self._priced(duals) if duals is not None else []

    def _duals(self) -> dict[int, float] | None:
        """Worth of one more unit of each row's right side in the relaxed program, USD; None when it has no solution."""
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import vstack

        cost, upper = self._arrays()
        matrix, low, high, used = self._matrix()
        is_low, is_high = np.isfinite(low), np.isfinite(high)
        answer = linprog(
            cost,
            A_ub=vstack([matrix[is_high], -matrix[is_low]]),
            b_ub=np.concatenate([high[is_high], -low[is_low]]),
            bounds=np.stack([np.zeros(len(cost)), upper], axis=1),
            method="highs",
        )
        if answer.status != 0:
            return None
        places = [*np.flatnonzero(is_high), *np.flatnonzero(is_low)]
        return {used[place]: -float(value) for place, value in zip(places, answer.ineqlin.marginals, strict=True)}

    def _priced(self, of_row: dict[int, float]) -> list[ShadowPrice]:
        plan = self.plan
        found = []
        for group in self.groups:
            if not group.name.startswith("availability of "):
                continue
            offer = next(entry for entry in plan.offers if f"availability of {entry.label}" == group.name)
            rows = [row for row in range(group.first, group.last) if not self._is_structural(row)]
            saving = sum(of_row.get(row, 0.0) for row in rows) / offer.offer.chips_per_instance
            if saving > 1e-9:
                found.append(ShadowPrice("chips", offer.label, saving))
        for number, workload in enumerate(plan.workloads):
            usd = sum(of_row.get(row, 0.0) for row, served, _ in self.demand_rows if served == number)
            # One more token/s in every hour of the plan, as dollars per 1M tokens.
            usd_per_m = usd / (plan.hours * SECONDS_PER_HOUR) * MILLION
            if usd_per_m > 1e-12:
                found.append(ShadowPrice("demand", workload.name, usd_per_m))
        if self.budget_row is not None and of_row.get(self.budget_row, 0.0) > 1e-9:
            found.append(ShadowPrice("budget", "budget", of_row[self.budget_row]))
        return found

    def result(self, values: NDArray[np.float64], gap: float, status: str, elapsed_s: float) -> FleetResult:
        """The plan in words."""
        plan = self.plan
        cost, _ = self._arrays()
        usd = self.cost_usd(values)
        lines, assignments = [], []
        for index, entry in enumerate(plan.offers):
            line = self._line(index, values, cost)
            if line is not None:
                lines.append(line)
            for number, workload in enumerate(plan.workloads):
                by_class = [
                    int(values[self.serve[index, number, hour]]) if (index, number, hour) in self.serve else 0
                    for hour in range(len(self.classes))
                ]
                if not any(by_class):
                    continue
                rate = self.rates[index, number]
                solution = rate.solution
                assignments.append(
                    Assignment(
                        workload=workload.name,
                        accelerator=entry.offer.accelerator,
                        provider=entry.offer.provider,
                        term=entry.offer.term,
                        instances_by_hour=[by_class[at] * rate.block_instances for at in self.class_of_hour],
                        tps_per_instance=rate.tps / rate.block_instances,
                        layout={
                            "engine": solution.engine,
                            "weight_precision": solution.weight_precision,
                            **{name: value for name, value in asdict(solution.layout).items() if value is not None},
                            "running_batch": solution.running_batch,
                            "tpot_ms": solution.tpot_ms,
                            "ttft_ms": solution.ttft_ms,
                        },
                    )
                )
        demanded = sum(sum(workload.demand_tps) for workload in plan.workloads) * SECONDS_PER_HOUR
        capacity = {
            vendor: sum(share * float(values[column]) for column, share in terms.items())
            for vendor, terms in self._capacity().items()
        }
        whole = sum(capacity.values())
        return FleetResult(
            status=status,
            gap=gap,
            usd=usd,
            usd_per_hr=usd / plan.hours,
            usd_per_m_output_tokens=usd / demanded * MILLION if demanded else 0.0,
            hours=plan.hours,
            elapsed_s=elapsed_s,
            lines=sorted(lines, key=lambda line: (-line.usd, line.accelerator, line.provider)),
            assignments=assignments,
            shadow_prices=self.shadow_prices(),
            vendors={vendor: share / whole for vendor, share in sorted(capacity.items()) if share > 0},
        )

    def _line(self, index: int, values: NDArray[np.float64], cost: NDArray[np.float64]) -> FleetLine | None:
        entry = self.plan.offers[index]
        offer = entry.offer
        by_class = [0] * len(self.classes)
        usd = 0.0
        for (at, workload, hour), column in self.serve.items():
            if at == index:
                by_class[hour] += int(values[column]) * self.rates[index, workload].block_instances
                usd += float(cost[column] * values[column])
        committed = 0
        if entry.is_committed:
            column = self.committed[index]
            committed = int(values[column])
            usd += float(cost[column] * values[column])
        if not committed and not any(by_class):
            return None
        by_hour = [by_class[at] for at in self.class_of_hour]
        return FleetLine(
            accelerator=offer.accelerator,
            vendor=self.vendors[index],
            provider=offer.provider,
            region=offer.region,
            term=offer.term,
            usd_per_chip_hr=offer.usd_per_chip_hr,
            chips_per_instance=offer.chips_per_instance,
            committed_instances=committed,
            instances_by_hour=by_hour,
            chips=max(committed, *by_hour) * offer.chips_per_instance,
            unused_instance_hours=float(sum(committed - used for used in by_hour)) if committed else 0.0,
            usd=usd,
        )


def _infeasible(program: _Program) -> InfeasibleError:
    """Names a smallest set of rules that cannot hold together: drops rules one by one while the rest still conflicts."""
    names = [group.name for group in program.groups]
    everything = frozenset(names)
    needed = set(names)
    for name in names:
        trial = everything - (needed - {name})
        if not program.is_feasible(trial):
            needed.discard(name)
    conflict = [name for name in names if name in needed]
    hints = []
    if "budget" in conflict:
        unbound = program.solve(DEFAULT_GAP, DEFAULT_TIME_LIMIT_S, frozenset({"budget"}))
        if unbound is not None:
            hints.append(f"without the budget the cheapest plan costs ${program.cost_usd(unbound[0]):,.2f}")
    if not conflict or program.is_feasible(everything - frozenset(conflict)):
        return InfeasibleError("no plan meets every rule with whole instances", hints)
    return InfeasibleError(f"these rules conflict: {'; '.join(conflict)}", hints or ["relax one of them"])
