"""The cost report: its figures agree with the search, every form holds them all."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokenopt
from tokenopt.decide.compare import Comparison, compare
from tokenopt.errors import InfeasibleError, SpecError
from tokenopt.request import SearchRequest

SCOPE = ("h100-sxm", "mi300x")


@pytest.fixture(scope="module")
def report() -> Comparison:
    return compare(SearchRequest(hardware=SCOPE, model="llama-3.1-70b"), [20.0, 60.0])


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "tokenopt",
        "compare",
        "--hardware",
        "h100-sxm",
        "--hardware",
        "mi300x",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rows_are_what_a_search_finds(report: Comparison) -> None:
    found = tokenopt.search(model="llama-3.1-70b", hardware=SCOPE, min_interactivity=60.0)
    expected = {solution.accelerator: solution.usd_per_m_tokens for solution in found.by_accelerator}
    rows = [row for row in report.rows if row.interactivity == 60.0]
    assert {row.accelerator: row.usd_per_m_tokens for row in rows} == pytest.approx(expected)
    assert [row.over_best for row in rows] == sorted(row.over_best for row in rows)
    assert rows[0].over_best == 1.0


def test_energy_is_power_over_throughput(report: Comparison) -> None:
    for row in report.rows:
        # A MW is a million joules a second.
        assert row.tokens_per_s_per_mw * row.joule_per_token == pytest.approx(1e6)


def test_more_interactivity_never_costs_less(report: Comparison) -> None:
    cost = {(row.accelerator, row.interactivity): row.usd_per_m_tokens for row in report.rows}
    for key in SCOPE:
        assert cost[key, 60.0] >= cost[key, 20.0]


def test_what_a_chip_hour_buys(report: Comparison) -> None:
    chip = next(entry for entry in report.hardware if entry.accelerator == "h100-sxm")
    assert chip.usd_per_tb_per_s_hr == pytest.approx(chip.usd_per_chip_hr / 3.35, rel=0.01)
    assert chip.usd_per_pflop_hr["fp8"] == pytest.approx(chip.usd_per_pflop_hr["bf16"] / 2, rel=0.01)


def test_what_is_out_of_reach_is_named() -> None:
    # One user at a time still sees less than this on one chip generation of the two at most.
    with pytest.raises(InfeasibleError):
        compare(SearchRequest(hardware=SCOPE, model="llama-3.1-70b"), [1e5])


def test_every_form_holds_every_row(report: Comparison, tmp_path: Path) -> None:
    answer: dict[str, Any] = json.loads(_cli("--format", "json").stdout)
    rows = list(csv.DictReader(io.StringIO(_cli("--format", "csv").stdout)))
    assert len(rows) == len(answer["rows"])
    assert float(rows[0]["usd_per_m_tokens"]) == answer["rows"][0]["usd_per_m_tokens"]
    page = tmp_path / "report.html"
    assert _cli("--format", "html", "--out", str(page)).returncode == 0
    markdown = _cli("--format", "markdown").stdout
    for key in SCOPE:
        assert key in page.read_text()
        assert f"| {key} |" in markdown


@pytest.mark.parametrize("value", ["0", "-5", "nan", "inf"])
def test_bad_interactivity_is_refused(value: str) -> None:
    process = _cli("--interactivity", value)
    assert process.returncode == 2
    assert "interactivity is" in process.stderr


def test_a_limit_of_the_search_is_not_mixed_in() -> None:
    with pytest.raises(SpecError, match="list of interactivities"):
        compare(SearchRequest(min_interactivity=10.0), [20.0])
