"""The map of winners as a table and as a picture."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from tokenopt.report.decisions import rendered
from tokenopt.report.tables import listing_console, plain_table, usd

if TYPE_CHECKING:
    from tokenopt.decide.crossover import Axis, Cell, CrossoverResult


def crossover_text(result: CrossoverResult) -> str:
    """The map, the exact changes, the break-even prices."""
    width = listing_console().width
    count = len(result.x.values)
    grid = plain_table(
        [(f"{result.y.name} \\ {result.x.name}", "right"), *((f"{value:.4g}", "left") for value in result.x.values)],
        [
            [f"{value:.4g}", *(_cell_text(cell) for cell in result.cells[row * count : (row + 1) * count])]
            for row, value in enumerate(result.y.values)
        ],
        max(width, 1000),
    )
    changes = plain_table(
        [
            (result.y.name, "right"), (result.x.name, "right"), ("before", "left"), ("after", "left"),
            ("$/1M", "right"), ("", "left"),
        ],
        [
            [
                f"{change.y:.4g}", f"{change.x:.6g}", change.before or "none", change.after or "none",
                usd(change.usd_after if change.usd_after is not None else change.usd_before),
                {"cost": "", "limit": "one cannot serve beyond", "jump": "a layout becomes possible"}[change.kind],
            ]
            for change in result.crossovers
        ],
        width,
    )  # fmt: skip
    prices = plain_table(
        [("accelerator", "left"), ("$/1M", "right"), ("$/chip-hr", "right"), ("break-even $/chip-hr", "right"), ("", "left", 1)],
        [
            [
                entry.accelerator, usd(entry.usd_per_m_tokens), usd(entry.usd_per_chip_hr),
                usd(entry.break_even_usd_per_chip_hr),
                "stays the cheapest up to this" if entry.is_winner
                else f"{entry.break_even_usd_per_chip_hr / entry.usd_per_chip_hr - 1:+.0%} to tie",
            ]
            for entry in result.break_even
        ],
        width,
    )  # fmt: skip
    return rendered(
        [
            f"Cheapest for {result.model}, with how much more the next costs (* = beyond both intervals):",
            grid,
            f"Where the cheapest changes along {result.x.name}:"
            if result.crossovers
            else "The cheapest never changes.",
            *([changes] if result.crossovers else []),
            "Price at which each would tie, at the limits given:",
            prices,
            f"Prices ranked: {', '.join(result.ranked_terms)}. Batches and fleets are real numbers here.",
        ]
    )


def _cell_text(cell: Cell) -> str:
    if not cell.winner:
        return "-"
    if cell.margin is None:
        return cell.winner
    return f"{cell.winner} +{cell.margin:.0%}{'*' if cell.is_sure else ''}"


def draw_map(result: CrossoverResult, path: Path) -> None:
    """Draws the map of winners: colour = the winner, numbers = its margin, lines = exact changes.

    Raises:
        SpecError: The file cannot be written, or its ending names no picture format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from tokenopt.errors import SpecError
    from tokenopt.report.files import write_atomically

    ending = path.suffix.lower().lstrip(".")
    if ending not in ("png", "svg", "pdf"):
        raise SpecError(f"--plot {path} ends in {path.suffix!r}, expected .png, .svg or .pdf")
    figure = Figure(figsize=(9.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    named = {cell.winner for cell in result.cells} | {change.after for change in result.crossovers}
    names = sorted(named - {""})
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    x_edges, y_edges = _edges(result.x), _edges(result.y)
    count = len(result.x.values)
    for row, value in enumerate(result.y.values):
        low, high = y_edges[row], y_edges[row + 1]
        cells = result.cells[row * count : (row + 1) * count]
        changes = [change for change in result.crossovers if change.y == value]
        # Colours change where the winner does, not at the borders of the grid.
        borders = [x_edges[0], *(change.x for change in changes), x_edges[-1]]
        winners = [cells[0].winner, *(change.after for change in changes)]
        for (left, right), winner in zip(itertools.pairwise(borders), winners, strict=True):
            axes.fill_between([left, right], low, high, color=colours.get(winner, "#eeeeee"), alpha=0.7, linewidth=0)
        for change in changes:
            axes.plot([change.x] * 2, [low, high], color="#1c2430", linewidth=1.4)
        for column, cell in enumerate(cells):
            if cell.margin is not None and count <= MOST_LABELS:
                axes.text(
                    result.x.values[column], _middle(result.y, low, high), f"+{cell.margin:.0%}", ha="center",
                    va="center", fontsize=7, color="#1c2430", bbox={"facecolor": "white", "alpha": 0.5, "linewidth": 0, "pad": 1},
                )  # fmt: skip
    for scale, one, edges in ((axes.set_xscale, result.x, x_edges), (axes.set_yscale, result.y, y_edges)):
        scale("log" if one.is_logarithmic else "linear")
        (axes.set_xlim if one is result.x else axes.set_ylim)(edges[0], edges[-1])
    axes.set_xlabel(_LABELS.get(result.x.name, result.x.name))
    axes.set_ylabel(_LABELS.get(result.y.name, result.y.name))
    axes.set_title(f"Cheapest accelerator for {result.model}; numbers: how much more the next one costs", fontsize=10)
    handles = [axes.fill_between([], [], [], color=colours[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format=ending, dpi=150)
    write_atomically(path, stream.getvalue())


MOST_LABELS = 12
"""Columns up to which margins are written into the picture."""
_COLOURS = (
    "#4c78a8", "#e4572e", "#76b041", "#b279a2", "#f2a541", "#2a9d8f", "#9c755f", "#ff9da6", "#5d6d7e", "#8e6c8a",
    "#c0ca33", "#00838f",
)  # fmt: skip
_LABELS = {
    "slo-ms": "limit on time per output token, ms", "ttft-ms": "limit on time to first token, ms",
    "e2e-ms": "limit on the whole request, ms", "target-tps": "output tokens/s of the fleet", "isl": "prompt, tokens",
    "osl": "output, tokens", "kwh": "electricity, $/kWh", "utilization": "utilization",
    "prefix-hit": "share of the prompt in the cache",
}  # fmt: skip


def _edges(one: Axis) -> list[float]:
    """Borders of the cells around the values of an axis."""
    values = one.values
    middles = [_middle(one, low, high) for low, high in itertools.pairwise(values)]
    if one.is_logarithmic:
        return [values[0] ** 2 / middles[0], *middles, values[-1] ** 2 / middles[-1]]
    return [2 * values[0] - middles[0], *middles, 2 * values[-1] - middles[-1]]


def _middle(one: Axis, low: float, high: float) -> float:
    return (low * high) ** 0.5 if one.is_logarithmic else 0.5 * (low + high)
