"""`tokenopt explain`."""

from __future__ import annotations

import json
from typing import Any

import click

from tokenopt.cli.options import (
    debug_option,
    limit_options,
    mode_options,
    parse_quotes,
    price_options,
    scope_options,
    speculation_options,
    workload_options,
)


@click.command("explain")
@workload_options
@limit_options
@scope_options
@price_options
@speculation_options
@mode_options
@click.option("--tp", type=int, help="Tensor parallelism.")
@click.option("--pp", type=int, help="Pipeline stages.")
@click.option("--ep", type=int, help="Expert parallelism.")
@click.option("--attn-dp", type=int, help="Attention data parallelism.")
@click.option("--batch", type=int, help="Running batch of one attention rank and pipeline slot.")
@click.option("--concurrency", type=int, help="Requests in flight in a replica; instead of --batch.")
@click.option("--chunk-tokens", type=int, help="Prefill chunk, tokens.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def command(output_format: str, debug: bool, **flags: Any) -> None:  # noqa: ARG001
    """Break one configuration down: time by operator, memory, what binds, parameters used.

    Name one accelerator with --hardware; what is not given is taken from the best configuration found. Without a layout
    and a load that may be a fleet of prefill and decode pools, of which both are broken down; --mode disagg asks for it.
    """
    from tokenopt.breakdown import explain
    from tokenopt.problem import SearchRequest

    layout = {name: flags.pop(name) for name in ("tp", "pp", "ep", "attn_dp")}
    load = {name: flags.pop(name) for name in ("batch", "concurrency", "chunk_tokens")}
    flags["price"] = parse_quotes(flags["price"])
    explanation = explain(SearchRequest(**flags), layout=layout, **load)
    if output_format == "json":
        click.echo(json.dumps(explanation.to_dict(), indent=2))
        return
    from tokenopt.report.explanation import explanation_tables
    from tokenopt.report.tables import WHY, layout_text, listing_console, milliseconds, usd

    console = listing_console()
    solution = explanation.solution
    console.print(
        f"{solution.accelerator}, {solution.engine}, {solution.weight_precision} weights, {solution.kv_precision} KV, "
        f"{layout_text(solution)}, running batch {solution.running_batch:g}: "
        f"TTFT {milliseconds(solution.ttft_ms)} ms, TPOT {milliseconds(solution.tpot_ms)} ms, "
        f"{solution.output_tps_per_chip:,.0f} output tokens/s per chip, {usd(solution.usd_per_m_tokens)} per 1M tokens; "
        f"bound by {WHY[solution.why]}"
    )
    for table in explanation_tables(explanation, console.width):
        console.print(table)
    calibration = explanation.calibration
    console.print(
        f"calibration: {calibration['name']} ({calibration['basis']}), {calibration['source']}", soft_wrap=True
    )
