"""`tokenopt simulate`."""

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


@click.command("simulate")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--tp", type=int, help="Tensor parallelism.")
@click.option("--pp", type=int, help="Pipeline stages.")
@click.option("--ep", type=int, help="Expert parallelism.")
@click.option("--attn-dp", type=int, help="Attention data parallelism.")
@click.option("--chunk-tokens", type=int, help="Prefill chunk, tokens.")
@click.option("--concurrency", type=int, help="Requests in flight, each replaced as it ends (closed loop).")
@click.option("--rate", type=float, metavar="RPS", help="Requests/s that arrive at the replica; scales a trace to it.")
@click.option("--arrival", help="closed, poisson or trace; what the other flags say by default.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE",
              help="Arrivals and lengths of real requests: CSV (arrival, isl, osl) or JSON lines.")  # fmt: skip
@click.option("--length-low", type=float, metavar="SHARE",
              help="Draw lengths evenly from this share of --isl and --osl to the whole.")  # fmt: skip
@click.option("--length-cv", type=float, metavar="CV",
              help="Draw log-normal lengths around --isl and --osl with this standard deviation over mean.")  # fmt: skip
@click.option(
    "--max-running", type=int, help="Most requests an attention rank holds at once; memory decides otherwise."
)
@click.option("--requests", type=int, help="Requests measured; at least ten for each one in flight by default.")
@click.option("--warmup", type=int, help="Requests that end before measuring begins.")
@click.option("--seed", type=int, default=0, show_default=True, help="Start of the random draws.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def command(output_format: str, debug: bool, **flags: Any) -> None:  # noqa: ARG001
    """Simulate one replica request by request: latencies by percentile, throughput, share of requests within the limits.

    What is not given (hardware, layout, load) is taken from the best configuration that a search finds.
    """
    from tokenopt.problem import SearchRequest
    from tokenopt.simulation import simulate

    layout = {name: flags.pop(name) for name in ("tp", "pp", "ep", "attn_dp")}
    run = {
        name: flags.pop(name)
        for name in ("chunk_tokens", "concurrency", "rate", "arrival", "trace", "length_low", "length_cv",
                     "max_running", "requests", "warmup", "seed")
    }  # fmt: skip
    flags["price"] = parse_quotes(flags["price"])
    simulation = simulate(SearchRequest(**flags), layout=layout, **run)
    if output_format == "json":
        click.echo(json.dumps(simulation.to_dict(), indent=2))
        return
    from rich.console import Console

    from tokenopt.report.simulation import simulation_text

    terminal = Console()
    click.echo(simulation_text(simulation, terminal.width), nl=False)
