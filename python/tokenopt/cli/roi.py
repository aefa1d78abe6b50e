"""`tokenopt roi`."""

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


@click.command("roi")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--tokens-per-s", type=float,
              help="Tokens/s of the infrastructure at full load, input and output together; searched by default.")  # fmt: skip
@click.option("--investment-usd", type=float, help="Paid before the first token; rented chips need none.")
@click.option("--usd-per-hr", type=float, help="Running cost per hour; that of the searched fleet by default.")
@click.option("--years", type=float, default=3.0, show_default=True, help="Time in service.")
@click.option("--discount", type=float, default=0.1, show_default=True, help="Cost of capital a year, as a share.")
@click.option("--price-decline", type=float, default=0.0, show_default=True,
              help="How much the token price falls each year, as a share.")  # fmt: skip
@sale_options
@answer_options
@debug_option
def command(
    tokens_per_s: float | None,
    investment_usd: float | None,
    usd_per_hr: float | None,
    years: float,
    discount: float,
    price_decline: float,
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
    **flags: Any,
) -> None:
    """Set token revenue against infrastructure cost: margin, payback, net present value, break-even price.

    Throughput and running cost come from the best configuration that a search with these flags finds; or give
    --tokens-per-s with --investment-usd or --usd-per-hr.
    """
    from tokenopt.decide.roi import RoiInputs, roi
    from tokenopt.errors import SpecError
    from tokenopt.report.decisions import roi_text
    from tokenopt.serve import search

    price = sale_price(flags)
    if price is None:
        raise SpecError("no token price is given: --sell, or --sell-input and --sell-output")
    flags["price"] = parse_quotes(flags["price"])
    utilization = flags.pop("utilization")
    configuration = None
    if tokens_per_s is None:
        best = search(**flags).best[0]
        configuration = best.to_dict()
        tokens_per_s = best.output_tps * (flags["isl"] + flags["osl"]) / flags["osl"]
        if usd_per_hr is None and investment_usd is None:
            usd_per_hr = best.usd_per_hr
    inputs = RoiInputs(
        tokens_per_s=tokens_per_s,
        usd_per_m_tokens=price,
        investment_usd=investment_usd or 0.0,
        usd_per_hr=usd_per_hr or 0.0,
        utilization=utilization,
        years=years,
        discount_rate=discount,
        price_decline_per_year=price_decline,
    )
    result = roi(inputs, configuration)
    write_answer(result.to_dict(), lambda: roi_text(result), output_format, out)
