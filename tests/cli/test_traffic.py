"""Percentiles, open arrivals, traces and verification of a search, as users ask for them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import answer_of

Run = Callable[..., subprocess.CompletedProcess[str]]

SCOPE = (
    "search",
    "--model",
    "llama-3.1-8b",
    "--hardware",
    "h100-sxm",
    "--price",
    "h100-sxm=2",
    "--target-rps",
    "50000",
)


def cost(answer: dict[str, Any]) -> float:
    return float(answer["best"][0]["usd_per_m_tokens"])


def test_the_limits_hold_at_the_percentile_under_open_arrivals(tokenopt: Run) -> None:
    limits = ("--slo-ms", "20", "--ttft-ms", "300", "--format", "json")

    def found(*flags: str) -> dict[str, Any]:
        return answer_of(tokenopt(*SCOPE, "--arrival", "poisson", *flags, *limits))

    mean, tail = found(), found("--percentile", "p99")
    assert mean["problem"]["traffic"]["percentile"] is None
    assert tail["problem"]["traffic"] == {"arrival": "poisson", "percentile": 0.99}
    for answer in (mean, tail):
        for solution in answer["best"]:
            assert solution["tpot_ms"] <= 20
            assert solution["ttft_ms"] <= 300
            assert solution["verified"] is None
    assert cost(mean) < cost(tail)
    # The load of a replica at the tail is lower, so more of them carry the same target.
    assert tail["best"][0]["output_tps_per_chip"] < mean["best"][0]["output_tps_per_chip"]
    assert found("--percentile", "99")["best"] == tail["best"]


def test_verification_stands_beside_the_formulas(tokenopt: Run) -> None:
    flags = ("--arrival", "poisson", "--percentile", "p90", "--slo-ms", "20", "--ttft-ms", "500", "--verify", "2")
    answer = answer_of(tokenopt(*SCOPE, *flags, "--format", "json"))
    first, second, third = (solution["verified"] for solution in answer["best"][:3])
    assert third is None
    for solution, run in zip(answer["best"], (first, second), strict=False):
        assert run["ttft_ms"]["p50"] <= run["ttft_ms"]["p90"] <= run["ttft_ms"]["p99"]
        assert not run["is_saturated"]
        # At the 90th percentile nine in ten requests should be within the limits.
        assert run["slo_attainment"]["all"] > 0.85
        assert run["output_tps_per_chip"] == pytest.approx(solution["output_tps_per_chip"], rel=0.1)
        assert run["tpot_ms"]["p90"] == pytest.approx(solution["tpot_ms"], rel=0.3)
    table = tokenopt(*SCOPE, *flags)
    assert "Simulated request by request" in table.stdout
    assert "p90, open arrivals (Poisson)" in table.stdout


def test_a_closed_loop_is_verified_too(tokenopt: Run) -> None:
    answer = answer_of(tokenopt(*SCOPE, "--slo-ms", "20", "--verify", "1", "--format", "json"))
    best = answer["best"][0]
    assert best["verified"]["tpot_ms"]["mean"] == pytest.approx(best["tpot_ms"], rel=0.15)
    assert best["verified"]["output_tps_per_chip"] == pytest.approx(best["output_tps_per_chip"], rel=0.1)


def test_a_trace_gives_lengths_spread_and_rate(tokenopt: Run, tmp_path: Path) -> None:
    rows = "".join(f"{index * 0.05},{200 + 400 * (index % 2)},{50 + 100 * (index % 2)}\n" for index in range(2000))
    (tmp_path / "trace.csv").write_text("arrival,isl,osl\n" + rows)
    scope = SCOPE[:-2]
    answer = answer_of(tokenopt(*scope, "--trace", "trace.csv", "--slo-ms", "30", "--format", "json"))
    assert answer["problem"]["workload"]["isl"] == pytest.approx(400)
    assert answer["problem"]["workload"]["osl"] == pytest.approx(100)
    traffic = answer["problem"]["traffic"]
    assert traffic["arrival"] == "poisson"
    assert traffic["osl_cv"] == pytest.approx(0.5)
    assert answer["problem"]["demand"]["output_tps"] == pytest.approx(20 * 100, rel=0.01)
    assert any(
        item["name"] == "isl/osl" and "trace.csv" in item["value"] + item["why"] for item in answer["assumptions"]
    )


def test_prompts_without_outputs_leave_no_steady_state(tokenopt: Run) -> None:
    process = tokenopt(*SCOPE, "--arrival", "poisson", "--isl", "8000", "--osl", "1")
    assert process.returncode == 3, process.stdout
    assert "of its time on prompts" in process.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--percentile", "p20"), "expected p50 to p99.9"),
        (("--percentile", "often"), "expected p50 to p99.9"),
        (("--arrival", "trace"), "expected closed, poisson"),
        (("--verify", "-1"), "verify is -1"),
        (("--trace", "none.csv"), "No such file"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tokenopt: Run, flags: tuple[str, ...], said: str) -> None:
    process = tokenopt(*SCOPE, *flags)
    assert process.returncode == 2, process.stderr
    assert said in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("mode", ["agg", "disagg"])
def test_pools_and_drafts_are_verified_too(tokenopt: Run, mode: str) -> None:
    scope = ("--model", "deepseek-r1", "--hardware", "b200-sxm", "--price", "b200-sxm=2.9", "--isl", "4096")
    limits = ("--slo-ms", "30", "--ttft-ms", "3000", "--spec", "2", "--mode", mode, "--verify", "1")
    best = answer_of(tokenopt("search", *scope, *limits, "--format", "json"))["best"][0]
    run = best["verified"]
    assert best["layout"]["mode"] == mode
    assert best["speculation"]["depth"] == 2
    assert run["tpot_ms"]["mean"] == pytest.approx(best["tpot_ms"], rel=0.1)
    assert run["output_tps_per_chip"] == pytest.approx(best["output_tps_per_chip"], rel=0.1)
    assert run["ttft_ms"]["mean"] == pytest.approx(best["ttft_ms"], rel=0.6)
