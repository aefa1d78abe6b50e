"""Terminal tables of a post-training plan. Everything shown comes from the JSON contract's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenopt.report.tables import Column, count, plain_table, usd
from tokenopt.report.training_tables import big_usd, days_text

if TYPE_CHECKING:
    from rich.table import Table

    from tokenopt.posttraining import PosttrainPlan, PosttrainResult, StageCost

_SHORT = {
    "generation": "generation",
    "reward": "reward",
    "verifier": "verifier",
    "reference log-probs": "reference",
    "policy log-probs": "old log-p",
    "critic values": "critic",
    "critic update": "critic upd",
    "policy update": "update",
    "reward-model update": "update",
}


def placement_text(plan: PosttrainPlan) -> str:
    """How stages share chips."""
    return f"{plan.placement}, overlapped" if plan.is_overlapped else plan.placement


def pools_text(plan: PosttrainPlan) -> str:
    """Chips of each pool."""
    return " + ".join(f"{count(pool.chips)} {pool.accelerator}" for pool in plan.pools)


def seconds_text(value: float) -> str:
    """Seconds with two or three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _stage_cell(stage: StageCost | None, best: float) -> str:
    if stage is None:
        return "-"
    mark = "*" if stage.usd_per_step <= best else ""
    return f"{mark}{usd(stage.usd_per_step)} {seconds_text(stage.seconds)}s"


def posttrain_tables(result: PosttrainResult, width: int) -> list[Table]:
    """The cheapest plan of each placement, each stage on each accelerator, and all stages on the same chips."""
    return [_placements(result, width), _stages(result, width), _colocated(result, width)]


def _placements(result: PosttrainResult, width: int) -> Table:
    columns: list[Column] = [
        ("placement", "left"), ("chips", "left"), ("$/step", "right", 2), ("$/1M tok", "right"),
        ("P10-P90", "right", 8), ("$/run", "right"), ("days", "right"), ("step s", "right"),
        ("generation", "right", 5), ("busy", "left", 7),
    ]  # fmt: skip
    rows = [
        [
            placement_text(plan), pools_text(plan), usd(plan.usd_per_step), usd(plan.usd_per_m_tokens),
            f"{usd(plan.interval.p10)}-{usd(plan.interval.p90)}", big_usd(plan.usd_per_run), days_text(plan.days),
            seconds_text(plan.step_time_s), f"{plan.generation_share:.0%}",
            " ".join(f"{pool.busy:.0%}" for pool in plan.pools),
        ]
        for plan in result.by_placement
    ]  # fmt: skip
    return plain_table(columns, rows, width, title="Cheapest plan of each placement, USD")


def _stages(result: PosttrainResult, width: int) -> Table:
    stages = list(dict.fromkeys(stage.stage for stage in result.by_stage))
    found = {(stage.stage, stage.accelerator): stage for stage in result.by_stage}
    best = {name: min(s.usd_per_step for s in result.by_stage if s.stage == name) for name in stages}
    totals = {plan.pools[0].accelerator: plan.usd_per_step for plan in result.by_accelerator}
    keys = sorted(
        dict.fromkeys(stage.accelerator for stage in result.by_stage),
        key=lambda key: (totals.get(key, float("inf")), key),
    )
    columns: list[Column] = [("accelerator", "left"), *((_SHORT[name], "right") for name in stages)]
    rows = [[key, *(_stage_cell(found.get((name, key)), best[name]) for name in stages)] for key in keys]
    return plain_table(columns, rows, width, title="Each stage alone: USD a step and seconds (* = cheapest)")


def _colocated(result: PosttrainResult, width: int) -> Table:
    columns: list[Column] = [
        ("accelerator", "left"), ("chips", "right"), ("$/step", "right"), ("$/1M tok", "right"), ("$/run", "right"),
        ("days", "right"), ("step s", "right"), ("generation", "right", 3), ("switch s", "right", 5),
        ("provider", "left", 4),
    ]  # fmt: skip
    rows = [
        [
            plan.pools[0].accelerator, count(plan.chips), usd(plan.usd_per_step), usd(plan.usd_per_m_tokens),
            big_usd(plan.usd_per_run), days_text(plan.days), seconds_text(plan.step_time_s),
            f"{plan.generation_share:.0%}", seconds_text(plan.switch_s + plan.weight_sync_s),
            plan.pools[0].offer.provider,
        ]
        for plan in result.by_accelerator
    ]  # fmt: skip
    return plain_table(columns, rows, width, title="All stages on the same chips, USD")


def posttrain_summary(result: PosttrainResult) -> list[str]:
    """The answer in a few lines: the plan, then each stage of it."""
    best = result.best[0]
    lines = [
        f"Cheapest: {placement_text(best)}, {pools_text(best)}: {usd(best.usd_per_m_tokens)} per 1M trained tokens, "
        f"P10-P90 {usd(best.interval.p10)} to {usd(best.interval.p90)}, {best.basis}; {usd(best.usd_per_step)} and "
        f"{seconds_text(best.step_time_s)} s a step, {big_usd(best.usd_per_run)} and {days_text(best.days)} days the run.",
    ]
    for pool in best.pools:
        stages = "; ".join(
            f"{stage.stage} {seconds_text(stage.seconds)} s ({_layout(stage)}, {stage.software})"
            for stage in pool.stages
        )
        lines.append(
            f"{count(pool.chips)} {pool.accelerator} at {pool.offer.provider} ({pool.offer.term}, "
            f"{usd(pool.offer.usd_per_chip_hr)} per chip-hour, as of {pool.offer.as_of}): {stages}."
        )
    return lines


def _layout(stage: StageCost) -> str:
    layout = stage.layout
    degrees = (("tp", layout.tp), ("pp", layout.pp), ("cp", layout.cp), ("ep", layout.ep), ("dp", layout.dp))
    return " ".join(f"{name}{value}" for name, value in degrees if value > 1) or "one chip"


def posttrain_notes(result: PosttrainResult) -> list[str]:
    """What the reader must know beside the tables."""
    problem = result.problem
    rollout = problem["rollout"]
    text = f"{problem['policy']}, {problem['algorithm']}, {problem['sequences']:,.0f} sequences a step"
    if rollout:
        text += (
            f" ({rollout['prompts']:g} prompts x {rollout['samples']:g}), {rollout['prompt_tokens']:g} tokens in, "
            f"{rollout['response_tokens']:g} out, the longest {problem['longest_response_tokens']:,.0f}"
        )
    lines = [
        f"{text}; {problem['steps']:,.0f} steps; prices ranked: {', '.join(result.ranked_terms)}",
        "assumed: " + "; ".join(f"{item.name} = {item.value} ({item.why})" for item in result.assumptions),
    ]
    if result.without_price:
        lines.append(f"no such price, left out: {', '.join(result.without_price)}")
    if result.cannot_run:
        lines.append(f"no engine or format for it, left out: {', '.join(result.cannot_run)}")
    lines.append(
        f"{result.evaluated:,} stages worked out, {result.plans:,} plans priced, {result.feasible:,} within the limits"
    )
    return lines


def posttrain_text(result: PosttrainResult, width: int, *, is_terminal: bool = False) -> str:
    """The whole answer as text: tables, the best in a few lines, notes.

    Args:
        result: The answer.
        width: Columns of the terminal.
        is_terminal: Whether to emphasise and to wrap the notes.

    Returns:
        Text that ends in a line break.
    """
    import io

    from rich.console import Console

    text = io.StringIO()
    console = Console(
        file=text, width=width, force_terminal=is_terminal, no_color=None if is_terminal else True, highlight=False,
        markup=False,
    )  # fmt: skip
    for table in posttrain_tables(result, width):
        console.print(table)
    for line in posttrain_summary(result):
        console.print(line, style="bold" if is_terminal else None, soft_wrap=not is_terminal)
    console.print()
    for line in posttrain_notes(result):
        console.print(line, style="dim" if is_terminal else None, soft_wrap=not is_terminal)
    return text.getvalue()
