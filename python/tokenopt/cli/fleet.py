"""`tokenopt fleet`."""

from __future__ import annotations

from pathlib import Path

import click

from tokenopt.cli.options import answer_options, debug_option, write_answer


@click.command("fleet")
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--demand", type=click.Path(path_type=Path, dir_okay=False),
              help="Demand curve: CSV with a line an hour and a column of output tokens/s for each workload.")  # fmt: skip
@click.option("--gap", type=click.FloatRange(0.0, 1.0), default=0.005, show_default=True,
              help="Relative gap at which the solver may stop.")  # fmt: skip
@click.option("--time-limit", type=click.FloatRange(0.1, 86400.0), default=60.0, show_default=True,
              help="Seconds of the solver.")  # fmt: skip
@answer_options
@debug_option
def command(
    plan: Path,
    demand: Path | None,
    gap: float,
    time_limit: float,
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
) -> None:
    """Find the cheapest mix of offers for several workloads, hour by hour.

    PLAN is a TOML file: workloads with their limits and demand, offers or a scope of the catalogue, availability,
    budget and vendor rules. The answer says what to commit to, what to rent by the hour, what is left unused and what
    one more chip would save.
    """
    from rich.console import Console

    from tokenopt.decide.fleet import fleet
    from tokenopt.decide.fleet_plan import load_plan
    from tokenopt.plugins import default_registry
    from tokenopt.report.decisions import fleet_text
    from tokenopt.report.files import check_writable

    if out is not None:
        check_writable(out)
    registry = default_registry()
    loaded = load_plan(plan, registry, demand)
    progress = Console(stderr=True)
    with progress.status("fleet") as status:

        def report(label: str, step: int, steps: int) -> None:
            status.update(f"searching {label} ({step + 1} of {steps})" if label else "solving")

        result = fleet(loaded, registry=registry, gap=gap, time_limit_s=time_limit, report=report)
    write_answer(result.to_dict(), lambda: fleet_text(result), output_format, out)
