"""Return on infrastructure: what tokens earn against what the chips cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tokenopt.decide.finance import check, net_present_value, payback_years, year_shares
from tokenopt.errors import SpecError
from tokenopt.units import MILLION, SECONDS_PER_HOUR

HOURS_PER_YEAR = 8766.0
MONTHS_PER_YEAR = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiInputs:
    """What the infrastructure can do, costs and earns.

    Attributes:
        tokens_per_s: Tokens/s at full load, input and output together.
        usd_per_m_tokens: Price that tokens are sold at, USD per million, input and output together.
        investment_usd: Paid before the first token.
        usd_per_hr: Running cost per hour, whatever the load.
        utilization: Share of full load that is sold on average.
        years: Time in service.
        discount_rate: Cost of capital per year, as a share.
        price_decline_per_year: How much the price falls each year, as a share.
    """

    tokens_per_s: float
    usd_per_m_tokens: float
    investment_usd: float = 0.0
    usd_per_hr: float = 0.0
    utilization: float = 1.0
    years: float = 3.0
    discount_rate: float = 0.1
    price_decline_per_year: float = 0.0


@dataclass(frozen=True, slots=True)
class RoiYear:
    """One year in service, in tokens and USD."""

    year: int
    share: float
    tokens: float
    revenue_usd: float
    running_usd: float


@dataclass(frozen=True, slots=True)
class RoiResult:
    """Return over the years.

    Attributes:
        tokens: Tokens sold.
        revenue_usd: What they earn.
        cost_usd: Investment and running cost.
        margin: Share of the revenue that is left.
        return_multiple: Revenue over cost.
        npv_usd: Net present value.
        payback_months: Months until the investment has come back, undiscounted; None = never.
        cost_usd_per_m_tokens: Cost over the tokens sold, USD per million.
        break_even_utilization: Use at which revenue equals cost; above 1 = out of reach.
        break_even_usd_per_m_tokens: First-year price at which revenue equals cost.
        years: Year by year.
        inputs: What it was worked out from.
        configuration: The configuration behind throughput and cost, where a search gave them.
    """

    tokens: float
    revenue_usd: float
    cost_usd: float
    margin: float
    return_multiple: float | None
    npv_usd: float
    payback_months: float | None
    cost_usd_per_m_tokens: float
    break_even_utilization: float | None
    break_even_usd_per_m_tokens: float
    years: list[RoiYear]
    inputs: RoiInputs
    configuration: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON."""
        return {"schema": 1, **asdict(self)}


def roi(inputs: RoiInputs, configuration: dict[str, Any] | None = None) -> RoiResult:
    """Sets token revenue against infrastructure cost.

    Assumes: throughput and running cost stay the same over the years; before tax; a year has 8,766 hours.

    Raises:
        SpecError: An input cannot be used.
    """
    _check(inputs)
    years = []
    for index, share in enumerate(year_shares(inputs.years)):
        hours = HOURS_PER_YEAR * share
        tokens = inputs.tokens_per_s * SECONDS_PER_HOUR * hours * inputs.utilization
        price = inputs.usd_per_m_tokens * (1.0 - inputs.price_decline_per_year) ** index
        years.append(RoiYear(index + 1, share, tokens, tokens / MILLION * price, inputs.usd_per_hr * hours))
    tokens = sum(year.tokens for year in years)
    revenue = sum(year.revenue_usd for year in years)
    cost = inputs.investment_usd + sum(year.running_usd for year in years)
    flows = [year.revenue_usd - year.running_usd for year in years]
    payback = payback_years(inputs.investment_usd, flows)
    return RoiResult(
        tokens=tokens,
        revenue_usd=revenue,
        cost_usd=cost,
        margin=(revenue - cost) / revenue,
        return_multiple=revenue / cost if cost > 0 else None,
        npv_usd=net_present_value(inputs.discount_rate, inputs.investment_usd, flows),
        payback_months=None if payback is None else payback * MONTHS_PER_YEAR,
        cost_usd_per_m_tokens=cost / tokens * MILLION,
        break_even_utilization=inputs.utilization * cost / revenue,
        break_even_usd_per_m_tokens=inputs.usd_per_m_tokens * cost / revenue,
        years=years,
        inputs=inputs,
        configuration=configuration,
    )


def blended_usd_per_m_tokens(isl: float, osl: float, usd_per_m_input: float, usd_per_m_output: float) -> float:
    """Price of a million tokens, input and output together, of requests of these lengths."""
    check("price of input tokens", usd_per_m_input, 0.0, 1e6)
    check("price of output tokens", usd_per_m_output, 0.0, 1e6)
    return (isl * usd_per_m_input + osl * usd_per_m_output) / (isl + osl)


def _check(inputs: RoiInputs) -> None:
    for name, low, high in (
        ("tokens_per_s", 1e-9, 1e15), ("usd_per_m_tokens", 1e-9, 1e6), ("investment_usd", 0.0, 1e13),
        ("usd_per_hr", 0.0, 1e9), ("utilization", 1e-6, 1.0), ("years", 0.01, 50.0), ("discount_rate", 0.0, 10.0),
        ("price_decline_per_year", -10.0, 0.99),
    ):  # fmt: skip
        check(name, getattr(inputs, name), low, high)
    if inputs.investment_usd == 0 and inputs.usd_per_hr == 0:
        raise SpecError("the infrastructure costs nothing: give an investment or a running cost")
