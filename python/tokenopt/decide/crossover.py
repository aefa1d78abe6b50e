"""Until when is it the cheapest? Winners over a grid of two inputs, and the exact points where they change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenopt.decide.finance import check
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.problem import CompiledProblem, build_problem
from tokenopt.request import SearchRequest, target_output_tps, tpot_limit_ms
from tokenopt.serve import interval_factors
from tokenopt.units import MS_PER_S

EQUAL_WITHIN = 1e-3
"""Costs that differ by less count as equal at a crossover."""
ROOT_WITHIN = 1e-7
"""Relative width of the bracket at which root finding stops."""
MOST_POINTS = 10_000
MOST_RIVALS = 3
"""Accelerators at each end of a step of the grid that are followed in between."""

_QUERY_AXES = {"slo-ms": "tpot_s", "ttft-ms": "ttft_s", "e2e-ms": "e2e_s", "target-tps": "output_tps"}
_RANGES: Mapping[str, tuple[float, float]] = {
    "slo-ms": (8.0, 200.0), "ttft-ms": (100.0, 10_000.0), "e2e-ms": (2_000.0, 200_000.0), "target-tps": (1e3, 1e7),
    "isl": (128.0, 16_384.0), "osl": (64.0, 8_192.0), "prefix-hit": (0.0, 0.9), "utilization": (0.1, 1.0),
    "kwh": (0.03, 0.3), "price": (0.5, 12.0),
}  # fmt: skip
"""Range of each axis when none is given."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One input that is varied.

    Attributes:
        name: `slo-ms`, `ttft-ms`, `e2e-ms`, `target-tps`, `isl`, `osl`, `prefix-hit`, `utilization`, `kwh` or
            `price:KEY`.
        values: Grid, rising.
    """

    name: str
    values: tuple[float, ...]

    @property
    def is_logarithmic(self) -> bool:
        """Whether steps are ratios."""
        return self.values[0] > 0 and self.values[-1] / self.values[0] > 4.0


@dataclass(frozen=True, slots=True)
class Contender:
    """The cheapest configuration of one accelerator at one point, with real-valued batch and fleet."""

    accelerator: str
    usd_per_m_tokens: float
    usd_per_chip_hr: float
    engine: str
    layout: dict[str, Any]
    batch: float
    tpot_ms: float
    ttft_ms: float
    log_factor: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid.

    Attributes:
        x, y: The values.
        winner: The cheapest accelerator; empty where nothing meets the limits.
        usd_per_m_tokens: Its cost.
        runner_up: The second cheapest.
        margin: How much more the runner-up costs, as a share.
        is_sure: Whether the winner's P90 lies below the runner-up's P10.
    """

    x: float
    y: float
    winner: str
    usd_per_m_tokens: float | None
    runner_up: str
    margin: float | None
    is_sure: bool


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where the cheapest accelerator changes along the first axis.

    Attributes:
        y: Value of the second axis.
        x: Value of the first axis at the change.
        before, after: The cheapest accelerator on either side; empty = nothing meets the limits.
        usd_before, usd_after: What both cost at `x`, USD per million tokens; None where one cannot serve.
        kind: `cost` (both cost the same), `limit` (one stops meeting the limits) or `jump` (a layout becomes possible).
    """

    y: float
    x: float
    before: str
    after: str
    usd_before: float | None
    usd_after: float | None
    kind: str


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Price at which an accelerator would tie with the best of the others, at the point that was asked about.

    Attributes:
        accelerator: The chip.
        usd_per_chip_hr: Its price now.
        break_even_usd_per_chip_hr: The price at which it ties: below it wins, above it loses.
        usd_per_m_tokens: Its cost now.
        is_winner: Whether it is the cheapest now.
    """

    accelerator: str
    usd_per_chip_hr: float
    break_even_usd_per_chip_hr: float
    usd_per_m_tokens: float
    is_winner: bool


@dataclass(frozen=True, slots=True)
class CrossoverResult:
    """The map of winners.

    Attributes:
        model: Model key.
        x, y: The axes.
        cells: The grid, row by row of `y`.
        crossovers: Where the winner changes along `x`, for each `y`.
        break_even: Prices at which each accelerator would tie, the nearest first.
        ranked_terms: Kinds of price that compete.
    """

    model: str
    x: Axis
    y: Axis
    cells: list[Cell]
    crossovers: list[Crossover]
    break_even: list[BreakEven]
    ranked_terms: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON."""
        return {"schema": 1, **asdict(self), "ranked_terms": list(self.ranked_terms)}


def axis(name: str, span: tuple[float, float] | None = None, points: int = 9) -> Axis:
    """An axis with an even grid, in ratios where the range is wide.

    Args:
        name: Name of the axis.
        span: Lowest and highest value; a sensible range by default.
        points: Values of the grid.

    Returns:
        The axis.

    Raises:
        SpecError: The name is unknown or the range cannot be used.
    """
    kind = name.partition(":")[0]
    if kind not in _RANGES or (kind == "price") != (":" in name):
        raise SpecError(
            f"axis {name!r} is not known", [f"axes: {', '.join(n for n in _RANGES if n != 'price')}, price:KEY"]
        )
    low, high = span or _RANGES[kind]
    check(f"lower end of {name}", low, 0.0, 1e12)
    check(f"upper end of {name}", high, 0.0, 1e12)
    if low >= high or (low == 0.0 and kind != "prefix-hit"):
        raise SpecError(f"range of {name} is {low:g} to {high:g}, expected a rising range above 0")
    if kind in ("prefix-hit", "utilization") and high > 1.0:
        raise SpecError(f"range of {name} ends at {high:g}, expected at most 1")
    check(f"points of {name}", points, 2, 200)
    is_wide = low > 0 and high / low > 4.0
    steps = [index / (points - 1) for index in range(points)]
    values = [low * (high / low) ** s if is_wide else low + (high - low) * s for s in steps]
    return Axis(name, tuple(values))


def crossover(
    request: SearchRequest,
    x: Axis,
    y: Axis,
    *,
    registry: PluginRegistry | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> CrossoverResult:
    """Finds the cheapest accelerator over a grid and the exact points where it changes along the first axis.

    Costs are those of the continuous limit: the batch at which a limit binds and the number of units are real numbers,
    so that two costs can be equal. Root finding is Brent's method on the logarithm of their ratio.

    Args:
        request: Model, scope, prices, and the limits that are not varied.
        x: First axis, along which changes are found.
        y: Second axis.
        registry: Plugins; the installed ones by default.
        report: Progress: label, step, steps.

    Returns:
        Map, crossovers and break-even prices at the request's own limits.

    Raises:
        SpecError: An axis cannot be used with this request.
        InfeasibleError: Nothing meets the limits anywhere on the grid.
    """
    if x.name == y.name:
        raise SpecError(f"both axes are {x.name}: name two")
    if len(x.values) * len(y.values) > MOST_POINTS:
        raise SpecError(f"the grid has {len(x.values) * len(y.values)} points, expected at most {MOST_POINTS}")
    costs = _Costs(request, registry or default_registry())
    grid = [[{x.name: right, y.name: up} for right in x.values] for up in y.values]
    rows = costs.table(grid, report)
    cells = [
        _cell(point[x.name], point[y.name], contenders)
        for points, found in zip(grid, rows, strict=True)
        for point, contenders in zip(points, found, strict=True)
    ]
    if not any(cell.winner for cell in cells):
        raise InfeasibleError(
            f"no accelerator meets the limits anywhere on the grid of {x.name} and {y.name}",
            ["widen the ranges, or relax the other limits"],
        )
    crossovers = []
    for number, (up, found) in enumerate(zip(y.values, rows, strict=True)):
        report("crossovers", number, len(y.values))

        for left in range(len(x.values) - 1):
            # Only who is near the front at either end can lead in between.
            rivals = frozenset(
                entry.accelerator for ends in found[left : left + 2] for entry in _ranked(ends)[:MOST_RIVALS]
            )

            def at(value: float, up: float = up, rivals: frozenset[str] = rivals) -> dict[str, Contender]:
                return costs.at({x.name: value, y.name: up}, rivals)

            crossovers += _changes(at, x.values[left], found[left], x.values[left + 1], found[left + 1], up)
    return CrossoverResult(
        model=costs.problem.model.key,
        x=x,
        y=y,
        cells=cells,
        crossovers=crossovers,
        break_even=_break_even(costs.at({})),
        ranked_terms=costs.problem.ranked_terms,
    )


class _Costs:
    """Costs of every accelerator at points of the axes; one compiled problem for each value of the axes that need it."""

    def __init__(self, request: SearchRequest, registry: PluginRegistry) -> None:
        self._request = request
        self._registry = registry
        self.problem = build_problem(request, registry)
        self._compiled: dict[str, CompiledProblem] = {}

    def at(self, point: Mapping[str, float], only: frozenset[str] = frozenset()) -> dict[str, Contender]:
        """Contenders by accelerator at one point; `only` some of them, where that is enough."""
        return self._answer(point, [self._query(point)], only)[0]

    def table(
        self, grid: Sequence[Sequence[Mapping[str, float]]], report: Callable[[str, int, int], None]
    ) -> list[list[dict[str, Contender]]]:
        """Contenders at every point of a grid, points with the same problem together."""
        together: dict[tuple[tuple[str, float], ...], list[tuple[int, int]]] = {}
        for up, points in enumerate(grid):
            for right, point in enumerate(points):
                key = tuple((name, value) for name, value in sorted(point.items()) if name not in _QUERY_AXES)
                together.setdefault(key, []).append((up, right))
        table: list[list[dict[str, Contender]]] = [[{} for _ in points] for points in grid]
        for step, places in enumerate(together.values()):
            report("grid", step, len(together))
            points = [grid[up][right] for up, right in places]
            answers = self._answer(points[0], [self._query(point) for point in points])
            for (up, right), found in zip(places, answers, strict=True):
                table[up][right] = found
        return table

    def _query(self, point: Mapping[str, float]) -> dict[str, float | None]:
        request = self._request
        limit = tpot_limit_ms(request)
        if request.min_interactivity is not None:
            limit = min(limit or math.inf, MS_PER_S / request.min_interactivity)
        base = {
            "slo-ms": limit, "ttft-ms": request.ttft_ms, "e2e-ms": request.e2e_ms,
            "target-tps": target_output_tps(request),
        }  # fmt: skip
        query: dict[str, float | None] = {}
        for name, field in _QUERY_AXES.items():
            value = point.get(name, base[name])
            query[field] = value / MS_PER_S if value is not None and name.endswith("-ms") else value
        return query

    def _answer(
        self,
        point: Mapping[str, float],
        queries: Sequence[Mapping[str, float | None]],
        only: frozenset[str] = frozenset(),
    ) -> list[dict[str, Contender]]:
        from tokenopt import _core

        problem = self._problem(point, only)
        share = point.get("utilization", self._request.utilization)
        answer = json.loads(_core.continuous(json.dumps(problem.core), json.dumps(queries)))
        found: list[dict[str, Contender]] = [{} for _ in queries]
        for points in answer:
            for place, raw in enumerate(points):
                if raw is not None:
                    contender = _contender(problem, raw, share)
                    found[place][contender.accelerator] = contender
        return found

    def _problem(self, point: Mapping[str, float], only: frozenset[str]) -> CompiledProblem:
        changes: dict[str, Any] = {"hardware": tuple(sorted(only)), "vendor": ()} if only else {}
        tco: dict[str, float | str] = dict(self._request.tco)
        for name, value in point.items():
            if name in ("isl", "osl"):
                changes[name] = value
            elif name == "prefix-hit":
                changes["prefix_hit"] = value
            elif name.startswith("price:"):
                changes["price"] = {**self._request.price, name.partition(":")[2]: value}
            elif name == "kwh":
                if self._request.term != "owned":
                    raise SpecError("electricity moves the owner's cost alone: add --term owned")
                tco["usd_per_kwh"] = value
            elif name == "utilization" and self._request.term == "owned":
                tco["utilization"] = value
        if tco != self._request.tco:
            changes["tco"] = tco
        if not changes:
            return self.problem
        key = json.dumps(changes, sort_keys=True, default=str)
        if key not in self._compiled:
            self._compiled[key] = build_problem(replace(self._request, **changes), self._registry)
        return self._compiled[key]


def _contender(problem: CompiledProblem, raw: Mapping[str, Any], utilization: float) -> Contender:
    stack = problem.stacks[raw["stack"]]
    low, high = interval_factors(problem, raw)
    return Contender(
        accelerator=stack.accelerator.key,
        usd_per_m_tokens=raw["usd_per_m_tokens"] / utilization,
        usd_per_chip_hr=problem.offers[raw["offer"]].usd_per_chip_hr,
        engine=stack.engine.name,
        layout=raw["layout"],
        batch=raw["batch"],
        tpot_ms=raw["tpot_ms"],
        ttft_ms=raw["ttft_ms"],
        log_factor=0.5 * math.log(high / low),
    )


def _ranked(contenders: Mapping[str, Contender]) -> list[Contender]:
    return sorted(contenders.values(), key=lambda entry: (entry.usd_per_m_tokens, entry.accelerator))


def _cell(right: float, up: float, contenders: Mapping[str, Contender]) -> Cell:
    ranked = _ranked(contenders)
    if not ranked:
        return Cell(right, up, "", None, "", None, False)
    best = ranked[0]
    if len(ranked) == 1:
        return Cell(right, up, best.accelerator, best.usd_per_m_tokens, "", None, True)
    second = ranked[1]
    distance = math.log(second.usd_per_m_tokens / best.usd_per_m_tokens)
    return Cell(
        x=right,
        y=up,
        winner=best.accelerator,
        usd_per_m_tokens=best.usd_per_m_tokens,
        runner_up=second.accelerator,
        margin=math.expm1(distance),
        is_sure=distance > best.log_factor + second.log_factor,
    )


def _winner(contenders: Mapping[str, Contender]) -> str:
    ranked = _ranked(contenders)
    return ranked[0].accelerator if ranked else ""


def _changes(
    at: Callable[[float], dict[str, Contender]],
    left: float,
    at_left: Mapping[str, Contender],
    right: float,
    at_right: Mapping[str, Contender],
    up: float,
    depth: int = 0,
) -> list[Crossover]:
    """Every change of the winner between two points, a third winner in between included."""
    before, after = _winner(at_left), _winner(at_right)
    most_depth = 12
    if before == after or depth > most_depth:
        return []
    root = _root(at, before, after, left, right)
    here = at(root)
    between = _winner(here)
    if between not in (before, after) and between:
        usd = here[between].usd_per_m_tokens
        tied = [here[name].usd_per_m_tokens for name in (before, after) if name in here]
        if not tied or min(tied) > usd * (1.0 + EQUAL_WITHIN):
            return _changes(at, left, at_left, root, here, up, depth + 1) + _changes(
                at, root, here, right, at_right, up, depth + 1
            )
    usd_before = here[before].usd_per_m_tokens if before in here else None
    usd_after = here[after].usd_per_m_tokens if after in here else None
    if usd_before is None or usd_after is None:
        kind = "limit"
    else:
        kind = "cost" if abs(usd_before / usd_after - 1.0) <= EQUAL_WITHIN else "jump"
    return [Crossover(up, root, before, after, usd_before, usd_after, kind)]


def _root(at: Callable[[float], dict[str, Contender]], before: str, after: str, left: float, right: float) -> float:
    """Where `before` stops being cheaper than `after`.

    Brent's method where both can serve on the whole bracket; else halving on who wins, since a cost that is not there
    has no value to interpolate.
    """
    from scipy.optimize import brentq

    def gap(value: float) -> float:
        here = at(value)
        if before not in here and after not in here:
            return math.nan
        if before not in here:
            return math.inf
        if after not in here:
            return -math.inf
        return math.log(here[before].usd_per_m_tokens / here[after].usd_per_m_tokens)

    if before and after:
        ends = gap(left), gap(right)
        if all(map(math.isfinite, ends)) and ends[0] < 0 < ends[1]:
            value: float = brentq(gap, left, right, xtol=ROOT_WITHIN * right, rtol=1e-12)
            return value
    low, high = left, right
    while high - low > ROOT_WITHIN * high:
        middle = 0.5 * (low + high)
        here = at(middle)
        if _winner(here) == before or (before in here and gap(middle) < 0):
            low = middle
        else:
            high = middle
    return high


def _break_even(contenders: Mapping[str, Contender]) -> list[BreakEven]:
    """Cost follows the price in proportion, so the price of a tie is the price now times the ratio of costs."""
    ranked = _ranked(contenders)
    entries = []
    for place, entry in enumerate(ranked):
        rival = ranked[0] if place else ranked[1] if len(ranked) > 1 else None
        if rival is None:
            continue
        entries.append(
            BreakEven(
                accelerator=entry.accelerator,
                usd_per_chip_hr=entry.usd_per_chip_hr,
                break_even_usd_per_chip_hr=entry.usd_per_chip_hr * rival.usd_per_m_tokens / entry.usd_per_m_tokens,
                usd_per_m_tokens=entry.usd_per_m_tokens,
                is_winner=place == 0,
            )
        )
    return entries
