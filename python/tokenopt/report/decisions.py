"""Text of decisions: fleets, lifecycle, return on investment."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenopt.report.tables import count, listing_console, plain_table, usd
from tokenopt.units import MILLION

if TYPE_CHECKING:
    from rich.table import Table

    from tokenopt.decide.fleet import FleetResult
    from tokenopt.decide.lifecycle import LifecycleResult
    from tokenopt.decide.roi import RoiResult
    from tokenopt.decide.sensitivity import SensitivityResult, Swing


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


def lifecycle_text(result: LifecycleResult) -> str:
    """Year by year, the cost of a token and its parts, and when it pays."""
    width = listing_console().width
    years = plain_table(
        [
            ("year", "right"), ("1M tokens", "right"), ("serving", "right"), ("training", "right"),
            ("other", "right", 1), ("revenue", "right"),
        ],
        [
            [
                str(year.year) if year.share == 1.0 else f"{year.year} ({year.share:.2g})",
                count(year.tokens / MILLION), usd(year.serving_usd), usd(year.training_usd), usd(year.fixed_usd),
                usd(year.revenue_usd),
            ]
            for year in result.years
        ],
        width,
    )  # fmt: skip
    inputs = result.inputs
    spread = f", P10-P90 {usd(result.interval.p10)} to {usd(result.interval.p90)}" if result.interval else ""
    lines = [
        f"Before the first token: {usd(inputs.pretrain_usd)} pretraining, {usd(inputs.posttrain_usd)} post-training.",
        f"Cost per 1M tokens over {inputs.years:g} years: {usd(result.usd_per_m_tokens)} "
        f"({usd(result.serving_usd_per_m_tokens)} serving, {usd(result.training_usd_per_m_tokens)} training, "
        f"{usd(result.fixed_usd_per_m_tokens)} other){spread}; the price that just pays, at "
        f"{inputs.discount_rate:.0%} cost of capital: {usd(result.levelised_usd_per_m_tokens)}.",
    ]
    if inputs.usd_per_m_tokens is not None:
        volume = result.break_even_tokens_per_day
        lines.append(
            f"Sold at {usd(inputs.usd_per_m_tokens)}: net present value {_signed(result.npv_usd)}, training is back "
            f"{_after(result.payback_years)}; break-even volume "
            + (f"{volume / MILLION:,.0f}M tokens a day." if volume is not None else "none: serving alone costs more.")
        )
    return rendered([years, *lines])


def roi_text(result: RoiResult) -> str:
    """Year by year, margin, payback and what would just pay."""
    width = listing_console().width
    years = plain_table(
        [("year", "right"), ("1M tokens", "right"), ("revenue", "right"), ("running cost", "right"), ("left", "right")],
        [
            [
                str(year.year) if year.share == 1.0 else f"{year.year} ({year.share:.2g})",
                count(year.tokens / MILLION), usd(year.revenue_usd), usd(year.running_usd),
                _signed(year.revenue_usd - year.running_usd),
            ]
            for year in result.years
        ],
        width,
    )  # fmt: skip
    inputs = result.inputs
    lines = []
    if result.configuration is not None:
        best = result.configuration
        lines.append(
            f"On {best['chips']:,} x {best['accelerator']} ({best['engine']}), {inputs.tokens_per_s:,.0f} tokens/s at full "
            f"load, input and output together."
        )
    multiple = f", {result.return_multiple:.3g} times the cost" if result.return_multiple is not None else ""
    lines += [
        f"Over {inputs.years:g} years: revenue {usd(result.revenue_usd)} against {usd(result.cost_usd)} "
        f"({usd(inputs.investment_usd)} of it up front){multiple}; margin {result.margin:.1%}, net present value "
        f"{_signed(result.npv_usd)}{_investment_back(result)}.",
        f"A token costs {usd(result.cost_usd_per_m_tokens)} per 1M; revenue equals cost at "
        f"{usd(result.break_even_usd_per_m_tokens)} per 1M, or at {result.break_even_utilization:.1%} utilization.",
    ]
    return rendered([years, *lines])


def _signed(value: float | None) -> str:
    return "-" if value is None else f"-{usd(-value)}" if value < 0 else usd(value)


def _investment_back(result: RoiResult) -> str:
    if result.inputs.investment_usd == 0:
        return ""
    return f", investment back {_after(None if result.payback_months is None else result.payback_months / 12.0)}"


def _after(years: float | None) -> str:
    if years is None:
        return "never"
    return "at once" if years == 0 else f"after {years * 12:.1f} months"


def sensitivity_text(result: SensitivityResult) -> str:
    """Inputs that move the answer as bars around it, then the chances."""
    width = listing_console().width
    base = result.best.usd_per_m_tokens
    ends = [usd_at for swing in result.swings for usd_at in (swing.usd_low, swing.usd_high) if usd_at is not None]
    most = max((abs(math.log(usd_at / base)) for usd_at in ends), default=0.0) or 1.0
    swings = plain_table(
        [
            ("input", "left"), ("low", "right"), ("base", "right", 2), ("high", "right"), ("$ at low", "right"),
            ("$ at high", "right"), ("", "left", 3), ("cheapest then", "left", 1),
        ],
        [
            [
                swing.name, swing.low, swing.base, swing.high, usd(swing.usd_low), usd(swing.usd_high),
                _bar(swing.usd_low, base, most) + "|" + _bar(base, swing.usd_high, most, is_right=True),
                _winners(swing) if swing.is_decisive else "",
            ]
            for swing in result.swings
        ],
        width,
    )  # fmt: skip
    chances = plain_table(
        [
            ("accelerator", "left"), ("$/1M", "right"), ("cheapest", "right"), ("within 10%", "right", 1),
            ("expected loss", "right", 1),
        ],
        [
            [
                chance.accelerator, usd(chance.usd_per_m_tokens), f"{chance.probability:.1%}",
                f"{chance.within_tenth:.1%}", f"{chance.regret:.0%}",
            ]
            for chance in result.chances
            if chance.probability >= 0.0005 or chance.within_tenth >= 0.005
        ],
        width,
    )  # fmt: skip
    best = result.best
    return rendered(
        [
            f"Cheapest as asked: {best.accelerator}, {usd(base)} per 1M tokens, P10-P90 {usd(best.interval.p10)} to "
            f"{usd(best.interval.p90)}.",
            swings,
            f"Chance of being the cheapest within the intervals ({result.draws:,} draws of all "
            f"{len(result.chances)} accelerators in {result.draws_s:.2f} s; {result.shared_variance:.0%} of the variance "
            "shared within a family):",
            chances,
        ]
    )


_BAR_CELLS = 12


def _bar(left: float | None, right: float | None, most: float, *, is_right: bool = False) -> str:
    """Half of a tornado: as many cells as the logarithm of the ratio is long, `+` where the end costs more."""
    if left is None or right is None:
        text = "out"
    else:
        end_over_base = right / left if is_right else left / right
        cells = round(abs(math.log(end_over_base)) / most * _BAR_CELLS)
        text = ("+" if end_over_base > 1.0 else "-") * cells
    return text.ljust(_BAR_CELLS) if is_right else text.rjust(_BAR_CELLS)


def _winners(swing: Swing) -> str:
    names = (swing.winner_low or "none", swing.winner_high or "none")
    return names[0] if names[0] == names[1] else f"{names[0]} to {names[1]}"
