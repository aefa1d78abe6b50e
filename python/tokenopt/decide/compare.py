"""The cost report across accelerators: tokens, energy, memory and arithmetic for the money, at chosen interactivities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenopt.decide.finance import check
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.plugins import PluginRegistry, default_registry
from tokenopt.problem import DEFAULT_PUE, build_problem, core_accelerator
from tokenopt.request import SearchRequest
from tokenopt.serve import Interval, Solution, run
from tokenopt.units import MILLION

DEFAULT_INTERACTIVITIES = (20.0, 50.0, 100.0)
J_PER_KWH = 3.6e6
W_PER_MW = 1e6


@dataclass(frozen=True, slots=True)
class HardwareMoney:
    """What an hour of a chip buys, whatever runs on it.

    Attributes:
        accelerator, vendor: The chip.
        usd_per_chip_hr: Price of the offer behind the first row of the chip.
        provider, term, as_of: That offer.
        usd_per_gb_hr: Per GB (10^9 bytes) of memory and hour.
        usd_per_tb_per_s_hr: Per TB/s of memory bandwidth and hour.
        usd_per_pflop_hr: Per dense PFLOP/s and hour, by number format.
    """

    accelerator: str
    vendor: str
    usd_per_chip_hr: float
    provider: str
    term: str
    as_of: str
    usd_per_gb_hr: float
    usd_per_tb_per_s_hr: float
    usd_per_pflop_hr: dict[str, float]


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """The cheapest configuration of an accelerator at one interactivity.

    Attributes:
        interactivity: Least output tokens/s that a user sees.
        accelerator, vendor: The chip.
        usd_per_m_tokens: Input and output together; `interval` holds its P10 and P90.
        usd_per_m_output_tokens, usd_per_m_input_tokens: All the money over the output or the input tokens alone.
        over_best: `usd_per_m_tokens` over that of the cheapest accelerator at this interactivity.
        joule_per_token: Energy at the meter per token, input and output together.
        tokens_per_s_per_mw: Tokens/s, input and output together, per MW at the meter.
        output_tps_per_chip: Output tokens/s of a chip in use.
        engine, weight_precision, basis: What runs, and what the figure rests on.
        layout: Parallel layout and running batch.
    """

    interactivity: float
    accelerator: str
    vendor: str
    usd_per_m_tokens: float
    interval: Interval
    usd_per_m_output_tokens: float
    usd_per_m_input_tokens: float
    over_best: float
    joule_per_token: float
    tokens_per_s_per_mw: float
    output_tps_per_chip: float
    engine: str
    weight_precision: str
    basis: str
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The report.

    Attributes:
        model: Model key.
        workload: Lengths.
        rows: By interactivity, the cheapest first.
        missed: Accelerators that no configuration brings to an interactivity, by interactivity.
        hardware: What a chip-hour buys.
        without_price: Accelerators left out for want of a price.
        ranked_terms: Kinds of price that compete.
        notes: Problems of plugins and data.
    """

    model: str
    workload: dict[str, float]
    rows: list[ComparisonRow]
    missed: dict[str, list[str]]
    hardware: list[HardwareMoney]
    without_price: list[str]
    ranked_terms: tuple[str, ...]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON."""
        return {"schema": 1, **asdict(self), "ranked_terms": list(self.ranked_terms)}

    def flat_rows(self) -> list[dict[str, Any]]:
        """One flat row an accelerator and interactivity, what a chip-hour buys included."""
        money = {entry.accelerator: asdict(entry) for entry in self.hardware}
        flat = []
        for row in self.rows:
            line = asdict(row)
            interval = line.pop("interval")
            layout = line.pop("layout")
            line |= {"p10_usd_per_m_tokens": interval["p10"], "p90_usd_per_m_tokens": interval["p90"], **layout}
            own = money[row.accelerator]
            line |= {name: own[name] for name in ("usd_per_chip_hr", "usd_per_gb_hr", "usd_per_tb_per_s_hr")}
            flat.append(line | {f"usd_per_pflop_hr_{name}": usd for name, usd in own["usd_per_pflop_hr"].items()})
        names = list(dict.fromkeys(name for line in flat for name in line))
        return [{name: line.get(name) for name in names} for line in flat]


def compare(
    request: SearchRequest,
    interactivities: Sequence[float] = DEFAULT_INTERACTIVITIES,
    *,
    registry: PluginRegistry | None = None,
) -> Comparison:
    """Sets accelerators side by side.

    Args:
        request: Workload, scope and prices; its own limits hold beside each interactivity.
        interactivities: Least output tokens/s a user sees.
        registry: Plugins; the installed ones by default.

    Returns:
        The report; one search an interactivity.

    Raises:
        SpecError: An interactivity cannot be used.
        InfeasibleError: No accelerator reaches any of them.
    """
    registry = registry or default_registry()
    if not interactivities:
        raise SpecError("no interactivity is given")
    for value in interactivities:
        check("interactivity", value, 1e-3, 1e6)
    if request.min_interactivity is not None:
        raise SpecError("min_interactivity belongs to a search: a comparison takes its own list of interactivities")
    rows: list[ComparisonRow] = []
    missed: dict[str, list[str]] = {}
    seen: dict[str, Solution] = {}
    last_miss: InfeasibleError | None = None
    for value in sorted(set(interactivities)):
        problem = build_problem(replace(request, min_interactivity=value, top=1), registry)
        in_scope = [chip["key"] for chip in problem.core["accelerators"]]
        try:
            found = run(problem, registry).by_accelerator
        except InfeasibleError as error:
            last_miss, found = error, []
        for solution in found:
            seen.setdefault(solution.accelerator, solution)
        rows += _rows(value, found)
        missed[f"{value:g}"] = sorted(set(in_scope) - {solution.accelerator for solution in found})
    if last_miss is not None and not rows:
        raise last_miss
    return Comparison(
        model=problem.model.key,
        workload={"isl": request.isl, "osl": request.osl, "prefix_hit": request.prefix_hit},
        rows=rows,
        missed=missed,
        hardware=[_money(solution, registry) for _, solution in sorted(seen.items())],
        without_price=problem.without_price,
        ranked_terms=problem.ranked_terms,
        notes=[*registry.problems, *problem.notes],
    )


def _rows(interactivity: float, found: Sequence[Solution]) -> list[ComparisonRow]:
    ranked = sorted(found, key=lambda solution: (solution.usd_per_m_tokens, solution.accelerator))
    rows = []
    for solution in ranked:
        joule = solution.kwh_per_m_tokens * J_PER_KWH / MILLION
        layout = {name: value for name, value in asdict(solution.layout).items() if value is not None}
        rows.append(
            ComparisonRow(
                interactivity=interactivity,
                accelerator=solution.accelerator,
                vendor=solution.vendor,
                usd_per_m_tokens=solution.usd_per_m_tokens,
                interval=solution.interval,
                usd_per_m_output_tokens=solution.usd_per_m_output_tokens,
                usd_per_m_input_tokens=solution.usd_per_m_input_tokens,
                over_best=solution.usd_per_m_tokens / ranked[0].usd_per_m_tokens,
                joule_per_token=joule,
                tokens_per_s_per_mw=W_PER_MW / joule,
                output_tps_per_chip=solution.output_tps_per_chip,
                engine=solution.engine,
                weight_precision=solution.weight_precision,
                basis=solution.basis,
                layout={**layout, "running_batch": solution.running_batch},
            )
        )
    return rows


def _money(solution: Solution, registry: PluginRegistry) -> HardwareMoney:
    from tokenopt import _core

    chip = registry.accelerators[solution.accelerator]
    usd = solution.offer.usd_per_chip_hr
    question = {"accelerator": core_accelerator(chip, DEFAULT_PUE), "usd_per_chip_hr": usd}
    return HardwareMoney(
        accelerator=chip.key,
        vendor=chip.vendor,
        usd_per_chip_hr=usd,
        provider=solution.offer.provider,
        term=solution.offer.term,
        as_of=solution.offer.as_of,
        **json.loads(_core.chip_hour(json.dumps(question))),
    )
