"""What one block of an offer delivers for each workload: one search a workload and kind of unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tokenopt.decide.fleet_plan import FleetOffer, FleetPlan, FleetWorkload, may_serve
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import build_problem
from tokenopt.serve import Solution, run


@dataclass(frozen=True, slots=True)
class Rate:
    """What a block delivers.

    Attributes:
        block_instances: Instances of a block: 1, or as many as one replica spans.
        tps: Output tokens/s of a block within the workload's limits.
        solution: The configuration behind it.
    """

    block_instances: int
    tps: float
    solution: Solution


Rates = dict[tuple[int, int], Rate]
"""By index of the offer and of the workload; absent where the accelerator cannot serve it within the limits."""


def block_rates(
    plan: FleetPlan, registry: PluginRegistry, report: Callable[[str, int, int], None] = lambda *_: None
) -> Rates:
    """Searches the best configuration of every accelerator for every workload, on the units its offers sell.

    Args:
        plan: Workloads and offers.
        registry: Plugins.
        report: Called with a label, the step and the number of steps.

    Returns:
        Rates; what cannot serve is absent.

    Raises:
        InfeasibleError: No offer can serve some workload within its limits.
    """
    units = _units(plan.offers)
    rates: Rates = {}
    steps = len(plan.workloads) * len(units)
    for number, workload in enumerate(plan.workloads):
        nearest: InfeasibleError | None = None
        for layer, by_accelerator in enumerate(units):
            report(workload.name, number * len(units) + layer, steps)
            try:
                found = _solutions(workload, by_accelerator, plan.offers, registry)
            except InfeasibleError as error:
                nearest = nearest or error
                continue
            for key, members in by_accelerator.items():
                solution = found.get(key)
                if solution is None:
                    continue
                for index in members:
                    if may_serve(workload, plan.offers[index]):
                        rates[index, number] = Rate(solution.instances, solution.capacity_tps, solution)
        if not any(served == number for _, served in rates) and any(workload.demand_tps):
            reason = f": {nearest.message}" if nearest else ": no offer in its regions can hold it"
            raise InfeasibleError(
                f"no offer serves workload {workload.name} within its limits{reason}", nearest.hints if nearest else ()
            )
    report("", steps, steps)
    return rates


def _units(offers: Sequence[FleetOffer]) -> list[dict[str, list[int]]]:
    """Offers by accelerator and kind of unit, cut into layers that hold one kind of unit an accelerator."""
    kinds: dict[str, dict[tuple[int, int], list[int]]] = {}
    for index, entry in enumerate(offers):
        unit = (entry.offer.chips_per_instance, entry.offer.fabric_chips or 0)
        kinds.setdefault(entry.offer.accelerator, {}).setdefault(unit, []).append(index)
    depth = max(len(by_unit) for by_unit in kinds.values())
    layers: list[dict[str, list[int]]] = [{} for _ in range(depth)]
    for key in sorted(kinds):
        for layer, unit in enumerate(sorted(kinds[key])):
            layers[layer][key] = kinds[key][unit]
    return layers


def _solutions(
    workload: FleetWorkload,
    by_accelerator: dict[str, list[int]],
    offers: Sequence[FleetOffer],
    registry: PluginRegistry,
) -> dict[str, Solution]:
    """The best solution of each accelerator on its unit, all at one price: what pays is tokens per paid chip."""
    request = replace(workload.request, hardware=tuple(by_accelerator), price=dict.fromkeys(by_accelerator, 1.0), top=1)
    try:
        problem = build_problem(request, registry)
    except SpecError as error:
        raise SpecError(f"workload {workload.name}: {error.message}", error.hints) from error
    for chip in problem.core["accelerators"]:
        offer = offers[by_accelerator[chip["key"]][0]].offer
        (unit,) = chip["offers"]
        unit["chips_per_instance"] = offer.chips_per_instance
        if offer.fabric_chips:
            unit["fabric_chips"] = offer.fabric_chips
    return {solution.accelerator: solution for solution in run(problem, registry).by_accelerator}
