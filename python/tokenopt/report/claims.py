"""Checked claims as a table and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenopt.decide.claims import ClaimResult, Finding


def figure(value: float | None, unit: str) -> str:
    """A figure with three digits and its unit; a dash where there is none."""
    if value is None:
        return "-"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"${digits}" if unit.startswith("USD") else f"{digits}x" if unit == "times" else digits


def table(results: Sequence[ClaimResult]) -> str:
    """One line a claim, then why."""
    import io

    from rich.console import Console

    from tokenopt.report.tables import Column, plain_table

    console = Console()
    text = io.StringIO()
    plain = Console(file=text, width=console.width, no_color=True, highlight=False, markup=False)
    columns: list[Column] = [("key", "left"), ("claimed", "right"), ("measured", "right"), ("model", "right"),
                             ("verdict", "left"), ("claim", "left", 1)]  # fmt: skip
    rows = [
        [result.key, figure(result.claimed, result.unit), figure(result.measured, result.unit),
         figure(result.predicted, result.unit), result.verdict, result.title]
        for result in results
    ]  # fmt: skip
    plain.print(plain_table(columns, rows, console.width))
    for result in results:
        plain.print(f"{result.key}: {result.verdict}. {result.why}", soft_wrap=True)
    return text.getvalue()


def markdown(results: Sequence[ClaimResult]) -> str:
    """The overview, then each claim with its sources and figures."""
    lines = [
        "| claim | claimed | measured | model | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| [{result.title}](#{result.key}) | {figure(result.claimed, result.unit)} | {figure(result.measured, result.unit)} "
        f"| {figure(result.predicted, result.unit)} | {result.verdict} |"
        for result in results
    ]
    for result in results:
        lines += ["", f"## {result.key}", "", f"**{result.title}** ({result.who})", ""]
        lines += [f"- Source: {result.source}", f"- Operating point: {result.operating_point}"]
        lines += [f"- Verdict: **{result.verdict}**. {result.why}", ""]
        lines += ["| quantity | claimed | measured | model | rests on |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(finding) for finding in result.findings]
    return "\n".join(lines) + "\n"


def _row(finding: Finding) -> str:
    figures = (figure(value, finding.unit) for value in (finding.claimed, finding.measured, finding.predicted))
    what = finding.what.replace("  ", "&nbsp;&nbsp;", 1)
    return f"| {what} | {' | '.join(figures)} | {finding.note.replace('|', '/')} |"
