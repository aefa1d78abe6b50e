"""Terminal tables of a training run. Everything shown comes from the JSON contract's fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING

from tokenopt.report.tables import (
    STALE_AFTER_DAYS,
    Column,
    age_text,
    count,
    plain_table,
    price_mark,
    usd,
)
from tokenopt.training import layout_words

if TYPE_CHECKING:
    from rich.table import Table

    from tokenopt.training import TrainResult, TrainSolution

_Cell = Callable[["TrainSolution"], str]
_Columns = tuple[tuple[Column, _Cell], ...]

WHY = {
    "compute": "compute",
    "bandwidth": "bandwidth",
    "network": "network",
    "bubble": "pipeline bubble",
    "latency": "latency",
    "memory": "memory (recompute)",
    "deadline": "deadline",
}


def big_usd(value: float) -> str:
    """Dollars of a run: thousands and millions in short."""
    if value >= 1e6:
        return f"${value / 1e6:,.2f}M"
    return f"${value / 1e3:,.1f}k" if value >= 1e4 else usd(value)


def days_text(value: float) -> str:
    """Days with three significant digits; below a tenth of a day in hours."""
    if value < 0.1:
        return f"{value * 24:.2g} h"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def recompute_text(solution: TrainSolution) -> str:
    """What is computed twice."""
    layout = solution.layout
    return f"{layout.recompute_layers} layers" if layout.recompute == "blocks" else layout.recompute


_COST: _Columns = (
    (("accelerator", "left"), lambda s: s.accelerator),
    (("$/1M tok", "right"), lambda s: usd(s.usd_per_m_tokens)),
    (("P10-P90", "right", 8), lambda s: f"{usd(s.interval.p10)}-{usd(s.interval.p90)}"),
    (("$/run", "right"), lambda s: big_usd(s.usd_per_run)),
    (("days", "right"), lambda s: days_text(s.days)),
    (("chips", "right"), lambda s: count(s.chips)),
    (("chip-hours", "right", 4), lambda s: count(s.gpu_hours)),
    (("MWh", "right", 6), lambda s: f"{s.kwh_per_run / 1e3:,.0f}"),
    (("goodput", "right", 2), lambda s: f"{s.goodput:.1%}"),
    (("binds", "left", 1), lambda s: WHY[s.why]),
)
_LAYOUT: _Columns = (
    (("accelerator", "left"), lambda s: s.accelerator),
    (("format", "left", 1), lambda s: s.precision),
    (("layout", "left"), lambda s: layout_words(s.layout)),
    (("mbs", "right"), lambda s: str(s.layout.micro_batch)),
    (("batch", "right", 4), lambda s: count(s.global_batch)),
    (("schedule", "left", 9), lambda s: s.layout.schedule),
    (("shard", "left", 3), lambda s: s.layout.sharding),
    (("recompute", "left", 5), recompute_text),
    (("GB", "right", 6), lambda s: f"{s.memory_gb:.0f}/{s.memory['plannable']:.0f}"),
    (("step s", "right", 2), lambda s: f"{s.step_time_s:.2f}"),
    (("tok/s/chip", "right", 7), lambda s: count(s.tokens_per_s_per_chip)),
    (("MFU", "right"), lambda s: f"{s.mfu:.1%}"),
    (("HFU", "right", 8), lambda s: f"{s.hfu:.1%}"),
)


def _price_columns(today: date) -> _Columns:
    return (
        (("accelerator", "left"), lambda s: s.accelerator),
        (("$/chip-hr", "right"), lambda s: usd(s.offer.usd_per_chip_hr)),
        (("provider", "left"), lambda s: s.offer.provider),
        (("sold as", "left", 9), lambda s: s.offer.instance_type),
        (("term", "left"), lambda s: s.offer.term),
        (("region", "left", 7), lambda s: s.offer.region),
        (("as of", "left"), lambda s: s.offer.as_of),
        (("age", "left", 8), lambda s: age_text(s.offer.as_of, today)),
        (("mark", "left", 1), lambda s: price_mark(s.offer.as_of, today)),
    )


_FRONTIER: _Columns = (
    (("days", "right"), lambda s: days_text(s.days)),
    (("$/run", "right"), lambda s: big_usd(s.usd_per_run)),
    (("$/1M tok", "right", 1), lambda s: usd(s.usd_per_m_tokens)),
    (("accelerator", "left"), lambda s: s.accelerator),
    (("chips", "right"), lambda s: count(s.chips)),
    (("format", "left", 3), lambda s: s.precision),
    (("layout", "left"), lambda s: layout_words(s.layout)),
    (("MFU", "right", 2), lambda s: f"{s.mfu:.1%}"),
    (("provider", "left", 4), lambda s: s.offer.provider),
)
_FRONTIER_ROWS = 12


def _table(title: str, columns: _Columns, solutions: Sequence[TrainSolution], width: int) -> Table:
    rows = [[cell(solution) for _, cell in columns] for solution in solutions]
    return plain_table([column for column, _ in columns], rows, width, title=title)


def train_tables(result: TrainResult, width: int, today: date | None = None) -> list[Table]:
    """What the cheapest run of each accelerator costs, how it is laid out, its price, and days against money."""
    chips = result.by_accelerator
    return [
        _table("Cost, USD", _COST, chips, width),
        _table("Layout and step", _LAYOUT, chips, width),
        _table("Prices, USD", _price_columns(today or date.today()), chips, width),
        _table("Days against money", _FRONTIER, thinned(result.frontier, _FRONTIER_ROWS), width),
    ]


def thinned(points: Sequence[TrainSolution], most: int) -> list[TrainSolution]:
    """At most `most` points spread over a list, both ends kept."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(index * last / (most - 1))] for index in range(most)]


def train_summary(result: TrainResult) -> list[str]:
    """The answer in three lines."""
    best = result.best[0]
    offer, losses = best.offer, best.losses
    seller = " ".join(filter(None, (offer.provider, offer.instance_type)))
    return [
        f"Cheapest: {count(best.chips)} x {best.accelerator} in {best.precision}, {layout_words(best.layout)}, "
        f"micro-batch {best.layout.micro_batch}: {usd(best.usd_per_m_tokens)} per 1M training tokens, "
        f"P10-P90 {usd(best.interval.p10)} to {usd(best.interval.p90)}, {best.basis}.",
        f"Run: {big_usd(best.usd_per_run)}, {days_text(best.days)} days, {count(best.gpu_hours)} chip-hours at {seller} "
        f"({offer.term}, {usd(offer.usd_per_chip_hr)} per chip-hour, as of {offer.as_of}); MFU {best.mfu:.1%}, "
        f"step {best.step_time_s:.2f} s. Bound by {WHY[best.why]}.",
        f"Goodput {best.goodput:.1%}: a failure every {1 / losses['failures_per_hr']:,.1f} h, a checkpoint every "
        f"{losses['checkpoint_interval_s'] / 60:,.1f} min ({losses['checkpoint_stall_s']:.1f} s); lost to checkpoints "
        f"{losses['checkpoint_share']:.1%}, restarts {losses['restart_share']:.1%}, work done again "
        f"{losses['lost_work_share']:.1%}.",
    ]


def train_notes(result: TrainResult, today: date | None = None) -> list[str]:
    """What the reader must know beside the tables."""
    problem = result.problem
    job, run = problem["job"], problem["run"]
    recipe = job["recipe"] if isinstance(job["recipe"], str) else next(iter(job["recipe"]))
    lines = [
        f"{problem['model']}, {recipe.replace('_', '-')}, {run['tokens']:.4g} tokens, sequences of {job['seq_len']:,.0f}, "
        f"batch of {job['global_batch']:,.0f}; ranked by {problem['objective']}; prices ranked: "
        f"{', '.join(result.ranked_terms)}",
        "assumed: " + "; ".join(f"{item.name} = {item.value} ({item.why})" for item in result.assumptions),
    ]
    marks = [price_mark(solution.offer.as_of, today or date.today()) for solution in result.by_accelerator]
    old = [
        f"{marks.count(mark)} {meaning}"
        for mark, meaning in (("stale", f"older than {STALE_AFTER_DAYS} days"), ("undated", "without a full date"))
        if mark in marks
    ]
    if old:
        lines.append(f"of {len(marks)} prices shown, {' and '.join(old)}: --prices-max-age DAYS leaves such out")
    if problem["doubtful_prices"]:
        lines.append(
            f"{problem['doubtful_prices']} suspect prices fit and are not ranked: `tokenopt prices` shows them"
        )
    if result.without_price:
        lines.append(f"no such price, left out: {', '.join(result.without_price)}")
    if result.cannot_run:
        lines.append(f"no fast path for the format, left out: {', '.join(result.cannot_run)}")
    missing = sorted(
        set(problem["accelerators"]) - {s.accelerator for s in result.by_accelerator} - set(result.cannot_run)
    )
    if missing:
        lines.append(f"cannot meet the limits or hold the model: {', '.join(missing)}")
    lines.append(
        f"{result.evaluated:,} configurations evaluated, {result.pruned:,} ruled out by bounds, "
        f"{result.feasible:,} feasible, {result.elapsed_s:.3f} s"
    )
    return lines


def train_text(result: TrainResult, width: int, *, is_terminal: bool = False, today: date | None = None) -> str:
    """The whole answer as text: tables, the best in three lines, notes.

    Args:
        result: The answer.
        width: Columns of the terminal.
        is_terminal: Whether to emphasise and to wrap the notes.
        today: Day that ages of prices are counted from; by default the present one.

    Returns:
        Text that ends in a line break.
    """
    import io

    from rich.console import Console

    text = io.StringIO()
    console = Console(
        file=text, width=width, force_terminal=is_terminal, no_color=None if is_terminal else True, highlight=False,
        markup=False,
    )  # fmt: skip
    for table in train_tables(result, width, today):
        console.print(table)
    for line in train_summary(result):
        console.print(line, style="bold" if is_terminal else None, soft_wrap=not is_terminal)
    console.print()
    for line in train_notes(result, today):
        console.print(line, style="dim" if is_terminal else None, soft_wrap=not is_terminal)
    return text.getvalue()
