"""Curves through measured points: what a stack does between the loads at which it was measured, never beyond them.

Points of one stack (accelerator, engine and version, formats, mode, speculation, source) and one layout make a curve
over concurrency; the best points of a stack over all its layouts make its Pareto frontier over interactivity.
Interpolation is monotone (PCHIP) in logarithms, so that it neither overshoots nor turns around between points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenopt.measured.bundled import is_queue_limited

SHAPE_TOLERANCE = 0.12
"""How far a point's mean lengths may be from the wanted ones: the client of InferenceX draws lengths whose mean is 10% below
the nominal length it is asked for, so 1,024 and 922 are one shape."""

STEPS = 24
"""Places between two neighbouring points at which limits are tried, before the crossing is bisected."""
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One closed-loop operating point.

    Attributes:
        stack: Accelerator, engine, version, weight precision, mode, speculation, source: what a curve may not mix.
        layout: Degrees or workers in words; empty where the source prints none.
        chips: Chips of the deployment; None where not printed.
        concurrency: Requests in flight on it; None where not printed.
        output_tps_per_chip: Output tokens/s per chip.
        tpot_s: Time per output token, s.
        ttft_s: Time to first token, s; None where not printed.
        power_w: Measured power per chip, W; None where not measured.
        row: Everything the source says.
    """

    stack: tuple[str, ...]
    layout: str
    chips: float | None
    concurrency: float | None
    output_tps_per_chip: float
    tpot_s: float
    ttft_s: float | None
    power_w: float | None
    row: Mapping[str, Any]

    @property
    def tps_per_user(self) -> float:
        """Output tokens/s that a user sees."""
        return 1.0 / self.tpot_s


@dataclass(frozen=True, slots=True)
class Limits:
    """Latency limits; None = none.

    Attributes:
        tpot_s: Time per output token, s.
        ttft_s: Time to first token, s.
        e2e_s: Whole request, s.
    """

    tpot_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What a stack does at a load: a measured point, or a place between two.

    Attributes:
        between: The point, or the two neighbours, the slower one first.
        chips: Chips of the deployment (of the slower neighbour), None where not printed.
        concurrency: Requests in flight, None where a neighbour prints none.
        is_mix: Whether the neighbours have different layouts.
    """

    between: tuple[MeasuredPoint, ...]
    output_tps_per_chip: float
    tpot_s: float
    ttft_s: float | None
    concurrency: float | None
    chips: float | None
    is_mix: bool

    @property
    def is_interpolated(self) -> bool:
        """Whether it lies between points."""
        return len(self.between) > 1


def matching_points(rows: Iterable[Mapping[str, Any]], isl: float, osl: float) -> list[MeasuredPoint]:
    """Closed-loop points of this shape that state throughput and time per token.

    Args:
        rows: Points in the columns of :mod:`tokenopt.measured.columns`.
        isl: Prompt length, tokens.
        osl: Output length, tokens.

    Returns:
        The points; those with a queue in front of the server, whose batch is not their concurrency, are left out.
    """
    found = []
    for row in rows:
        if row.get("kind", "serving") != "serving" or row.get("scenario") not in ("concurrency", "batch"):
            continue
        if not _is_near(row.get("isl"), isl) or not _is_near(row.get("osl"), osl) or is_queue_limited(row):
            continue
        point = measured_point(row)
        if point is not None:
            found.append(point)
    return found


def measured_point(row: Mapping[str, Any]) -> MeasuredPoint | None:
    """A row as a point of a curve, None where it lacks throughput per chip, time per token or an accelerator."""
    output, tpot_ms = row.get("output_tps_per_chip"), row.get("tpot_ms")
    if not output or not tpot_ms or not row.get("accelerator"):
        return None
    stack = tuple(
        str(row.get(name) or "")
        for name in (
            "accelerator",
            "engine",
            "engine_version",
            "weight_precision",
            "mode",
            "speculative",
            "source",
            "model",
        )
    )
    if not row.get("engine_version"):
        # Without a version the day is what tells one state of the software from another.
        stack = (*stack, str(row.get("measured_on") or ""))
    ttft_ms, chips = row.get("ttft_ms"), row.get("chips")
    return MeasuredPoint(
        stack=stack, layout=layout_text(row), chips=float(chips) if chips else None,
        concurrency=float(row["concurrency"]) if row.get("concurrency") else None, output_tps_per_chip=float(output),
        tpot_s=float(tpot_ms) / 1e3, ttft_s=float(ttft_ms) / 1e3 if ttft_ms else None,
        power_w=float(row["power_w_per_chip"]) if row.get("power_w_per_chip") else None, row=row,
    )  # fmt: skip


def layout_text(row: Mapping[str, Any]) -> str:
    """Degrees above one, or the workers of a disaggregated run; empty where the source prints none."""
    if row.get("layout"):
        return str(row["layout"])
    parts = [f"{label}{row[name]:.0f}" for name, label in (("tp", "tp"), ("pp", "pp"), ("attn_dp", "dp"), ("ep", "ep"))
             if row.get(name) and (row[name] > 1 or name == "tp")]  # fmt: skip
    if row.get("mode") == "disagg" and row.get("chips"):
        pools = f"{row.get('prefill_chips') or 0:.0f}+{row.get('decode_chips') or 0:.0f} of {row['chips']:.0f} chips"
        parts.append(pools if row.get("prefill_chips") else f"{row['chips']:.0f} chips")
    return " ".join(parts)


def _is_near(value: Any, wanted: float) -> bool:
    return bool(value) and abs(math.log(float(value) / wanted)) <= SHAPE_TOLERANCE


def shapes(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float, int]]:
    """Prompt and output lengths at which closed-loop points exist, with their number, the most frequent first."""
    counts: dict[tuple[float, float], int] = {}
    for row in rows:
        if row.get("scenario") == "concurrency" and row.get("isl") and row.get("osl") and row.get("tpot_ms"):
            key = (round(float(row["isl"])), round(float(row["osl"])))
            counts[key] = counts.get(key, 0) + 1
    return sorted(((*key, count) for key, count in counts.items()), key=lambda item: (-item[2], item[:2]))


def operations(points: Sequence[MeasuredPoint], limits: Limits, osl: float) -> list[Operation]:
    """Operation of every stack within the limits: its measured points, and the places where a limit begins to bind.

    Args:
        points: Points of one shape.
        limits: Latency limits.
        osl: Output length, tokens.

    Returns:
        Candidates, unordered; one that needs a latency which no source printed is left out.
    """
    found: list[Operation] = []
    by_stack: dict[tuple[str, ...], list[MeasuredPoint]] = {}
    for point in points:
        by_stack.setdefault(point.stack, []).append(point)
        single = _at(point)
        if is_within(single, limits, osl):
            found.append(single)
    for members in by_stack.values():
        by_layout: dict[tuple[str, float | None], list[MeasuredPoint]] = {}
        for point in members:
            if point.concurrency:
                by_layout.setdefault((point.layout, point.chips), []).append(point)
        for curve in by_layout.values():
            found += _binding(_curve(curve), limits, osl)
        found += _binding(frontier(members), limits, osl)
    return found


def _curve(points: Sequence[MeasuredPoint]) -> list[MeasuredPoint]:
    """Points of one layout by concurrency, the newest where one load was measured twice; only while they get slower."""
    newest: dict[float, MeasuredPoint] = {}
    for point in sorted(points, key=lambda item: str(item.row.get("measured_on") or "")):
        newest[point.concurrency or 0.0] = point
    ordered: list[MeasuredPoint] = []
    for _, point in sorted(newest.items()):
        if not ordered or point.tpot_s > ordered[-1].tpot_s * (1 + 1e-9):
            ordered.append(point)
    return ordered


def frontier(points: Sequence[MeasuredPoint]) -> list[MeasuredPoint]:
    """Points that no other one beats in both interactivity and throughput per chip, fastest for a user first."""
    best: list[MeasuredPoint] = []
    for point in sorted(points, key=lambda item: (item.tpot_s, -item.output_tps_per_chip)):
        if not best or point.output_tps_per_chip > best[-1].output_tps_per_chip:
            best.append(point)
    return best


def _at(point: MeasuredPoint) -> Operation:
    return Operation(
        (point,), point.output_tps_per_chip, point.tpot_s, point.ttft_s, point.concurrency, point.chips, is_mix=False
    )


def is_within(operation: Operation, limits: Limits, osl: float) -> bool:
    """Whether an operation keeps every limit; a limit on a latency that no source printed is not kept."""
    if limits.tpot_s is not None and operation.tpot_s > limits.tpot_s * (1 + 1e-9):
        return False
    if limits.ttft_s is not None and (operation.ttft_s is None or operation.ttft_s > limits.ttft_s * (1 + 1e-9)):
        return False
    if limits.e2e_s is None:
        return True
    return operation.ttft_s is not None and operation.ttft_s + operation.tpot_s * (osl - 1) <= limits.e2e_s * (1 + 1e-9)


def _binding(curve: Sequence[MeasuredPoint], limits: Limits, osl: float) -> list[Operation]:
    """Where, between neighbours of a curve, a limit begins to bind: the last place that keeps all of them."""
    if len(curve) < 2 or limits == Limits():
        return []
    # Interpolation stays between its neighbours: where all points agree no limit begins to bind, and scipy stays unloaded.
    if len({is_within(_at(point), limits, osl) for point in curve}) == 1:
        return []
    between = Interpolation(curve)
    found = []
    last = len(curve) - 1
    at = [index / STEPS for index in range(last * STEPS + 1)]
    kept = [is_within(between.at(place), limits, osl) for place in at]
    for index in range(len(at) - 1):
        if kept[index] == kept[index + 1]:
            continue
        inside, outside = (at[index], at[index + 1]) if kept[index] else (at[index + 1], at[index])
        for _ in range(_HALVINGS):
            middle = 0.5 * (inside + outside)
            if is_within(between.at(middle), limits, osl):
                inside = middle
            else:
                outside = middle
        found.append(between.at(inside))
    return found


class Interpolation:
    """Monotone interpolation along a curve; its parameter counts points: 0 is the first, 1 the second, 0.5 between them."""

    def __init__(self, curve: Sequence[MeasuredPoint]) -> None:
        import numpy as np
        from scipy.interpolate import PchipInterpolator

        self.curve = list(curve)
        # The abscissa is the time per token, which rises along every curve.
        self._x = np.log([point.tpot_s for point in curve])
        self._tps = PchipInterpolator(
            self._x, np.log([point.output_tps_per_chip for point in curve]), extrapolate=False
        )
        self._ttft = self._maybe([point.ttft_s for point in curve])
        self._concurrency = self._maybe([point.concurrency for point in curve])

    def _maybe(self, values: Sequence[float | None]) -> Any:
        import numpy as np
        from scipy.interpolate import PchipInterpolator

        if any(value is None for value in values):
            return None
        return PchipInterpolator(self._x, np.log(np.array(values, float)), extrapolate=False)

    def at_interactivity(self, tps_per_user: float) -> Operation | None:
        """Operation at an interactivity; None beyond the points."""
        import numpy as np

        x = math.log(1.0 / tps_per_user)
        if not self._x[0] - 1e-12 <= x <= self._x[-1] + 1e-12:
            return None
        index = int(np.clip(np.searchsorted(self._x, x) - 1, 0, len(self._x) - 2))
        return self.at(index + (x - self._x[index]) / (self._x[index + 1] - self._x[index]))

    def at(self, place: float) -> Operation:
        """Operation at a place between the first point (0) and the last."""
        index = min(int(place), len(self.curve) - 2)
        share = place - index
        if share <= 0.0 or share >= 1.0:
            return _at(self.curve[index + (share >= 1.0)])
        x = float(self._x[index] + share * (self._x[index + 1] - self._x[index]))
        fast, slow = self.curve[index], self.curve[index + 1]
        is_mix = (fast.layout, fast.chips) != (slow.layout, slow.chips)
        return Operation(
            between=(slow, fast),
            output_tps_per_chip=math.exp(float(self._tps(x))),
            tpot_s=math.exp(x),
            ttft_s=math.exp(float(self._ttft(x))) if self._ttft is not None else None,
            concurrency=math.exp(float(self._concurrency(x))) if self._concurrency is not None and not is_mix else None,
            chips=slow.chips,
            is_mix=is_mix,
        )
