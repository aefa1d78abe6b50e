"""`tokenopt search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenopt.cli import say
from tokenopt.cli.options import (
    debug_option,
    limit_options,
    mode_options,
    parse_quotes,
    price_options,
    scope_options,
    speculation_options,
    traffic_options,
    workload_options,
)
from tokenopt.cli.output import FORMATS, check_output, progress, write_answer
from tokenopt.errors import PluginError


@click.command("search")
@workload_options
@limit_options
@traffic_options
@scope_options
@price_options
@mode_options
@speculation_options
@click.option("--objective", default="cost", show_default=True, help="What to minimise: cost, energy, or throughput "
              "(per chip, maximised).")  # fmt: skip
@click.option("--basis", default="both", show_default=True, help="What the answer rests on: calibrated (the model), measured "
              "(benchmarks, never beyond their points), or both (the model, and beside it what was measured).")  # fmt: skip
@click.option("--top", type=int, default=10, show_default=True, help="Layouts in `best`.")
@click.option("--verify", type=int, default=0, metavar="N",
              help="Simulate the N best request by request and show percentiles beside the formulas.")  # fmt: skip
@click.option("--exhaustive", is_flag=True, help="Evaluate every configuration instead of skipping what cannot win.")
@click.option("--threads", type=int, default=0, help="Threads of the core; 0 = all.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer to this file instead of the terminal.")
@click.option("--strict", is_flag=True, help="Fail when a plugin is broken instead of skipping it.")
@debug_option
def command(output_format: str, out: Path | None, strict: bool, debug: bool, **flags: Any) -> None:  # noqa: ARG001
    """Find the cheapest hardware, layout and batching that meets the limits.

    The table shows the cheapest configuration of each accelerator. Exit code 3: nothing meets the limits.
    """
    check_output(output_format, out)
    from tokenopt.plugins import load_plugins
    from tokenopt.problem import SearchRequest
    from tokenopt.serve import answered, compile_request

    flags["price"] = parse_quotes(flags["price"])
    registry = load_plugins(strict=strict)
    problem = compile_request(SearchRequest(**flags), registry)
    problems = [*registry.problems, *problem.notes]
    if strict and problems:
        raise PluginError(problems[0])
    with progress("searching"):
        result = answered(problem, registry)
    for note in result.notes:
        say(f"warning: {note}")
    from tokenopt.report.tables import search_text

    write_answer(result, output_format, out, search_text)
