"""Terminal tables. Everything shown comes from the JSON contract's fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from tokenopt.records import Offer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tokenopt.serve import Layout, Pool, SearchResult, Solution

STALE_AFTER_DAYS = 90
"""Age from which a price is marked: a quarter of a year moves rental prices by more than most layouts differ."""
LISTING_WIDTH = 1000
"""Width of a listing that no terminal limits: nothing is cut for the program that reads it."""


def usd(value: float | None) -> str:
    """Dollars with three significant digits, never in scientific notation."""
    if value is None or not math.isfinite(value):
        return "-"
    if value >= 1000:
        return f"${value:,.0f}"
    digits = max(2, 2 - math.floor(math.log10(value))) if value > 0 else 2
    return f"${value:.{min(digits, 8)}f}"


def count(value: float) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}"


def milliseconds(value: float) -> str:
    """Milliseconds with three significant digits."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def layout_text(solution: Solution) -> str:
    """The layout, degrees of one left out."""
    layout = solution.layout
    draft = f" mtp{solution.speculation.depth}" if solution.speculation else ""
    if layout.prefill is None or layout.decode is None:
        return degrees_text(layout) + draft
    chip = f"{layout.prefill.accelerator} " if layout.prefill.accelerator != solution.accelerator else ""
    return (
        f"{layout.prefill.workers} x {chip}{degrees_text(layout.prefill)} > "
        f"{layout.decode.workers} x {degrees_text(layout.decode)}{draft}"
    )


def degrees_text(layout: Layout | Pool) -> str:
    """Parallel degrees, those of one left out."""
    parts = [f"tp{layout.tp}"]
    parts += [f"pp{layout.pp}"] if layout.pp > 1 else []
    parts += [f"dp{layout.attn_dp}"] if layout.attn_dp > 1 else []
    parts += [f"ep{layout.ep}"] if layout.ep > 1 else []
    return " ".join(parts)


def age_text(as_of: str, today: date) -> str:
    """How old a price is."""
    days = _age_days(as_of, today)
    if days is None:
        return "age unknown"
    return "today" if days == 0 else f"{days} days ago"


def price_mark(as_of: str, today: date) -> str:
    """What to distrust about the age of a price; empty = nothing."""
    days = _age_days(as_of, today)
    if days is None:
        return "undated"
    return "stale" if days > STALE_AFTER_DAYS else ""


def _age_days(as_of: str, today: date) -> int | None:
    try:
        return (today - date.fromisoformat(as_of)).days
    except ValueError:
        return None


WHY = {
    "bandwidth": "bandwidth",
    "compute": "compute",
    "network": "network",
    "latency": "latency",
    "memory": "memory",
    "slo_tpot": "TPOT limit",
    "slo_ttft": "TTFT limit",
    "slo_e2e": "e2e limit",
    "max_batch": "batch limit",
    "measured": "measured",
    "prefill_load": "prompt load",
}

_Justify = Literal["left", "right"]
Column = tuple[str, str] | tuple[str, str, int]
"""A column of a listing: name, justification, and how readily it is left out on a narrow terminal (0 = never)."""

_Cell = Callable[["Solution"], str]

_Columns = tuple[tuple[str, int, str, _Cell], ...]

_COST: _Columns = (
    ("accelerator", 0, "left", lambda s: s.accelerator),
    ("$/1M out", 0, "right", lambda s: usd(s.usd_per_m_output_tokens)),
    ("$/1M tok", 0, "right", lambda s: usd(s.usd_per_m_tokens)),
    ("P10-P90", 9, "right", lambda s: f"{usd(s.interval.p10)}-{usd(s.interval.p90)}"),
    ("$/request", 1, "right", lambda s: usd(s.usd_per_request)),
    ("$/hour", 0, "right", lambda s: usd(s.usd_per_hr)),
    ("kWh/1M", 2, "right", lambda s: f"{s.kwh_per_m_tokens:.4f}"),
    ("binds", 0, "left", lambda s: WHY[s.why]),
)
_MEASURED: _Columns = (
    ("measured", 4, "right", lambda s: usd(s.measured_usd_per_m_tokens)),
    ("model/meas.", 5, "right", lambda s: f"{s.measured_ratio:.2f}" if s.measured_ratio else "-"),
)
"""What was measured, beside predictions of at least one accelerator."""
_FLEET: _Columns = (
    ("accelerator", 0, "left", lambda s: s.accelerator),
    ("chips", 0, "right", lambda s: count(s.chips)),
    ("replicas", 0, "right", lambda s: count(s.replicas)),
    ("instances", 1, "right", lambda s: count(s.instances)),
    ("TTFT", 0, "right", lambda s: milliseconds(s.ttft_ms)),
    ("TPOT", 0, "right", lambda s: milliseconds(s.tpot_ms)),
    ("batch", 2, "right", lambda s: "-" if math.isnan(s.running_batch) else count(s.running_batch)),
    ("layout", 0, "left", layout_text),
    ("engine", 8, "left", lambda s: s.engine),
    ("formats", 9, "left", lambda s: f"{s.weight_precision}/{s.kv_precision}"),
)
"""Columns of the search tables: title, how readily it is left out on a narrow terminal (0 = never), alignment,
content."""


def _price_columns(today: date) -> _Columns:
    return (
        ("accelerator", 0, "left", lambda s: s.accelerator),
        ("$/chip-hr", 0, "right", lambda s: usd(s.offer.usd_per_chip_hr)),
        ("provider", 0, "left", lambda s: s.offer.provider),
        ("sold as", 9, "left", lambda s: s.offer.instance_type),
        ("term", 0, "left", lambda s: s.offer.term),
        ("region", 7, "left", lambda s: s.offer.region),
        ("as of", 0, "left", lambda s: s.offer.as_of),
        ("age", 8, "left", lambda s: age_text(s.offer.as_of, today)),
        ("mark", 1, "left", lambda s: price_mark(s.offer.as_of, today)),
    )


def search_tables(result: SearchResult, width: int, today: date | None = None) -> list[Table]:
    """What the cheapest configuration of each accelerator costs, the fleet behind it and the price it rests on.

    Args:
        result: The answer.
        width: Columns of the terminal.
        today: Day that ages of prices are counted from; by default the present one.

    Returns:
        Three tables with the accelerators in the same order.
    """
    has_measured = any(s.measured_usd_per_m_tokens is not None and s.basis != "measured" for s in result.by_accelerator)
    cost = (*_COST[:4], *_MEASURED, *_COST[4:]) if has_measured else _COST
    parts = (
        ("Cost, USD", cost),
        ("Fleet, times in ms", _FLEET),
        ("Prices, USD", _price_columns(today or date.today())),
    )
    tables = []
    for title, columns in parts:
        rows = [[cell(solution) for _, _, _, cell in columns] for solution in result.by_accelerator]
        tables.append(
            plain_table([(name, justify, drop) for name, drop, justify, _ in columns], rows, width, title=title)
        )
    return tables


def verified_tables(result: SearchResult, width: int) -> list[Table]:
    """Formulas beside the simulation, for the solutions that were simulated; none where none was."""
    rows = []
    for solution in result.best:
        run = solution.verified
        if run is None:
            continue
        tpot = run.tpot_ms or run.e2e_ms
        rows.append(
            [
                f"{solution.rank} {solution.accelerator}",
                layout_text(solution),
                milliseconds(solution.ttft_ms),
                *(milliseconds(value) for value in (run.ttft_ms.p50, run.ttft_ms.p90, run.ttft_ms.p99)),
                milliseconds(solution.tpot_ms),
                *(milliseconds(value) for value in (tpot.p50, tpot.p90, tpot.p99)),
                f"{run.output_tps_per_chip / solution.output_tps_per_chip - 1:+.1%}",
                "saturated" if run.is_saturated else f"{run.slo_attainment.all:.1%}",
            ]
        )
    if not rows:
        return []
    columns: list[Column] = [
        ("best", "left"), ("layout", "left", 1), ("TTFT", "right"), ("p50", "right"), ("p90", "right"), ("p99", "right"),
        ("TPOT", "right"), ("p50", "right"), ("p90", "right"), ("p99", "right"), ("tokens/s", "right"),
        ("within limits", "right"),
    ]  # fmt: skip
    title = "Simulated request by request, formulas first, times in ms"
    return [plain_table(columns, rows, width, title=title)]


def search_summary(result: SearchResult) -> list[str]:
    """The answer in two lines."""
    best = result.best[0]
    offer = best.offer
    seller = " ".join(filter(None, (offer.provider, offer.instance_type)))
    if best.basis == "measured":
        return [
            f"Cheapest measured: {best.accelerator} ({best.engine}, {best.weight_precision} weights): "
            f"{usd(best.usd_per_m_tokens)} per 1M tokens ({usd(best.usd_per_m_output_tokens)} per 1M output tokens), "
            f"{best.calibration}.",
            f"Fleet: {count(best.chips)} chips, {count(best.output_tps)} tokens/s at {best.tps_per_user:,.1f} tokens/s/user, "
            f"{usd(best.usd_per_hr)} per hour at {seller} ({offer.term}, {usd(offer.usd_per_chip_hr)} per chip-hour, as of "
            f"{offer.as_of}).",
        ]
    return [
        f"Cheapest: {best.accelerator} ({best.engine}, {best.weight_precision} weights, {best.kv_precision} KV), "
        f"{layout_text(best)}, batch {count(best.running_batch)}: {usd(best.usd_per_m_tokens)} per 1M tokens "
        f"({usd(best.usd_per_m_output_tokens)} per 1M output tokens), P10-P90 {usd(best.interval.p10)} to "
        f"{usd(best.interval.p90)}, {best.basis}.",
        f"Fleet: {count(best.chips)} chips in {count(best.instances)} instances, {count(best.replicas)} replicas, "
        f"{count(best.output_tps)} tokens/s at {best.tps_per_user:,.1f} tokens/s/user, {usd(best.usd_per_hr)} per hour "
        f"at {seller} ({offer.term}, {usd(offer.usd_per_chip_hr)} per chip-hour, as of {offer.as_of}). "
        f"Bound by {WHY[best.why]}.",
        *modes_summary(result),
    ]


_MODES = {"agg": "prefill and decode on the same chips", "disagg": "prefill and decode in pools of their own"}


def modes_summary(result: SearchResult) -> list[str]:
    """Which mode won and by how much, in one line; none where a single mode was tried."""
    if len(result.by_mode) < 2:
        return []
    won, lost = result.by_mode
    objective = result.problem["objective"]
    if objective == "throughput":
        worse_by = won.output_tps_per_chip / lost.output_tps_per_chip - 1.0
        figure = f"{count(lost.output_tps_per_chip)} output tokens/s per chip"
    elif objective == "energy":
        worse_by = lost.kwh_per_m_tokens / won.kwh_per_m_tokens - 1.0
        figure = f"{lost.kwh_per_m_tokens:.4f} kWh per 1M tokens"
    else:
        worse_by = lost.usd_per_m_tokens / won.usd_per_m_tokens - 1.0
        figure = f"{usd(lost.usd_per_m_tokens)} per 1M tokens"
    verdict = f"wins; {_MODES[lost.layout.mode]} is {worse_by:.1%} worse"
    if worse_by <= 0.0:
        verdict = f"is simpler; {_MODES[lost.layout.mode]} is no better"
    return [f"Mode: {_MODES[won.layout.mode]} {verdict} ({figure}: {lost.accelerator}, {layout_text(lost)})."]


def search_notes(result: SearchResult, today: date | None = None) -> list[str]:
    """What the reader must know beside the tables; `today` as for :func:`search_tables`."""
    problem = result.problem
    workload = problem["workload"]
    lines = [
        f"{problem['model']}, {workload['isl']:g} tokens in and {workload['osl']:g} out; ranked by {problem['objective']}; "
        f"prices ranked: {', '.join(result.ranked_terms)}",
        *_traffic_notes(problem.get("traffic") or {}),
        "assumed: " + "; ".join(f"{item.name} = {item.value} ({item.why})" for item in result.assumptions),
    ]
    lines += measured_notes(result)
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
        lines.append(f"no engine serves it there, left out: {', '.join(result.cannot_run)}")
    missing = sorted(
        set(problem["accelerators"])
        - {solution.accelerator for solution in result.by_accelerator}
        - set(result.cannot_run)
    )
    if missing:
        is_measured = problem.get("scope", {}).get("basis") == "measured"
        why = "not measured within the limits" if is_measured else "cannot meet the limits or hold the model"
        lines.append(f"{why}: {', '.join(missing)}")
    if result.problem.get("scope", {}).get("basis") == "measured":
        return lines
    lines.append(
        f"{result.evaluated:,} configurations evaluated, {result.pruned:,} ruled out by bounds, "
        f"{result.feasible:,} feasible, {result.elapsed_s:.3f} s"
    )
    return lines


def measured_notes(result: SearchResult) -> list[str]:
    """Which points each measured figure rests on."""
    lines = []
    for answer in result.measured:
        points = " and ".join(
            ", ".join(
                filter(
                    None,
                    (
                        point.layout or "layout not printed",
                        f"concurrency {point.concurrency:g}" if point.concurrency else "",
                        f"{point.tps_per_user:.0f} tokens/s/user",
                    ),
                )
            )
            for point in answer.between
        )
        source = " and ".join(
            dict.fromkeys(" ".join(filter(None, (point.source, point.measured_on))) for point in answer.between)
        )
        stack = " ".join(filter(None, (answer.engine, answer.weight_precision, answer.mode, answer.speculative)))
        lines.append(
            f"measured {answer.accelerator}: {usd(answer.usd_per_m_tokens)} per 1M tokens, {stack}, "
            f"{'between ' if answer.is_interpolated else ''}{points} ({source})"
            + (f"; {answer.assumed}" if answer.assumed else "")
        )
    return lines


def _traffic_notes(traffic: Mapping[str, Any]) -> list[str]:
    """What latencies hold for, where it is not the mean in a closed loop."""
    share, is_open = traffic.get("percentile"), traffic.get("arrival") == "poisson"
    if share is None and not is_open:
        return []
    held = f"p{share * 100:g}" if share else "means"
    return [f"latencies: {held}, {'open arrivals (Poisson)' if is_open else 'a closed loop of clients'}"]


def search_text(result: SearchResult, width: int, *, is_terminal: bool = False, today: date | None = None) -> str:
    """The whole answer as text: tables, the best in two lines, notes.

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
    for table in (*search_tables(result, width, today), *verified_tables(result, width)):
        console.print(table)
    for line in search_summary(result):
        console.print(line, style="bold" if is_terminal else None)
    console.print()
    for line in search_notes(result, today):
        console.print(line, style="dim" if is_terminal else None, soft_wrap=not is_terminal)
    return text.getvalue()


def listing_console() -> Console:
    """A console for listings: as wide as the terminal, and without a limit where the output goes to a program."""
    import os

    from rich.console import Console

    # Names and notes come from plugins and may hold brackets: they are text, never markup.
    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LISTING_WIDTH
    return console


def plain_table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int = LISTING_WIDTH, title: str | None = None
) -> Table:
    """A table of texts, none of them cut as long as leaving columns out makes room.

    Args:
        columns: The columns: name, side ("wrap" = left, broken between words where it is too long), and how dispensable.
        rows: One text a column, columns that may be left out included.
        width: Columns of the terminal.
        title: Heading.

    Returns:
        The table with the columns that fit, the most dispensable left out first.
    """
    from rich import box
    from rich.table import Table

    rows = list(rows)
    shown = list(range(len(columns)))
    while True:
        room = sum(_natural_width(columns[index][0], [row[index] for row in rows]) for index in shown) + 2 * len(shown)
        dispensable = max(shown, key=lambda index: _drop(columns[index]))
        if room <= width or not _drop(columns[dispensable]):
            break
        shown.remove(dispensable)
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True
    )
    for index in shown:
        # Where even the indispensable does not fit, words wrap, and a figure that is cut shows that it is.
        name = columns[index][0]
        justify: _Justify = "right" if columns[index][1] == "right" else "left"
        is_whole = justify == "right" or (index == 0 and columns[index][1] != "wrap")
        table.add_column(
            name,
            justify=justify,
            no_wrap=is_whole,
            overflow="ellipsis" if is_whole else "fold",
        )
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    return table


def _drop(column: Column) -> int:
    return column[2] if len(column) > 2 else 0


def _natural_width(name: str, texts: Iterable[str]) -> int:
    from rich.cells import cell_len

    return max(cell_len(line) for text in (name, *texts) for line in text.split("\n"))


def offer_rows(offers: Iterable[Offer], today: date) -> list[list[str]]:
    """One row an offer, doubtful, old and undated ones marked."""
    return [
        [
            offer.accelerator, offer.provider, offer.instance_type, offer.region, offer.term,
            usd(offer.usd_per_chip_hr), count(offer.chips_per_instance), offer.as_of, age_text(offer.as_of, today),
            "suspect" if offer.suspect else price_mark(offer.as_of, today),
        ]
        for offer in offers
    ]  # fmt: skip


def print_mapping(console: Console, title: str, mapping: Mapping[str, Any]) -> None:
    """A two-column listing."""
    console.print(title, style="bold")
    for name, value in mapping.items():
        console.print(f"  {name}: {value}", highlight=False)
