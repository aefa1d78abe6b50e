"""Terminal tables of the breakdown of one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenopt.report.tables import LISTING_WIDTH, WHY, Column, count, degrees_text, milliseconds, plain_table
from tokenopt.units import GB, MS_PER_S

if TYPE_CHECKING:
    from rich.table import Table

    from tokenopt.breakdown import Explanation


def explanation_tables(explanation: Explanation, width: int = LISTING_WIDTH) -> list[Table]:
    """Operators, memory and parameters of one configuration, for a terminal of `width` columns."""
    if explanation.pools:
        return _fleet_tables(explanation, width)
    solution, memory = explanation.solution, explanation.memory
    tables = [
        _operator_table(f"Decode step: {explanation.decode_step_ms:.3f} ms", explanation.decode, width),
        _operator_table(f"One prefill chunk of {count(solution.chunk_tokens)} tokens", explanation.prefill, width),
    ]
    if explanation.speculation:
        tables.append(_speculation_table(explanation, width))
    tables.append(_prompt_table(explanation, "replica", width))
    rows = [
        ["weights", f"{memory['weight_bytes'] / GB:.2f}"],
        ["cache and state of the requests in flight", f"{solution.kv_gb_per_chip:.2f}"],
        ["activations of a chunk", f"{memory['activation_bytes_per_token'] * solution.chunk_tokens / GB:.2f}"],
        ["plannable", f"{memory['plannable_bytes'] / GB:.2f}"],
        ["requests that fit a rank", count(explanation.capacity_requests)],
    ]
    tables.append(plain_table([("part", "left"), ("GB", "right")], rows, width, title="Memory of the fullest chip"))
    tables.append(_parameter_table("Parameters used", explanation.parameters, width))
    return tables


def _fleet_tables(explanation: Explanation, width: int) -> list[Table]:
    """Both pools of a disaggregated fleet side by side, the hand-over, and the operators of each."""
    solution, handover = explanation.solution, explanation.solution.handover
    prefill, decode = explanation.pools
    # A disaggregated solution has both pools and the hand-over; the types cannot say so.
    pools = [pool for pool in (solution.layout.prefill, solution.layout.decode) if pool is not None]
    columns: list[Column] = [("", "left"), ("prefill", "right"), ("decode", "right")]
    rows = [
        ["accelerator", *(pool.accelerator for pool in pools)],
        ["layout of a worker", *(degrees_text(pool) for pool in pools)],
        ["workers x chips", *(f"{count(pool.workers)} x {pool.chips_per_worker}" for pool in pools)],
        ["requests/s of a worker", *(f"{pool.requests_per_s:,.3g}" for pool in pools)],
        ["busy", *(f"{pool.utilization:.0%}" for pool in pools)],
        ["step ms", *(f"{pool['step_ms']:.3f}" for pool in explanation.pools)],
        ["bound by", *(WHY[pool["why"]] for pool in explanation.pools)],
        *(
            [f"waits for {name}", *(f"{pool['step_shares'][name]:.0%}" for pool in explanation.pools)]
            for name in ("bandwidth", "compute", "network", "latency")
        ),
    ]
    title = f"Pools: {count(solution.chips_used)} chips work, {count(solution.chips)} are paid for"
    tables = [plain_table(columns, rows, width, title=title)]
    rows = [
        [name, *(f"{pool[key]:,.2f}" for pool in explanation.pools)]
        for name, key in (
            ("weights", "weight_gb"),
            ("cache and state of the requests held", "kv_gb"),
            ("activations of a step", "activation_gb"),
            ("plannable", "plannable_gb"),
        )
    ]
    rows += [
        ["requests that a rank holds", *(f"{pool['held_requests']:,.1f}" for pool in explanation.pools)],
        ["requests that fit a rank", *(count(pool["capacity_requests"]) for pool in explanation.pools)],
    ]
    columns = [("GB", "left"), ("prefill", "right"), ("decode", "right")]
    tables.append(plain_table(columns, rows, width, title="Memory of the fullest chip"))
    if handover is not None:
        rows = [
            ["waiting for a prefill worker", milliseconds(handover.queue_ms)],
            ["prefill", milliseconds(handover.prefill_ms)],
            ["cache transfer that is not hidden", milliseconds(handover.transfer_ms)],
            ["first decode step", milliseconds(handover.first_step_ms)],
            ["time to first token", milliseconds(solution.ttft_ms)],
        ]
        way = "fast fabric" if handover.over_fabric else "network"
        title = (f"To the first token: {handover.cache_gb:.3g} GB of cache a prompt, "
                 f"{handover.link_gb_per_s:.3g} GB/s a chip over the {way}")  # fmt: skip
        tables.append(plain_table([("part", "left"), ("ms", "right")], rows, width, title=title))
    step = f"Decode worker, one step: {decode['step_ms']:.3f} ms"
    chunk = f"Prefill worker, one chunk of {count(solution.chunk_tokens)} tokens: {prefill['step_ms']:.3f} ms"
    tables.append(_operator_table(chunk, prefill["operators"], width))
    tables.append(_prompt_table(explanation, "worker", width))
    tables.append(_operator_table(step, decode["operators"], width))
    if explanation.speculation:
        tables.append(_speculation_table(explanation, width))
    if pools[0].accelerator == pools[-1].accelerator and prefill["parameters"] == decode["parameters"]:
        tables.append(_parameter_table("Parameters used", decode["parameters"], width))
    else:
        tables += [
            _parameter_table(f"Parameters used, {pool['role']}", pool["parameters"], width)
            for pool in explanation.pools
        ]
    return tables


def _operator_table(title: str, operators: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Operators of one step, longest first."""
    pieces: list[Column] = [("memory", "right"), ("compute", "right"), ("network", "right"), ("latency", "right")]
    columns: list[Column] = [
        ("operator", "left"), ("count", "right", 2), ("ms", "right"), ("share", "right", 1), *pieces
    ]  # fmt: skip
    total = sum(operator["total_ms"] for operator in operators)
    rows = [
        [
            operator["name"].replace("_", " "),
            f"{operator['count']:g}",
            _fine_milliseconds(operator["total_ms"]),
            f"{operator['total_ms'] / total:.1%}" if total else "",
            *(_fine_milliseconds(operator["pieces"][f"{name}_s"] * MS_PER_S) for name, *_ in pieces),
        ]
        for operator in sorted(operators, key=lambda item: -item["total_ms"])
    ]
    return plain_table(columns, rows, width, title=f"{title} (all times in ms)")


def _prompt_table(explanation: Explanation, place: str, width: int) -> Table:
    """Times of one prompt on a `place`."""
    prompt = explanation.prompt
    rows = [
        ["attention core", f"{prompt['core_ms']:.3f}"],
        [f"alone on the {place}", f"{prompt['alone_ms']:.3f}"],
        ["one more in shared chunks", f"{prompt['marginal_ms']:.3f}"],
    ]
    return plain_table([("time", "left"), ("ms", "right")], rows, width, title="One prompt")


def _parameter_table(title: str, parameters: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Values of the parameters and what set each."""
    rows = [
        [parameter["name"], f"{parameter['value']:.4g}", parameter["unit"], parameter["origin"]]
        for parameter in parameters
    ]
    columns: list[Column] = [("parameter", "left"), ("value", "right"), ("unit", "left"), ("from", "left")]
    return plain_table(columns, rows, width, title=title)


def _speculation_table(explanation: Explanation, width: int) -> Table:
    """The batch with and without speculative decoding."""
    pair = explanation.speculation or {}
    speculation = explanation.solution.speculation
    draft = (speculation.draft if speculation else None) or "multi-token-prediction head"
    rows = [
        [
            name,
            f"{pair[side]['step_ms']:.3f}",
            f"{pair[side]['tokens_per_step']:.2f}",
            f"{pair[side]['tpot_ms']:.3f}",
            count(pair[side]["output_tps_per_chip"]),
            f"{pair[side]['weight_gb_per_chip']:.2f}",
        ]
        for name, side in ((f"{speculation.depth if speculation else 0} drafted", "with"), ("none", "without"))
    ]
    columns: list[Column] = [("speculation", "left"), ("step ms", "right"), ("tokens/step", "right"),
                             ("TPOT ms", "right"), ("tokens/s/chip", "right"), ("weights GB", "right")]  # fmt: skip
    acceptance = f", acceptance {speculation.acceptance:g}" if speculation else ""
    title = f"Speculative decoding: {draft}{acceptance}, {pair['speedup']:.2f} x the speed at this batch"
    return plain_table(columns, rows, width, title=title)


def _fine_milliseconds(value: float) -> str:
    """Milliseconds of an operator; empty where there are none."""
    if not value:
        return ""
    return f"{value:,.1f}" if value >= 1000 else f"{value:.2f}" if value >= 10 else f"{value:.4f}"
