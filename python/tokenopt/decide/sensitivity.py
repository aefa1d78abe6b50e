"""Which inputs move the answer, and how likely each accelerator is the cheapest within the intervals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenopt.decide.finance import check
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.prices.tco import DEFAULTS
from tokenopt.problem import build_problem
from tokenopt.request import SearchRequest, tpot_limit_ms
from tokenopt.serve import SearchResult, Solution, run

DEFAULT_DRAWS = 100_000
DEFAULT_SHARED_VARIANCE = 0.5
"""Share of the variance that chips of one family have in common: left-out errors of the calibration are about as much
an offset of the family as of the single chip."""
RIVAL_COST = 3.0
"""Accelerators that cost more than this many times the best are not searched again when an input moves: no swing tried
here brings them back."""
_P90_OF_NORMAL = 1.2816


@dataclass(frozen=True, slots=True)
class Swing:
    """What one input does to the answer.

    Attributes:
        name: The input.
        low, base, high: Values tried, in words.
        usd_low, usd_high: Cheapest $ per 1M tokens at those values; None where nothing meets the limits.
        winner_low, winner_high: The cheapest accelerator there.
        is_decisive: Whether the cheapest accelerator changes.
    """

    name: str
    low: str
    base: str
    high: str
    usd_low: float | None
    usd_high: float | None
    winner_low: str
    winner_high: str
    is_decisive: bool

    @property
    def width(self) -> float:
        """Ratio of the dearer to the cheaper end; infinite where one end is out of reach."""
        if self.usd_low is None or self.usd_high is None:
            return math.inf
        return max(self.usd_low, self.usd_high) / min(self.usd_low, self.usd_high)


@dataclass(frozen=True, slots=True)
class Chance:
    """Chances of one accelerator.

    Attributes:
        accelerator, vendor: The chip.
        usd_per_m_tokens: Its median cost.
        log_sd: Log standard deviation of true over predicted cost.
        probability: Chance that it is the cheapest.
        within_tenth: Chance that it costs at most a tenth more than the cheapest.
        regret: Expected loss of choosing it, as a share of the cheapest cost.
    """

    accelerator: str
    vendor: str
    usd_per_m_tokens: float
    log_sd: float
    probability: float
    within_tenth: float
    regret: float


@dataclass(frozen=True, slots=True)
class SensitivityResult:
    """What moves the answer, and how sure it is.

    Attributes:
        best: The cheapest configuration.
        swings: Inputs, the one that moves most first.
        chances: Accelerators, the likeliest first.
        draws: Draws behind the chances.
        draws_s: Seconds they took.
        shared_variance: Share of the variance that a family has in common.
        price_log_sd: Log standard deviation of prices taken into account.
    """

    best: Solution
    swings: list[Swing]
    chances: list[Chance]
    draws: int
    draws_s: float
    shared_variance: float
    price_log_sd: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON; an end out of reach is null."""
        return {"schema": 1, **asdict(self)}


def sensitivity(
    request: SearchRequest,
    *,
    draws: int = DEFAULT_DRAWS,
    shared_variance: float = DEFAULT_SHARED_VARIANCE,
    price_log_sd: float = 0.0,
    seed: int = 0,
    registry: PluginRegistry | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> SensitivityResult:
    """Moves one input at a time, then all costs at once within their intervals.

    Args:
        request: What a search takes.
        draws: Draws of all costs.
        shared_variance: Share of the variance that chips of a family have in common, 0 to 1.
        price_log_sd: Log standard deviation of prices, on top of the calibration's.
        seed: Seed of the draws.
        registry: Plugins; the installed ones by default.
        report: Progress: label, step, steps.

    Returns:
        Swings and chances.

    Raises:
        SpecError: An argument cannot be used.
        InfeasibleError: Nothing meets the limits as they are.
    """
    check("draws", draws, 1, 1e8)
    check("shared_variance", shared_variance, 0.0, 1.0)
    check("price_sd", price_log_sd, 0.0, 3.0)
    registry = registry or default_registry()
    base = _search(request, registry)
    swings = _swings(request, base, registry, report)
    started = time.monotonic()
    chances = _chances(base.by_accelerator, registry, draws, shared_variance, price_log_sd, seed)
    return SensitivityResult(
        best=base.best[0],
        swings=sorted(swings, key=lambda swing: (-swing.width, swing.name)),
        chances=chances,
        draws=draws,
        draws_s=time.monotonic() - started,
        shared_variance=shared_variance,
        price_log_sd=price_log_sd,
    )


def _search(request: SearchRequest, registry: PluginRegistry) -> SearchResult:
    return run(build_problem(request, registry), registry)


def _swings(
    request: SearchRequest,
    base: SearchResult,
    registry: PluginRegistry,
    report: Callable[[str, int, int], None],
) -> list[Swing]:
    best = base.by_accelerator[0]
    rivals = [s for s in base.by_accelerator if s.usd_per_m_tokens <= RIVAL_COST * best.usd_per_m_tokens]
    narrow = replace(request, hardware=tuple(solution.accelerator for solution in rivals), vendor=(), top=1)
    swings = [_efficiency_swing(best, rivals)]
    moves = _moves(narrow, best)
    for step, (name, low, middle, high, make) in enumerate(moves):
        report(name, step, len(moves))
        ends = [_end(make, value, registry) for value in (low, high)]
        if ends[0] == ends[1] == (best.usd_per_m_tokens, best.accelerator):
            continue
        swings.append(
            Swing(
                name=name,
                low=f"{low:g}",
                base=f"{middle:g}",
                high=f"{high:g}",
                usd_low=ends[0][0],
                usd_high=ends[1][0],
                winner_low=ends[0][1],
                winner_high=ends[1][1],
                is_decisive=any(winner != best.accelerator for _, winner in ends),
            )
        )
    return swings


_Move = tuple[str, float, float, float, Callable[[float], SearchRequest]]


def _moves(request: SearchRequest, best: Solution) -> list[_Move]:
    """Inputs with the values tried: a quarter each way, within what is possible."""
    moves: list[_Move] = []

    def quarter(name: str, value: float, make: Callable[[float], SearchRequest], most: float = math.inf) -> None:
        moves.append((name, 0.75 * value, value, min(1.25 * value, most), make))

    usd = best.offer.usd_per_chip_hr
    key = best.accelerator
    quarter(f"price of {key}, $/chip-hr", usd, lambda value: _with_price(request, best, value))
    quarter("isl", request.isl, lambda value: replace(request, isl=round(value)))
    quarter("osl", request.osl, lambda value: replace(request, osl=round(value)))
    limit = tpot_limit_ms(request)
    if limit is not None:
        quarter("slo_ms", limit, lambda value: replace(request, slo_ms=value, tpot_ms=None))
    if request.ttft_ms is not None:
        quarter("ttft_ms", request.ttft_ms, lambda value: replace(request, ttft_ms=value))
    if request.min_interactivity is not None:
        quarter("min_interactivity", request.min_interactivity, lambda v: replace(request, min_interactivity=v))
    if request.target_tps is not None:
        quarter("target_tps", request.target_tps, lambda value: replace(request, target_tps=value))
    quarter("utilization", request.utilization, lambda value: replace(request, utilization=value), 1.0)
    hit = request.prefix_hit
    moves.append(
        ("prefix_hit", max(0.0, hit - 0.25), hit, min(0.95, hit + 0.25), lambda v: replace(request, prefix_hit=v))
    )
    if request.term == "owned":
        kwh = float(request.tco.get("usd_per_kwh", DEFAULTS["usd_per_kwh"].value))
        moves.append(
            (
                "usd_per_kwh",
                0.5 * kwh,
                kwh,
                2.0 * kwh,
                lambda v: replace(request, tco={**request.tco, "usd_per_kwh": v}),
            )
        )
    acceptance = request.acceptance
    if acceptance is not None:
        moves.append(
            (
                "acceptance", max(0.05, acceptance - 0.15), acceptance, min(0.95, acceptance + 0.15),
                lambda value: replace(request, acceptance=value),
            )
        )  # fmt: skip
    return moves


def _with_price(request: SearchRequest, best: Solution, usd: float) -> SearchRequest:
    return replace(request, price={**request.price, best.accelerator: usd})


def _end(make: Callable[[float], SearchRequest], value: float, registry: PluginRegistry) -> tuple[float | None, str]:
    try:
        solution = _search(make(value), registry).by_accelerator[0]
    except (InfeasibleError, SpecError):
        return None, ""
    return solution.usd_per_m_tokens, solution.accelerator


def _efficiency_swing(best: Solution, rivals: Sequence[Solution]) -> Swing:
    """The winner's cost at its own P10 and P90, the others as predicted."""
    others = [solution for solution in rivals if solution.accelerator != best.accelerator]
    ends = []
    for usd in (best.interval.p10, best.interval.p90):
        rival = min(others, key=lambda solution: solution.usd_per_m_tokens, default=None)
        is_beaten = rival is not None and rival.usd_per_m_tokens < usd
        ends.append((rival.usd_per_m_tokens, rival.accelerator) if rival and is_beaten else (usd, best.accelerator))
    return Swing(
        name=f"efficiency of {best.accelerator}",
        low="P10",
        base="P50",
        high="P90",
        usd_low=ends[0][0],
        usd_high=ends[1][0],
        winner_low=ends[0][1],
        winner_high=ends[1][1],
        is_decisive=any(winner != best.accelerator for _, winner in ends),
    )


def _chances(
    candidates: Sequence[Solution],
    registry: PluginRegistry,
    draws: int,
    shared_variance: float,
    price_log_sd: float,
    seed: int,
) -> list[Chance]:
    from tokenopt import _core

    families = [registry.accelerators[solution.accelerator].family for solution in candidates]
    numbers = {family: number for number, family in enumerate(dict.fromkeys(families))}
    spreads = [
        math.hypot(math.log(s.interval.p90 / s.interval.p10) / (2.0 * _P90_OF_NORMAL), price_log_sd) for s in candidates
    ]
    problem = {
        "candidates": [
            {"usd": solution.usd_per_m_tokens, "log_sd": spread, "group": numbers[family]}
            for solution, spread, family in zip(candidates, spreads, families, strict=True)
        ],
        "shared_variance": shared_variance,
        "draws": draws,
        "seed": seed,
    }
    odds = json.loads(_core.odds(json.dumps(problem)))
    chances = [
        Chance(
            accelerator=solution.accelerator,
            vendor=solution.vendor,
            usd_per_m_tokens=solution.usd_per_m_tokens,
            log_sd=spread,
            **entry,
        )
        for solution, spread, entry in zip(candidates, spreads, odds, strict=True)
    ]
    return sorted(chances, key=lambda chance: (-chance.probability, chance.usd_per_m_tokens, chance.accelerator))
