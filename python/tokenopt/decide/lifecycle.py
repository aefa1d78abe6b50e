"""The whole life of a model: training and post-training spread over the tokens it serves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenopt.decide.finance import check, net_present_value, payback_years, year_shares
from tokenopt.errors import SpecError
from tokenopt.serve import Interval
from tokenopt.units import MILLION

DAYS_PER_YEAR = 365.25
MOST_USD = 1e13


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleInputs:
    """What a model costs before it serves, while it serves, and what it earns.

    Attributes:
        pretrain_usd: Cost of pretraining, USD, paid before the first token is served.
        posttrain_usd: Cost of one round of post-training, USD.
        posttrain_rounds_per_year: Further rounds each year of service; the first is paid up front.
        serve_usd_per_m_tokens: Cost of serving, USD per million tokens, input and output together.
        serve_interval: P10 and P90 of it, where known.
        tokens_per_day: Tokens served a day in the first year, input and output together.
        growth_per_year: Growth of that volume, as a share.
        years: Time in service.
        fixed_usd_per_year: Other cost a year.
        usd_per_m_tokens: Price that the tokens are sold at, USD per million; None = not sold.
        discount_rate: Cost of capital per year, as a share.
    """

    serve_usd_per_m_tokens: float
    tokens_per_day: float
    pretrain_usd: float = 0.0
    posttrain_usd: float = 0.0
    posttrain_rounds_per_year: float = 0.0
    serve_interval: Interval | None = None
    growth_per_year: float = 0.0
    years: float = 2.0
    fixed_usd_per_year: float = 0.0
    usd_per_m_tokens: float | None = None
    discount_rate: float = 0.1


@dataclass(frozen=True, slots=True)
class LifecycleYear:
    """One year in service, in tokens and USD."""

    year: int
    share: float
    tokens: float
    serving_usd: float
    training_usd: float
    fixed_usd: float
    revenue_usd: float | None


@dataclass(frozen=True, slots=True)
class LifecycleResult:
    """Cost of a served token over the life of a model.

    Attributes:
        tokens: Tokens served.
        usd: All cost, undiscounted.
        usd_per_m_tokens: All cost over all tokens, USD per million.
        training_usd_per_m_tokens, serving_usd_per_m_tokens, fixed_usd_per_m_tokens: Its parts.
        interval: P10 and P90 of `usd_per_m_tokens`, from the interval of serving; None where that is unknown.
        levelised_usd_per_m_tokens: Price at which the net present value is zero.
        break_even_tokens_per_day: First-year volume at which the net present value is zero at the price given; None
            where there is no price, or serving alone costs more.
        npv_usd: Net present value at the price given; None without a price.
        payback_years: Years until training has come back, undiscounted; None = never, or no price.
        years: Year by year.
        inputs: What it was worked out from.
    """

    tokens: float
    usd: float
    usd_per_m_tokens: float
    training_usd_per_m_tokens: float
    serving_usd_per_m_tokens: float
    fixed_usd_per_m_tokens: float
    interval: Interval | None
    levelised_usd_per_m_tokens: float
    break_even_tokens_per_day: float | None
    npv_usd: float | None
    payback_years: float | None
    years: list[LifecycleYear]
    inputs: LifecycleInputs

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON."""
        return {"schema": 1, **asdict(self)}


def lifecycle(inputs: LifecycleInputs) -> LifecycleResult:
    """Spreads what a model costs before it serves over the tokens that it serves.

    Assumes: volume grows once a year; serving costs the same per token at any volume (whole instances are rounded by the
    search that gave the figure); everything is taken before tax.

    Raises:
        SpecError: An input cannot be used.
    """
    _check(inputs)
    years = _years(inputs)
    tokens = sum(year.tokens for year in years)
    training = inputs.pretrain_usd + inputs.posttrain_usd + sum(year.training_usd for year in years)
    serving = sum(year.serving_usd for year in years)
    fixed = sum(year.fixed_usd for year in years)
    usd = training + serving + fixed

    def per_m(amount: float) -> float:
        return amount / tokens * MILLION

    price = inputs.usd_per_m_tokens
    flows = [(year.revenue_usd or 0.0) - _outlay(year) for year in years]
    upfront = inputs.pretrain_usd + inputs.posttrain_usd
    shift = None
    if inputs.serve_interval is not None:
        rest = per_m(training + fixed)
        shift = Interval(inputs.serve_interval.p10 + rest, inputs.serve_interval.p90 + rest)
    return LifecycleResult(
        tokens=tokens,
        usd=usd,
        usd_per_m_tokens=per_m(usd),
        training_usd_per_m_tokens=per_m(training),
        serving_usd_per_m_tokens=per_m(serving),
        fixed_usd_per_m_tokens=per_m(fixed),
        interval=shift,
        levelised_usd_per_m_tokens=_levelised(inputs, years, upfront),
        break_even_tokens_per_day=_break_even(inputs, years, upfront),
        npv_usd=net_present_value(inputs.discount_rate, upfront, flows) if price is not None else None,
        payback_years=payback_years(upfront, flows) if price is not None else None,
        years=years,
        inputs=inputs,
    )


def _outlay(year: LifecycleYear) -> float:
    return year.serving_usd + year.training_usd + year.fixed_usd


def _years(inputs: LifecycleInputs) -> list[LifecycleYear]:
    years = []
    for index, share in enumerate(year_shares(inputs.years)):
        tokens = inputs.tokens_per_day * DAYS_PER_YEAR * share * (1.0 + inputs.growth_per_year) ** index
        price = inputs.usd_per_m_tokens
        years.append(
            LifecycleYear(
                year=index + 1,
                share=share,
                tokens=tokens,
                serving_usd=tokens / MILLION * inputs.serve_usd_per_m_tokens,
                training_usd=inputs.posttrain_usd * inputs.posttrain_rounds_per_year * share,
                fixed_usd=inputs.fixed_usd_per_year * share,
                revenue_usd=None if price is None else tokens / MILLION * price,
            )
        )
    return years


def _discounted(inputs: LifecycleInputs, amounts: list[float]) -> float:
    return net_present_value(inputs.discount_rate, 0.0, amounts)


def _levelised(inputs: LifecycleInputs, years: list[LifecycleYear], upfront: float) -> float:
    cost = upfront + _discounted(inputs, [_outlay(year) for year in years])
    return cost / _discounted(inputs, [year.tokens for year in years]) * MILLION


def _break_even(inputs: LifecycleInputs, years: list[LifecycleYear], upfront: float) -> float | None:
    """Volume is a factor on every year's tokens, so what does not scale with it is divided by what each token leaves."""
    price = inputs.usd_per_m_tokens
    if price is None or price <= inputs.serve_usd_per_m_tokens:
        return None
    lasting = upfront + _discounted(inputs, [year.training_usd + year.fixed_usd for year in years])
    per_daily_token = _discounted(inputs, [year.tokens for year in years]) / inputs.tokens_per_day
    left_per_token = (price - inputs.serve_usd_per_m_tokens) / MILLION
    return lasting / (left_per_token * per_daily_token)


def _check(inputs: LifecycleInputs) -> None:
    for name, low, high in (
        ("serve_usd_per_m_tokens", 0.0, 1e6), ("tokens_per_day", 1e-6, 1e18), ("pretrain_usd", 0.0, MOST_USD),
        ("posttrain_usd", 0.0, MOST_USD), ("posttrain_rounds_per_year", 0.0, 1000.0), ("growth_per_year", -1.0, 100.0),
        ("years", 0.01, 50.0), ("fixed_usd_per_year", 0.0, MOST_USD), ("usd_per_m_tokens", 0.0, 1e6),
        ("discount_rate", 0.0, 10.0),
    ):  # fmt: skip
        value = getattr(inputs, name)
        if value is not None:
            check(name, value, low, high)


def usd_of_run(file: Path) -> float:
    """Cost of a run from the JSON answer of `tokenopt train` or `tokenopt posttrain`.

    Raises:
        SpecError: The file is no such answer.
    """
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"{file} cannot be read: {error}") from error
    best = answer.get("best") if isinstance(answer, dict) else None
    places = [answer, best[0] if isinstance(best, list) and best else None]
    for place in places:
        usd = place.get("usd_per_run") if isinstance(place, dict) else None
        if isinstance(usd, (int, float)) and not isinstance(usd, bool):
            check(f"{file.name} usd_per_run", usd, 0.0, MOST_USD)
            return float(usd)
    raise SpecError(f"{file} has no usd_per_run: expected the JSON answer of `tokenopt train` or `tokenopt posttrain`")
