"""`tokenopt lifecycle`."""

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
    sale_options,
    sale_price,
    scope_options,
    workload_options,
    write_answer,
)


@click.command("lifecycle")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--pretrain-usd", type=float, help="Cost of pretraining, USD.")
@click.option("--pretrain", type=click.Path(path_type=Path, dir_okay=False),
              help="JSON answer of `tokenopt train`, instead of --pretrain-usd.")  # fmt: skip
@click.option("--posttrain-usd", type=float, help="Cost of one round of post-training, USD.")
@click.option("--posttrain", type=click.Path(path_type=Path, dir_okay=False),
              help="JSON answer of `tokenopt posttrain`, instead of --posttrain-usd.")  # fmt: skip
@click.option("--posttrain-rounds", type=float, default=0.0, show_default=True,
              help="Further rounds of post-training a year; the first is paid up front.")  # fmt: skip
@click.option("--serve-usd-per-m", type=float,
              help="Serving cost per 1M tokens (input and output); searched by default.")  # fmt: skip
@click.option("--tokens-per-day", type=float, required=True, help="Tokens served a day, input and output together.")
@click.option("--growth", type=float, default=0.0, show_default=True, help="Growth of that volume a year, as a share.")
@click.option("--years", type=float, default=2.0, show_default=True, help="Time in service.")
@click.option("--fixed-usd-per-year", type=float, default=0.0, show_default=True, help="Other cost a year.")
@click.option("--discount", type=float, default=0.1, show_default=True, help="Cost of capital a year, as a share.")
@sale_options
@answer_options
@debug_option
def command(
    pretrain_usd: float | None,
    pretrain: Path | None,
    posttrain_usd: float | None,
    posttrain: Path | None,
    posttrain_rounds: float,
    serve_usd_per_m: float | None,
    tokens_per_day: float,
    growth: float,
    years: float,
    fixed_usd_per_year: float,
    discount: float,
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
    **flags: Any,
) -> None:
    """Spread training over served tokens: cost per 1M tokens, break-even volume, net present value.

    Serving is searched with the flags of `search` unless --serve-usd-per-m gives its cost.
    """
    from tokenopt.decide.lifecycle import LifecycleInputs, lifecycle
    from tokenopt.report.decisions import lifecycle_text
    from tokenopt.serve import search

    price = sale_price(flags)
    flags["price"] = parse_quotes(flags["price"])
    interval = None
    if serve_usd_per_m is None:
        best = search(**flags).best[0]
        serve_usd_per_m, interval = best.usd_per_m_tokens, best.interval
    result = lifecycle(
        LifecycleInputs(
            pretrain_usd=_usd("pretrain", pretrain_usd, pretrain),
            posttrain_usd=_usd("posttrain", posttrain_usd, posttrain),
            posttrain_rounds_per_year=posttrain_rounds,
            serve_usd_per_m_tokens=serve_usd_per_m,
            serve_interval=interval,
            tokens_per_day=tokens_per_day,
            growth_per_year=growth,
            years=years,
            fixed_usd_per_year=fixed_usd_per_year,
            usd_per_m_tokens=price,
            discount_rate=discount,
        )
    )
    write_answer(result.to_dict(), lambda: lifecycle_text(result), output_format, out)


def _usd(name: str, amount: float | None, file: Path | None) -> float:
    from tokenopt.decide.lifecycle import usd_of_run
    from tokenopt.errors import SpecError

    if amount is not None and file is not None:
        raise SpecError(f"--{name}-usd and --{name} both give the cost: give one of them")
    return usd_of_run(file) if file is not None else amount or 0.0
