"""The cost report across accelerators as text, Markdown and a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenopt.report.decisions import rendered
from tokenopt.report.tables import Column, count, listing_console, plain_table, usd

if TYPE_CHECKING:
    from tokenopt.decide.compare import Comparison, ComparisonRow

_COST: list[Column] = [
    ("accelerator", "left"), ("$/1M", "right"), ("P10-P90", "right", 2), ("out", "right", 1), ("in", "right", 1),
    ("x best", "right"), ("J/token", "right"), ("tokens/s/MW", "right", 2), ("layout", "left", 3),
    ("engine", "left", 3),
]  # fmt: skip
_MONEY: list[Column] = [
    ("accelerator", "left"), ("$/chip-hr", "right"), ("provider", "left", 2), ("term", "left", 2), ("as of", "left", 3),
    ("$/GB-hr", "right"), ("$/(TB/s)-hr", "right"), ("$/PFLOP-hr bf16", "right"), ("fp8", "right", 1),
    ("fp4", "right", 1),
]  # fmt: skip


def compare_text(report: Comparison) -> str:
    """Tables for a terminal."""
    width = listing_console().width
    parts: list[object] = []
    for value, rows, missed in _sections(report):
        parts.append(f"At least {value} tokens/s/user, {_workload(report)}:")
        parts.append(plain_table(_COST, [_cost_cells(row) for row in rows], width) if rows else "  none")
        if missed:
            parts.append(f"Out of reach for: {', '.join(missed)}.")
    parts.append("What a chip-hour buys:")
    parts.append(plain_table(_MONEY, _money_cells(report), width))
    return rendered([*parts, *_footnotes(report)])  # type: ignore[list-item]


def compare_markdown(report: Comparison) -> str:
    """The report as Markdown."""
    lines = [f"# {report.model}: cost across accelerators", "", _workload(report) + "."]
    for value, rows, missed in _sections(report):
        lines += ["", f"## At least {value} tokens/s/user", ""]
        lines += _markdown_table(_COST, [_cost_cells(row) for row in rows]) if rows else ["None."]
        if missed:
            lines += ["", f"Out of reach for: {', '.join(missed)}."]
    lines += ["", "## What a chip-hour buys", "", *_markdown_table(_MONEY, _money_cells(report))]
    for note in _footnotes(report):
        lines += ["", note]
    return "\n".join(lines) + "\n"


def compare_html(report: Comparison) -> str:
    """The report as one page that needs nothing else."""
    body = [
        f"<h1>{html.escape(report.model)}: cost across accelerators</h1>",
        f"<p>{html.escape(_workload(report))}.</p>",
    ]
    for value, rows, missed in _sections(report):
        body.append(f"<h2>At least {value} tokens/s/user</h2>")
        if rows:
            body += [_bars(rows), _html_table(_COST, [_cost_cells(row) for row in rows])]
        if missed:
            body.append(f"<p>Out of reach for: {html.escape(', '.join(missed))}.</p>")
    body += ["<h2>What a chip-hour buys</h2>", _html_table(_MONEY, _money_cells(report))]
    body += [f"<p class=note>{html.escape(note)}</p>" for note in _footnotes(report)]
    return _PAGE.replace("@title@", html.escape(report.model)).replace("@body@", "\n".join(body))


def _sections(report: Comparison) -> list[tuple[str, list[ComparisonRow], list[str]]]:
    return [
        (value, [row for row in report.rows if f"{row.interactivity:g}" == value], missed)
        for value, missed in report.missed.items()
    ]


def _workload(report: Comparison) -> str:
    lengths = report.workload
    return f"{lengths['isl']:g} tokens in, {lengths['osl']:g} out"


def _footnotes(report: Comparison) -> list[str]:
    notes = [
        f"Prices: {', '.join(report.ranked_terms)}. Energy at the meter, host, network and facility included. "
        "Where intervals overlap, either may be the cheaper one."
    ]
    if report.without_price:
        notes.append(f"Without such a price: {', '.join(report.without_price)}.")
    return notes


def _cost_cells(row: ComparisonRow) -> list[str]:
    layout = row.layout
    degrees = [f"{short}{layout[name]}" for name, short in (("tp", "tp"), ("pp", "pp"), ("attn_dp", "dp"), ("ep", "ep"))
               if layout.get(name, 1) not in (1, None)]  # fmt: skip
    mode = "" if layout.get("mode", "agg") == "agg" else f"{layout['mode']} "
    return [
        row.accelerator, usd(row.usd_per_m_tokens), f"{usd(row.interval.p10)} to {usd(row.interval.p90)}",
        usd(row.usd_per_m_output_tokens), usd(row.usd_per_m_input_tokens), f"{row.over_best:.2f}",
        f"{row.joule_per_token:.3g}", count(row.tokens_per_s_per_mw),
        f"{mode}{' '.join(degrees) or 'tp1'} x{row.layout['running_batch']:,.0f}",
        f"{row.engine} {row.weight_precision}",
    ]  # fmt: skip


def _money_cells(report: Comparison) -> list[list[str]]:
    return [
        [
            entry.accelerator, usd(entry.usd_per_chip_hr), entry.provider, entry.term, entry.as_of,
            usd(entry.usd_per_gb_hr), usd(entry.usd_per_tb_per_s_hr),
            *(usd(entry.usd_per_pflop_hr.get(name)) for name in ("bf16", "fp8", "fp4")),
        ]
        for entry in report.hardware
    ]  # fmt: skip


def _markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---:" if column[1] == "right" else "---" for column in columns]
    return [f"| {' | '.join(cells)} |" for cells in ([column[0] for column in columns], rule, *rows)]


def _html_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        parts = [
            f"<{tag} class={column[1]}>{html.escape(cell)}</{tag}>" for column, cell in zip(columns, cells, strict=True)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    head = line("th", [column[0] for column in columns])
    return f"<table><thead>{head}</thead><tbody>{''.join(line('td', row) for row in rows)}</tbody></table>"


def _bars(rows: Sequence[ComparisonRow]) -> str:
    """Cost with its interval as bars, drawn in the page itself."""
    longest = max(row.interval.p90 for row in rows)
    width, left, step = 720.0, 150.0, 22
    scale = (width - left - 90.0) / longest
    parts = []
    for place, row in enumerate(rows):
        top = place * step
        end, low, high = (left + value * scale for value in (row.usd_per_m_tokens, row.interval.p10, row.interval.p90))
        parts.append(
            f'<text x="{left - 8:g}" y="{top + 15}" text-anchor="end">{html.escape(row.accelerator)}</text>'
            f'<rect x="{left:g}" y="{top + 4}" width="{end - left:.1f}" height="14"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{top + 11}" y2="{top + 11}"/>'
            f'<text x="{max(end, high) + 6:.1f}" y="{top + 15}">{usd(row.usd_per_m_tokens)}</text>'
        )
    return f'<svg viewBox="0 0 {width:g} {len(rows) * step}" role="img">{"".join(parts)}</svg>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@title@: cost across accelerators</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; border-bottom: 1px solid #d8dee6; white-space: nowrap; }
th { text-align: left; border-bottom: 2px solid #9aa7b5; }
.right { text-align: right; }
svg { width: 100%; max-width: 45rem; font-size: 12px; }
svg rect { fill: #5b8db8; } svg line { stroke: #1c2430; stroke-width: 1.5; } svg text { fill: #1c2430; }
.note { color: #5a6775; font-size: 13px; }
</style></head><body>
@body@
</body></html>
"""
