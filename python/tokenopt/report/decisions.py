"""Text of decisions: fleets, lifecycle, return on investment."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenopt.report.tables import count, listing_console, plain_table, usd

if TYPE_CHECKING:
    from rich.table import Table

    from tokenopt.decide.fleet import FleetResult


def rendered(parts: Iterable[str | Table]) -> str:
    """Lines and tables as text in the width of the terminal."""
    from rich.console import Console

    width = listing_console().width
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True, markup=False)
        else:
            console.print(part)
    return stream.getvalue()


def fleet_text(result: FleetResult) -> str:
    """What to commit to, what to rent by the hour, where each workload runs, what binds."""
    width = listing_console().width
    lines = [
        [
            line.accelerator, line.provider, line.term, usd(line.usd_per_chip_hr), count(line.committed_instances),
            _span(line.instances_by_hour), count(line.chips), f"{line.unused_instance_hours:,.0f}", usd(line.usd),
        ]
        for line in result.lines
    ]  # fmt: skip
    taken = plain_table(
        [
            ("accelerator", "left"), ("provider", "left", 1), ("term", "left"), ("$/chip-hr", "right"),
            ("committed", "right"), ("serving", "right"), ("chips", "right", 2), ("unused inst-hr", "right", 3),
            ("cost", "right"),
        ],
        lines,
        width,
    )  # fmt: skip
    places = plain_table(
        [
            ("workload", "left"), ("accelerator", "left"), ("term", "left", 2), ("instances", "right"),
            ("tokens/s each", "right"), ("engine", "left", 3), ("batch", "right", 3), ("TPOT ms", "right", 1),
        ],
        [
            [
                place.workload, place.accelerator, place.term, _span(place.instances_by_hour),
                count(place.tps_per_instance), place.layout["engine"], count(place.layout["running_batch"]),
                f"{place.layout['tpot_ms']:.1f}",
            ]
            for place in result.assignments
        ],
        width,
    )  # fmt: skip
    summary = (
        f"Cheapest plan over {result.hours} hours: {usd(result.usd)} ({usd(result.usd_per_hr)} per hour, "
        f"{usd(result.usd_per_m_output_tokens)} per 1M output tokens), {result.status}, gap {result.gap:.2%}."
    )
    shares = "Capacity by vendor: " + ", ".join(f"{vendor} {share:.0%}" for vendor, share in result.vendors.items())
    wording = {
        "chips": "one more chip of {name} would save {usd} over the plan",
        "demand": "one more 1M output tokens of {name} costs {usd}",
        "budget": "one more dollar of budget would save {usd}",
    }
    prices = [wording[price.what].format(name=price.name, usd=usd(price.usd)) for price in result.shadow_prices]
    return rendered([taken, places, summary, shares, *(f"At the margin, {text}." for text in prices)])


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{low:,}-{high:,}"
