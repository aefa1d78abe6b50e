"""`tokenopt crossover`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenopt.cli.options import (
    answer_options,
    debug_option,
    limit_options,
    parse_quotes,
    price_options,
    scope_options,
    workload_options,
    write_answer,
)

_AXES = "slo-ms, ttft-ms, e2e-ms, target-tps, isl, osl, prefix-hit, utilization, kwh or price:KEY"


@click.command("crossover")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--x", "x_axis", default="slo-ms", show_default=True, metavar="AXIS", help=f"First axis: {_AXES}.")
@click.option("--y", "y_axis", default="target-tps", show_default=True, metavar="AXIS", help="Second axis.")
@click.option("--x-range", nargs=2, type=float, metavar="LOW HIGH", help="Range of the first axis.")
@click.option("--y-range", nargs=2, type=float, metavar="LOW HIGH", help="Range of the second axis.")
@click.option("--points", type=click.IntRange(2, 200), default=9, show_default=True, help="Points of each axis.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the map of winners into a PNG, SVG or PDF file.")
@answer_options
@debug_option
def command(
    x_axis: str,
    y_axis: str,
    x_range: tuple[float, float] | None,
    y_range: tuple[float, float] | None,
    points: int,
    plot: Path | None,
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
    **flags: Any,
) -> None:
    """Map the cheapest accelerator over two inputs and find the exact points where it changes.

    Batches and fleets are real numbers here, so that two accelerators can cost the same: the continuous limit of what
    `search` ranks. Break-even prices are those at the limits given by flags.
    """
    from rich.console import Console

    from tokenopt.decide.crossover import axis, crossover
    from tokenopt.problem import SearchRequest
    from tokenopt.report.crossover import crossover_text, draw_map
    from tokenopt.report.files import check_writable

    for path in filter(None, (plot, out)):
        check_writable(path)
    flags["price"] = parse_quotes(flags["price"])
    with Console(stderr=True).status("searching") as status:

        def report(label: str, step: int, steps: int) -> None:
            status.update(f"{label} ({step + 1} of {steps})")

        result = crossover(
            SearchRequest(**flags),
            axis(x_axis, x_range, points),
            axis(y_axis, y_range, points),
            report=report,
        )
    if plot is not None:
        draw_map(result, plot)
    write_answer(result.to_dict(), lambda: crossover_text(result), output_format, out)
