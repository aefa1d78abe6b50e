"""Whether predictions lead to the right purchase: the ranking of accelerators, and the regret of a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tokenopt.errors import MissingDataError
from tokenopt.measured.rows import CompiledRows
from tokenopt.plugins import PluginRegistry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTERACTIVITIES = (10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0)
"""Limits on output tokens/s a user sees at which accelerators are ranked."""
LEAST_ACCELERATORS = 3
NEARLY_CHEAPEST = 1.10
REGRET_LIMITS = (20.0, 50.0, 100.0)
"""Limits at which the choice within a curve set is judged: reading speed, a quick assistant, an agent."""
LEAST_POINTS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A measured configuration with its prediction.

    Attributes:
        accelerator: Catalogue key.
        usd_per_chip_hr: Owner's cost.
        tps_per_user: Measured output tokens/s a user sees.
        tps_per_chip: Measured output tokens/s per chip.
        predicted_tps_per_user, predicted_tps_per_chip: The same as predicted.
    """

    accelerator: str
    usd_per_chip_hr: float
    tps_per_user: float
    tps_per_chip: float
    predicted_tps_per_user: float
    predicted_tps_per_chip: float

    @property
    def cost(self) -> float:
        """Measured cost of a token, up to a constant."""
        return self.usd_per_chip_hr / self.tps_per_chip

    @property
    def predicted_cost(self) -> float:
        """Predicted cost of a token, up to the same constant."""
        return self.usd_per_chip_hr / self.predicted_tps_per_chip


@dataclass(frozen=True, slots=True)
class Ranking:
    """The accelerator that the model calls cheapest for one model, workload and interactivity.

    Attributes:
        ratio: Measured cost of the chosen accelerator over that of the measured cheapest; None where the chosen one
            was not measured at this interactivity.
    """

    model: str
    isl: float
    osl: float
    min_interactivity: float
    accelerators: int
    chosen: str
    cheapest: str
    ratio: float | None

    @property
    def is_right(self) -> bool:
        """Whether the chosen accelerator is the cheapest, or nearly."""
        return self.ratio is not None and self.ratio <= NEARLY_CHEAPEST


@dataclass(frozen=True, slots=True)
class Regret:
    """What the model's choice in one curve set costs over the best choice.

    Attributes:
        percent: Measured cost of the chosen configuration over the best measured cost, minus one, in percent.
        shortfall_percent: How far the chosen configuration's measured interactivity stays below the limit.
    """

    model: str
    accelerator: str
    engine: str
    weight_precision: str
    isl: float
    osl: float
    min_interactivity: float
    percent: float
    shortfall_percent: float


def owner_prices(registry: PluginRegistry) -> dict[str, float]:
    """Owner's cost per chip-hour of a hyperscaler, by accelerator.

    Raises:
        MissingDataError: No plugin has such prices.
    """
    prices: dict[str, float] = {}
    for offer in registry.offers:
        if offer.term == "owned" and offer.instance_type.endswith("(hyperscaler)"):
            prices[offer.accelerator] = min(prices.get(offer.accelerator, offer.usd_per_chip_hr), offer.usd_per_chip_hr)
    if not prices:
        raise MissingDataError("no plugin has owned prices of a hyperscaler, install tokenopt-prices-snapshot")
    return prices


def points_of(
    compiled: CompiledRows, predictions: NDArray[np.float64], prices: Mapping[str, float]
) -> list[tuple[int, Point]]:
    """Scored rows whose accelerator has a price, with their index."""
    found = []
    for index, row in enumerate(compiled.rows):
        tpot_s, _, tps, _ = predictions[index]
        if row.is_scored and row.accelerator in prices and tpot_s == tpot_s:
            point = Point(
                row.accelerator,
                prices[row.accelerator],
                1.0 / row.tpot_s,
                row.output_tps_per_chip,
                1.0 / tpot_s,
                float(tps),
            )
            found.append((index, point))
    return found


def rank(compiled: CompiledRows, predictions: NDArray[np.float64], prices: Mapping[str, float]) -> list[Ranking]:
    """Every comparison of at least three accelerators measured on one model, workload and interactivity."""
    groups: dict[tuple[str, float, float], list[Point]] = {}
    for index, point in points_of(compiled, predictions, prices):
        row = compiled.rows[index]
        groups.setdefault((row.model, row.isl, row.osl), []).append(point)
    found = []
    for (model, isl, osl), points in sorted(groups.items()):
        for limit in INTERACTIVITIES:
            measured = _cheapest([point for point in points if point.tps_per_user >= limit], predicted=False)
            predicted = _cheapest([point for point in points if point.predicted_tps_per_user >= limit], predicted=True)
            if len(measured) < LEAST_ACCELERATORS or not predicted:
                continue
            chosen = min(predicted, key=lambda name: (predicted[name], name))
            cheapest = min(measured, key=lambda name: (measured[name], name))
            ratio = measured[chosen] / measured[cheapest] if chosen in measured else None
            found.append(Ranking(model, isl, osl, limit, len(measured), chosen, cheapest, ratio))
    return found


def _cheapest(allowed: Sequence[Point], *, predicted: bool) -> dict[str, float]:
    """Least cost of each accelerator among points that meet a limit."""
    costs: dict[str, float] = {}
    for point in allowed:
        cost = point.predicted_cost if predicted else point.cost
        costs[point.accelerator] = min(costs.get(point.accelerator, cost), cost)
    return costs


def regrets(compiled: CompiledRows, predictions: NDArray[np.float64], prices: Mapping[str, float]) -> list[Regret]:
    """What choosing by prediction costs in every measured curve set, at three limits on interactivity."""
    groups: dict[tuple[str, str, str, str, float, float], list[Point]] = {}
    for index, point in points_of(compiled, predictions, prices):
        row = compiled.rows[index]
        groups.setdefault((*row.stack, row.isl, row.osl), []).append(point)
    found = []
    for key, points in sorted(groups.items()):
        if len(points) < LEAST_POINTS:
            continue
        for limit in REGRET_LIMITS:
            meets = [point for point in points if point.predicted_tps_per_user >= limit]
            best = min((point.cost for point in points if point.tps_per_user >= limit), default=None)
            if best is None:
                continue
            if not meets:
                # Nothing is predicted to meet the limit: the fastest is what a buyer would be offered.
                meets = [max(points, key=lambda point: point.predicted_tps_per_user)]
            chosen = min(meets, key=lambda point: point.predicted_cost)
            found.append(
                Regret(
                    *key,
                    min_interactivity=limit,
                    percent=100.0 * max(chosen.cost / best - 1.0, 0.0),
                    shortfall_percent=100.0 * max(1.0 - chosen.tps_per_user / limit, 0.0),
                )
            )
    return found


def ranking_summary(rankings: Sequence[Ranking], label: str) -> dict[str, Any]:
    """Share of right rankings, and every case, for JSON."""
    right = sum(ranking.is_right for ranking in rankings)
    return {
        "schema": 1,
        "label": label,
        "cases": len(rankings),
        "right": right,
        "share": right / len(rankings) if rankings else None,
        "rankings": [{**asdict(ranking), "is_right": ranking.is_right} for ranking in rankings],
    }


def regret_summary(found: Sequence[Regret], label: str) -> dict[str, Any]:
    """Median and P90 of regret, and every case, for JSON."""
    import numpy as np

    percents = [regret.percent for regret in found]
    shortfalls = [regret.shortfall_percent for regret in found]
    return {
        "schema": 1,
        "label": label,
        "cases": len(found),
        "median_percent": float(np.median(percents)) if found else None,
        "p90_percent": float(np.percentile(percents, 90)) if found else None,
        "misses_limit_by_over_10_percent": sum(value > 10.0 for value in shortfalls),
        "regrets": [asdict(regret) for regret in found],
    }
