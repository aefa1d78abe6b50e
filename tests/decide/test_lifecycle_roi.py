"""Lifecycle and return on investment: numbers worked by hand, laws, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenopt.decide.finance import net_present_value, payback_years, year_shares
from tokenopt.decide.lifecycle import LifecycleInputs, lifecycle, usd_of_run
from tokenopt.decide.roi import RoiInputs, blended_usd_per_m_tokens, roi
from tokenopt.errors import SpecError
from tokenopt.serve import Interval


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tokenopt", *arguments], capture_output=True, text=True, check=False)


def test_value_today() -> None:
    # 110 in the middle of the first year at 21%: 110 / 1.1
    assert net_present_value(0.21, 50.0, [110.0]) == pytest.approx(50.0)


def test_payback_falls_within_a_year() -> None:
    assert payback_years(150.0, [100.0, 100.0]) == pytest.approx(1.5)
    assert payback_years(250.0, [100.0, 100.0]) is None
    assert payback_years(0.0, []) == 0.0


def test_a_horizon_ends_with_the_part_of_a_year() -> None:
    assert year_shares(2.5) == [1.0, 1.0, pytest.approx(0.5)]


LIFE = LifecycleInputs(
    pretrain_usd=3.6525e6, serve_usd_per_m_tokens=0.02, tokens_per_day=1e12, years=1.0, usd_per_m_tokens=0.04,
    discount_rate=0.0, serve_interval=Interval(0.015, 0.03),
)  # fmt: skip


def test_training_is_spread_over_the_tokens() -> None:
    # 365.25e12 tokens: 3.6525e6 USD are 0.01 per million.
    result = lifecycle(LIFE)
    assert result.training_usd_per_m_tokens == pytest.approx(0.01)
    assert result.usd_per_m_tokens == pytest.approx(0.03)
    assert result.interval is not None
    assert (result.interval.p10, result.interval.p90) == (pytest.approx(0.025), pytest.approx(0.04))
    # 0.02 left per million: half of the volume pays for training.
    assert result.break_even_tokens_per_day == pytest.approx(0.5e12)
    assert result.npv_usd == pytest.approx(3.6525e6)
    assert result.payback_years == pytest.approx(0.5)
    assert result.levelised_usd_per_m_tokens == pytest.approx(0.03)


@given(st.floats(0.0, 0.5), st.floats(0.0, 3.0), st.floats(0.0, 1e6), st.floats(0.5, 6.0))
def test_at_the_break_even_volume_nothing_is_won_or_lost(
    rate: float, growth: float, fixed: float, years: float
) -> None:
    inputs = replace(
        LIFE, discount_rate=rate, growth_per_year=growth, fixed_usd_per_year=fixed, years=years, posttrain_usd=1e5,
        posttrain_rounds_per_year=2.0,
    )  # fmt: skip
    volume = lifecycle(inputs).break_even_tokens_per_day
    assert volume is not None
    at_break_even = lifecycle(replace(inputs, tokens_per_day=volume))
    assert at_break_even.npv_usd == pytest.approx(0.0, abs=1.0)
    assert at_break_even.levelised_usd_per_m_tokens == pytest.approx(0.04)


def test_no_volume_pays_when_serving_costs_more_than_the_price() -> None:
    assert lifecycle(replace(LIFE, usd_per_m_tokens=0.02)).break_even_tokens_per_day is None


def test_the_published_fifteenfold_return_follows_from_its_inputs() -> None:
    # 72 chips x 10,000 tokens/s for three years of 8,766 h at $1.10 per million on $5M: $74.98M.
    result = roi(RoiInputs(tokens_per_s=720e3, usd_per_m_tokens=1.10, investment_usd=5e6))
    assert result.revenue_usd == pytest.approx(74.98e6, rel=1e-3)
    assert result.return_multiple == pytest.approx(15.0, rel=1e-2)
    assert result.payback_months == pytest.approx(2.4, abs=0.05)
    assert result.break_even_utilization == pytest.approx(1 / 15, rel=1e-2)


@given(st.floats(0.05, 1.0), st.floats(0.01, 5.0), st.floats(0.0, 0.5))
def test_at_the_break_even_price_revenue_is_cost(utilization: float, price: float, decline: float) -> None:
    inputs = RoiInputs(
        tokens_per_s=1e5, usd_per_m_tokens=price, usd_per_hr=100.0, utilization=utilization,
        price_decline_per_year=decline,
    )  # fmt: skip
    result = roi(inputs)
    level = roi(replace(inputs, usd_per_m_tokens=result.break_even_usd_per_m_tokens))
    assert level.revenue_usd == pytest.approx(level.cost_usd)
    assert level.margin == pytest.approx(0.0, abs=1e-9)


def test_prices_of_input_and_output_are_weighted_by_length() -> None:
    assert blended_usd_per_m_tokens(8000, 1000, 0.55, 2.19) == pytest.approx(0.7322, abs=1e-4)


def test_the_answer_of_a_training_run_is_read(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"schema": 1, "best": [{"usd_per_run": 5.5e6}]}))
    assert usd_of_run(file) == 5.5e6
    file.write_text(json.dumps({"usd_per_run": 2e5}))
    assert usd_of_run(file) == 2e5
    for text in ("{", "[]", '{"best": []}', '{"usd_per_run": "many"}', '{"usd_per_run": -1}'):
        file.write_text(text)
        with pytest.raises(SpecError):
            usd_of_run(file)


def test_roi_takes_throughput_and_cost_from_a_search() -> None:
    process = _cli(
        "roi", "--hardware", "h100-sxm", "--slo-ms", "50", "--target-tps", "1e5", "--sell", "0.1", "--utilization", "0.5",
        "--format", "json",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert answer["inputs"]["tokens_per_s"] == pytest.approx(2e5)
    assert answer["inputs"]["usd_per_hr"] == answer["configuration"]["usd_per_hr"]
    assert answer["revenue_usd"] == pytest.approx(2e5 * 0.5 * 3600 * 8766 * 3 / 1e6 * 0.1)


def test_lifecycle_searches_the_serving_cost() -> None:
    process = _cli(
        "lifecycle", "--hardware", "h100-sxm", "--slo-ms", "50", "--pretrain-usd", "1e6", "--tokens-per-day", "1e11",
        "--format", "json",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert answer["interval"]["p10"] < answer["usd_per_m_tokens"] < answer["interval"]["p90"]
    assert answer["npv_usd"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("roi", "--tokens-per-s", "1"), "no token price"),
        (("roi", "--tokens-per-s", "1", "--sell", "1"), "costs nothing"),
        (("roi", "--tokens-per-s", "nan", "--sell", "1", "--usd-per-hr", "1"), "tokens_per_s is nan"),
        (("roi", "--tokens-per-s", "1", "--sell-input", "1", "--usd-per-hr", "1"), "belong together"),
        (("roi", "--tokens-per-s", "1", "--sell", "1", "--usd-per-hr", "1", "--years", "0"), "years is 0"),
        (("lifecycle", "--tokens-per-day", "-1", "--serve-usd-per-m", "1"), "tokens_per_day is -1"),
        (("lifecycle", "--tokens-per-day", "1", "--serve-usd-per-m", "1", "--pretrain", "none.json"), "cannot be read"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    process = _cli(*arguments)
    assert process.returncode == 2
    assert words in process.stderr
    assert "Traceback" not in process.stderr
