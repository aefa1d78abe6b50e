"""What moves the answer, and the chances of each accelerator."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tokenopt
from tokenopt.decide.sensitivity import SensitivityResult, sensitivity
from tokenopt.errors import SpecError
from tokenopt.request import SearchRequest

SCOPE = ("h100-sxm", "h200-sxm", "mi300x")
REQUEST = SearchRequest(hardware=SCOPE, model="llama-3.1-70b", slo_ms=50.0)


@pytest.fixture(scope="module")
def result() -> SensitivityResult:
    return sensitivity(REQUEST)


def test_the_price_moves_the_cost_in_proportion(result: SensitivityResult) -> None:
    swing = next(swing for swing in result.swings if swing.name.startswith("price of"))
    base = result.best.usd_per_m_tokens
    assert swing.usd_low == pytest.approx(0.75 * base)
    assert swing.winner_low == result.best.accelerator
    assert swing.usd_high is not None
    # Either still the cheapest at a quarter more, or another one is in between.
    assert base < swing.usd_high <= 1.25 * base * (1 + 1e-9)
    assert swing.is_decisive == (swing.winner_high != result.best.accelerator)


def test_half_the_use_doubles_the_cost(result: SensitivityResult) -> None:
    swing = next(swing for swing in result.swings if swing.name == "utilization")
    assert swing.usd_low == pytest.approx(result.best.usd_per_m_tokens / 0.75)


def test_the_widest_swing_comes_first(result: SensitivityResult) -> None:
    widths = [swing.width for swing in result.swings]
    assert widths == sorted(widths, reverse=True)


def test_chances_add_up_and_follow_the_cost(result: SensitivityResult) -> None:
    assert sum(chance.probability for chance in result.chances) == pytest.approx(1.0)
    assert {chance.accelerator for chance in result.chances} == set(SCOPE)
    assert all(chance.within_tenth >= chance.probability for chance in result.chances)
    assert result.chances[0].probability == max(chance.probability for chance in result.chances)


def test_a_hundred_thousand_draws_take_less_than_two_seconds(result: SensitivityResult) -> None:
    assert result.draws == 100_000
    assert result.draws_s < 2.0


def test_doubtful_prices_level_the_chances(result: SensitivityResult) -> None:
    doubtful = sensitivity(REQUEST, price_log_sd=1.0)
    assert doubtful.chances[0].probability < result.chances[0].probability
    assert sensitivity(REQUEST, seed=0).chances == result.chances


def test_the_command_prints_what_the_search_found() -> None:
    command = [
        sys.executable,
        "-m",
        "tokenopt",
        "sensitivity",
        "--slo-ms",
        "50",
        "--model",
        "llama-3.1-70b",
        "--draws",
        "5000",
    ]
    command += [part for key in SCOPE for part in ("--hardware", key)]
    process = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    found = tokenopt.search(model="llama-3.1-70b", hardware=SCOPE, slo_ms=50)
    assert answer["best"]["usd_per_m_tokens"] == found.best[0].usd_per_m_tokens
    assert answer["draws"] == 5000


@pytest.mark.parametrize(("name", "value"), [("draws", 0), ("shared_variance", 1.5), ("price_log_sd", float("nan"))])
def test_bad_arguments_are_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError):
        sensitivity(REQUEST, **{name: value})  # type: ignore[arg-type]
