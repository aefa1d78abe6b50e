"""`tokenopt compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tokenopt.cli.options import (
    debug_option,
    limit_options,
    parse_quotes,
    price_options,
    scope_options,
    workload_options,
)


@click.command("compare")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--interactivity", "interactivities", type=float, multiple=True, default=(20.0, 50.0, 100.0),
              show_default=True, metavar="TPS", help="Output tokens/s that a user sees at least; repeatable.")  # fmt: skip
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv", "markdown", "html"]),
              default="table", show_default=True, help="Form of the report.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the report to a file instead.")
@debug_option
def command(
    interactivities: tuple[float, ...],
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
    **flags: Any,
) -> None:
    """Set accelerators side by side: tokens, energy, memory and arithmetic for the money.

    At each interactivity the cheapest configuration of every accelerator: $ per 1M tokens with its interval, J per
    token, tokens/s per MW; and what a chip-hour buys: $ per GB, per TB/s and per PFLOP/s.
    """
    from tokenopt.decide.compare import compare
    from tokenopt.problem import SearchRequest
    from tokenopt.report.compare import compare_html, compare_markdown, compare_text
    from tokenopt.report.files import check_writable, to_csv, write_atomically

    if out is not None:
        check_writable(out)
    flags["price"] = parse_quotes(flags["price"])
    report = compare(SearchRequest(**flags), interactivities)
    text = {
        "table": lambda: compare_text(report),
        "json": lambda: json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n",
        "csv": lambda: to_csv(report.flat_rows()),
        "markdown": lambda: compare_markdown(report),
        "html": lambda: compare_html(report),
    }[output_format]()
    if out is not None:
        write_atomically(out, text.encode())
    else:
        click.echo(text, nl=False)
