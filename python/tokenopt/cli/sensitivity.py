"""`tokenopt sensitivity`."""

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


@click.command("sensitivity")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--draws", type=click.IntRange(1, 10_000_000), default=100_000, show_default=True,
              help="Draws of all costs within their intervals; chances are then known to 0.5 / sqrt(draws).")  # fmt: skip
@click.option("--shared-variance", type=float, default=0.5, show_default=True,
              help="Share of the variance that chips of one family have in common.")  # fmt: skip
@click.option("--price-sd", type=float, default=0.0, show_default=True,
              help="Log standard deviation of prices, on top of the model's.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws.")
@answer_options
@debug_option
def command(
    draws: int,
    shared_variance: float,
    price_sd: float,
    seed: int,
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
    **flags: Any,
) -> None:
    """Show which inputs move the answer, and how likely each accelerator is the cheapest."""
    from rich.console import Console

    from tokenopt.decide.sensitivity import sensitivity
    from tokenopt.problem import SearchRequest
    from tokenopt.report.decisions import sensitivity_text

    flags["price"] = parse_quotes(flags["price"])
    with Console(stderr=True).status("searching") as status:

        def report(label: str, step: int, steps: int) -> None:
            status.update(f"moving {label} ({step + 1} of {steps})")

        result = sensitivity(
            SearchRequest(**flags),
            draws=draws,
            shared_variance=shared_variance,
            price_log_sd=price_sd,
            seed=seed,
            report=report,
        )
    write_answer(result.to_dict(), lambda: sensitivity_text(result), output_format, out)
