"""`tokenopt simulate` as users run it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenopt as api
from tests.conftest import answer_of

Run = Callable[..., subprocess.CompletedProcess[str]]

SMALL = ("simulate", "--model", "llama-3.1-8b", "--hardware", "h100-sxm", "--price", "h100-sxm=2", "--tp", "1")


def test_a_closed_loop_beside_its_formulas(tokenopt: Run) -> None:
    answer = answer_of(
        tokenopt(*SMALL, "--concurrency", "32", "--length-low", "0.8", "--slo-ms", "100", "--format", "json")
    )
    assert answer["schema"] == 1
    run, formula = answer["simulated"], answer["configuration"]
    assert answer["traffic"]["concurrency"] == 32
    assert run["requests"] == 20_000
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        found = run[name]
        assert 0 < found["p50"] <= found["p90"] <= found["p99"]
    # Lengths are 90% of nominal on average, which shortens the context and so the step a little.
    assert run["tpot_ms"]["mean"] == pytest.approx(formula["tpot_ms"], rel=0.1)
    assert run["slo_attainment"] == {"all": 1.0, "tpot": 1.0, "ttft": 1.0, "e2e": 1.0}
    in_flight = run["requests_per_s"] * run["e2e_ms"]["mean"] / 1e3
    assert in_flight == pytest.approx(32, rel=0.02)


def test_the_seed_decides_the_answer(tokenopt: Run) -> None:
    def latencies(seed: int) -> object:
        answer = answer_of(tokenopt(*SMALL, "--rate", "2", "--seed", str(seed), "--format", "json"))
        return answer["simulated"]["ttft_ms"]

    assert latencies(1) == latencies(1)
    assert latencies(1) != latencies(2)


def test_the_best_of_a_search_is_simulated_where_nothing_is_given(tokenopt: Run) -> None:
    process = tokenopt("simulate", "--hardware", "b200-sxm", "--slo-ms", "30")
    assert process.returncode == 0, process.stderr
    for word in ("b200-sxm", "TTFT", "TPOT", "p99", "within", "requests in flight", "tokens/s"):
        assert word in process.stdout


def test_a_trace_gives_arrivals_and_lengths(tokenopt: Run, tmp_path: Path) -> None:
    rows = "".join(f"{index * 0.5},{100 + index % 7},{20 + index % 3}\n" for index in range(400))
    (tmp_path / "trace.csv").write_text("arrival,isl,osl\n" + rows)
    answer = answer_of(tokenopt(*SMALL, "--trace", "trace.csv", "--format", "json"))
    assert answer["traffic"]["arrival"] == "trace"
    assert answer["traffic"]["trace"]["requests_per_s"] == pytest.approx(2.0)
    assert answer["simulated"]["requests"] == 400
    assert answer["simulated"]["mean_isl"] == pytest.approx(103, abs=1)
    # Ten times the rate in a tenth of the time.
    faster = answer_of(tokenopt(*SMALL, "--trace", "trace.csv", "--rate", "20", "--format", "json"))
    assert faster["simulated"]["measured_s"] == pytest.approx(answer["simulated"]["measured_s"] / 10, rel=0.1)
    # Its lengths alone, in a closed loop.
    closed = answer_of(tokenopt(*SMALL, "--trace", "trace.csv", "--concurrency", "4", "--format", "json"))
    assert closed["traffic"]["lengths"] == "given"


def test_too_many_requests_are_called_saturated(tokenopt: Run) -> None:
    process = tokenopt(*SMALL, "--rate", "500", "--max-running", "16", "--requests", "3000")
    assert process.returncode == 0, process.stderr
    assert "Saturated" in process.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--concurrency", "0"), "concurrency is 0"),
        (("--rate", "-1"), "rate is -1"),
        (("--rate", "nan"), "rate is nan"),
        (("--rate", "1", "--concurrency", "2"), "both name the load"),
        (("--arrival", "never"), "expected closed, poisson, trace"),
        (("--arrival", "trace"), "no trace with arrivals"),
        (("--arrival", "closed", "--rate", "3"), "in a closed loop"),
        (("--length-low", "2"), "length_low is 2"),
        (("--length-low", "0.5", "--length-cv", "1"), "give one of them"),
        (("--requests", "0"), "requests is 0"),
        (("--trace", "none.csv"), "No such file"),
        (("--isl", "200000"), "beyond the"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tokenopt: Run, flags: tuple[str, ...], said: str) -> None:
    process = tokenopt(*SMALL, *flags)
    assert process.returncode == 2, process.stderr
    assert said in process.stderr
    assert "Traceback" not in process.stderr


def test_the_python_api_is_the_same() -> None:
    simulation = api.simulate(
        model="llama-3.1-8b", hardware=["h100-sxm"], price={"h100-sxm": 2.0}, layout={"tp": 1}, rate=1.0, requests=500
    )
    assert isinstance(simulation, api.Simulation)
    assert simulation.simulated.requests == 500
    assert simulation.traffic["arrival"] == "poisson"
    assert callable(api.simulate), "the module of that name does not shadow the function"
