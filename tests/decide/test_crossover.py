"""Where the cheapest accelerator changes: both cost the same there, and the winner flips."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tokenopt.decide.crossover import CrossoverResult, axis, crossover
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.request import SearchRequest

SCOPE = ("h100-sxm", "l40s", "mi300x")
REQUEST = SearchRequest(hardware=SCOPE, model="llama-3.1-8b", slo_ms=40.0, tp=(1, 2), chunk_tokens=(2048, 8192))
X = axis("slo-ms", (8.0, 120.0), 5)
Y = axis("target-tps", (500.0, 1e6), 4)


@pytest.fixture(scope="module")
def result() -> CrossoverResult:
    return crossover(REQUEST, X, Y)


def _at(slo_ms: float, target_tps: float) -> dict[str, float]:
    """Costs by accelerator at one point, through the break-even list of a tiny map."""
    request = replace(REQUEST, slo_ms=slo_ms, target_tps=target_tps)
    tiny = crossover(request, axis("isl", (1000.0, 1100.0), 2), axis("osl", (1000.0, 1100.0), 2))
    return {entry.accelerator: entry.usd_per_m_tokens for entry in tiny.break_even}


def test_both_sides_cost_the_same_and_the_winner_flips(result: CrossoverResult) -> None:
    exact = [change for change in result.crossovers if change.kind == "cost"]
    assert exact
    change = exact[0]
    assert change.usd_before == pytest.approx(change.usd_after, rel=1e-3)
    for slo_ms, winner in ((change.x * 0.999, change.before), (change.x * 1.001, change.after)):
        costs = _at(slo_ms, change.y)
        assert min(costs, key=costs.__getitem__) == winner


def test_changes_link_the_winners_of_the_grid(result: CrossoverResult) -> None:
    for number, y in enumerate(Y.values):
        cells = result.cells[number * len(X.values) : (number + 1) * len(X.values)]
        changes = [change for change in result.crossovers if change.y == y]
        chain = [cells[0].winner, *(change.after for change in changes)]
        assert [change.before for change in changes] == chain[:-1]
        assert chain[-1] == cells[-1].winner
        assert [change.x for change in changes] == sorted(change.x for change in changes)


def test_looser_limits_never_cost_more(result: CrossoverResult) -> None:
    for number in range(len(Y.values)):
        costs = [cell.usd_per_m_tokens for cell in result.cells[number * len(X.values) : (number + 1) * len(X.values)]]
        known = [cost for cost in costs if cost is not None]
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(known))


def test_at_the_break_even_price_it_ties(result: CrossoverResult) -> None:
    loser = next(entry for entry in result.break_even if not entry.is_winner)
    winner = next(entry for entry in result.break_even if entry.is_winner)
    others = {entry.accelerator: entry.usd_per_chip_hr for entry in result.break_even}
    prices = others | {loser.accelerator: loser.break_even_usd_per_chip_hr}
    repriced = crossover(
        replace(REQUEST, price=prices), axis("isl", (1000.0, 1100.0), 2), axis("osl", (1000.0, 1100.0), 2)
    )
    costs = {entry.accelerator: entry.usd_per_m_tokens for entry in repriced.break_even}
    # A quote is for whole nodes; where the list price is for the same unit the tie is exact.
    assert costs[loser.accelerator] == pytest.approx(costs[winner.accelerator], rel=0.05)


def test_an_axis_of_prices_finds_the_break_even_price() -> None:
    mapped = crossover(REQUEST, axis("price:h100-sxm", (0.05, 20.0), 3), axis("slo-ms", (30.0, 60.0), 2))
    assert any(change.before == "h100-sxm" and change.kind == "cost" for change in mapped.crossovers)


def test_the_command_draws_what_it_found(tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    command = [
        sys.executable,
        "-m",
        "tokenopt",
        "crossover",
        "--model",
        "llama-3.1-8b",
        "--points",
        "3",
        "--plot",
        str(picture),
    ]
    command += [part for key in SCOPE for part in ("--hardware", key)]
    process = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert len(answer["cells"]) == 9
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "span", "words"),
    [
        ("colour", None, "not known"), ("price", None, "not known"), ("slo-ms", (50.0, 10.0), "rising range"),
        ("slo-ms", (float("nan"), 10.0), "lower end"), ("utilization", (0.1, 2.0), "at most 1"), ("isl", (0.0, 5.0), "rising"),
    ],
)  # fmt: skip
def test_bad_axes_are_refused(name: str, span: tuple[float, float] | None, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        axis(name, span)


def test_electricity_needs_owned_hardware() -> None:
    with pytest.raises(SpecError, match="--term owned"):
        crossover(REQUEST, axis("kwh"), axis("slo-ms", None, 2))
    with pytest.raises(SpecError, match="both axes"):
        crossover(REQUEST, X, X)


def test_limits_that_nothing_meets_are_told() -> None:
    with pytest.raises(InfeasibleError):
        crossover(REQUEST, axis("slo-ms", (0.001, 0.002), 2), axis("isl", (100.0, 200.0), 2))
