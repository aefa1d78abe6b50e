"""Text of a simulation. Everything shown comes from the JSON contract's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenopt.report.tables import Column, count, layout_text, milliseconds, plain_table
from tokenopt.units import MS_PER_S

if TYPE_CHECKING:
    from tokenopt.simulation import Simulation
    from tokenopt.verification import Percentiles

_MEASURES = (("TTFT", "ttft", "ttft_s"), ("TPOT", "tpot", "tpot_s"), ("whole request", "e2e", "e2e_s"))


def simulation_text(simulation: Simulation, width: int) -> str:
    """The answer as a table with the formulas beside, and what to know of the run.

    Args:
        simulation: The answer.
        width: Columns of the terminal.

    Returns:
        Text that ends in a line break.
    """
    run, solution = simulation.simulated, simulation.configuration
    columns: list[Column] = [
        ("ms", "left"), ("formula", "right"), ("mean", "right"), ("p50", "right"), ("p90", "right"), ("p99", "right"),
        ("limit", "right"), ("within", "right"),
    ]  # fmt: skip
    rows = []
    for label, name, limit_name in _MEASURES:
        found: Percentiles | None = getattr(run, f"{name}_ms")
        if found is None:
            continue
        limit = _limit_ms(simulation, limit_name)
        rows.append(
            [
                label,
                milliseconds(getattr(solution, f"{name}_ms")),
                *(milliseconds(value) for value in (found.mean, found.p50, found.p90, found.p99)),
                "-" if limit is None else milliseconds(limit),
                "-" if limit is None else f"{getattr(run.slo_attainment, name):.1%}",
            ]
        )
    lines = [
        f"{solution.accelerator} ({solution.engine}, {solution.weight_precision} weights, {solution.kv_precision} KV), "
        f"{layout_text(solution)}, chunks of {count(solution.chunk_tokens)} tokens; {_traffic_text(simulation)}.",
        "",
        _table_text(columns, rows, width),
        f"{run.output_tps:,.0f} output tokens/s ({run.output_tps_per_chip:,.0f} per chip; formula "
        f"{solution.output_tps_per_chip:,.0f}), {run.requests_per_s:,.3g} requests/s"
        + (f", {run.goodput_requests_per_s:,.3g} of them within every limit" if _has_limit(simulation) else "")
        + ".",
        f"{run.running_batch:,.1f} requests decode on average (most on a rank {count(run.most_running_per_rank)}); "
        f"{run.queue_mean:,.1f} wait for room (longest queue {count(run.queue_max)}); "
        f"cache {run.cache_used_share:.0%} used; prompts take {run.prefill_share:.0%} of the time.",
    ]
    if run.is_saturated:
        lines.append("Saturated: requests arrive faster than the replica serves them; waits grow with the run.")
    if run.refused:
        lines.append(f"{run.refused:,} requests fit no rank beside the weights and were dropped.")
    lines.append("")
    lines.append(
        f"{run.requests:,} requests measured over {run.measured_s:,.0f} simulated seconds, after "
        f"{simulation.traffic['warmup']:,} to warm up, in {run.elapsed_s:.3f} s; seed {simulation.traffic['seed']}"
    )
    return "\n".join(lines) + "\n"


def _table_text(columns: list[Column], rows: list[list[str]], width: int) -> str:
    import io

    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=width, no_color=True, highlight=False, markup=False)
    console.print(plain_table(columns, rows, width))
    return text.getvalue().rstrip("\n") + "\n"


def _has_limit(simulation: Simulation) -> bool:
    return any(_limit_ms(simulation, name) is not None for _, _, name in _MEASURES)


def _limit_ms(simulation: Simulation, name: str) -> float | None:
    limits = simulation.limits
    limit = limits.get(name)
    if name == "tpot_s" and limits.get("min_tps_per_user"):
        slowest = 1.0 / (limits["min_tps_per_user"] or 1.0)
        limit = slowest if limit is None else min(limit, slowest)
    return None if limit is None else limit * MS_PER_S


def _traffic_text(simulation: Simulation) -> str:
    traffic, run = simulation.traffic, simulation.simulated
    lengths = f"{run.mean_isl:,.0f} tokens in and {run.mean_osl:,.0f} out ({traffic['lengths']})"
    if traffic["arrival"] == "closed":
        return f"{count(traffic['concurrency'])} requests in flight, {lengths}"
    rate = f"{traffic['requests_per_s']:,.3g} requests/s" if traffic["requests_per_s"] else "all at once"
    kind = "as in the trace" if traffic["arrival"] == "trace" else "Poisson"
    return f"{rate} ({kind}), {lengths}"
