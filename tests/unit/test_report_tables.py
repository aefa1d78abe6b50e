"""What people read: numbers, ages, and the whole answer at three widths against golden files.

`make golden` writes the golden files again; they come from an answer made up here, so that neither prices, calibration
nor the day of the run change them.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tokenopt.problem import Assumption
from tokenopt.records import Offer, Source
from tokenopt.report.tables import (
    Column,
    age_text,
    milliseconds,
    offer_rows,
    plain_table,
    price_mark,
    search_text,
    usd,
)
from tokenopt.serve import Interval, Layout, OfferAnswer, SearchResult, Solution

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
TODAY = date(2026, 6, 30)
SLO_MS = 50.0

FIRST = Solution(
    rank=1, accelerator="alpha-sxm", vendor="acme",
    offer=OfferAnswer("north", "a8.large", "eu-1", "on-demand", 2.1, "2026-06-20", "https://north.example/prices"),
    engine="serve", engine_version="1.1", weight_precision="mxfp4", kv_precision="fp8",
    layout=Layout("agg", 2, 1, 4, 2), chunk_tokens=8192, concurrency=1042, running_batch=1040.0, batch_per_rank=520,
    replicas=28, instances=14, chips=112, chips_used=112, ttft_ms=1644.2, tpot_ms=45.23, e2e_ms=47_900.0,
    tps_per_user=22.1, output_tps_per_chip=8930.4, output_tps=1e6, capacity_tps=1_000_204.8, requests_per_s=976.6,
    usd_per_m_output_tokens=0.06533, usd_per_m_tokens=0.03267, usd_per_m_input_tokens=0.06533,
    usd_per_request=0.0000669, usd_per_hr=235.2, kwh_per_m_tokens=0.0266, weight_gb_per_chip=18.4, kv_gb_per_chip=41.0,
    memory_used_share=0.83, interval=Interval(0.0261, 0.0412), basis="calibrated", calibration="serving 2026-01-01",
    why="bandwidth", step_shares={"bandwidth": 0.7, "compute": 0.3},
)  # fmt: skip
SECOND = replace(
    FIRST, rank=2, accelerator="a-name-of-18-chars", vendor="zeta", weight_precision="fp8",
    offer=OfferAnswer("a/long-provider", "[bold]x", "", "reserved-1y", 10.5, "2026-01-05", ""),
    layout=Layout("agg", 1, 1, 1, 1), replicas=1560, instances=1560, chips=12_480, chips_used=12_480, ttft_ms=8.125,
    tpot_ms=0.5, usd_per_m_output_tokens=36.4, usd_per_m_tokens=18.2, usd_per_request=0.0373, usd_per_hr=131_040.0,
    interval=Interval(11.8, 27.9), why="slo_tpot",
)  # fmt: skip
THIRD = replace(
    SECOND, rank=3, accelerator="gamma", offer=replace(FIRST.offer, as_of="2026-undated"), why="latency",
    usd_per_m_tokens=1234.5, usd_per_m_output_tokens=2469.0, interval=Interval(1000.0, 1500.0),
)  # fmt: skip
RESULT = SearchResult(
    best=[FIRST, SECOND], by_accelerator=[FIRST, SECOND, THIRD], frontier=[FIRST], evaluated=15_649_341,
    pruned=640_006_642, feasible=15_162_510, rejected={"tpot": 12}, elapsed_s=0.4321,
    problem={
        "model": "gpt-oss-120b", "workload": {"isl": 1024.0, "osl": 1024.0, "prefix_hit": 0.0}, "objective": "cost",
        "limits": {"tpot_s": SLO_MS / 1e3}, "doubtful_prices": 3,
        "accelerators": ["alpha-sxm", "a-name-of-18-chars", "gamma", "too-small", "no-engine"],
    },
    assumptions=[Assumption("pue", "1.25", "facility power over IT power (--pue)")],
    ranked_terms=("on-demand", "rental"), without_price=["epsilon"], cannot_run=["no-engine"], notes=[],
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 120, 200])
def test_golden_answer(width: int) -> None:
    text = search_text(RESULT, width, today=TODAY)
    # Rich fills lines with spaces; editors and hooks strip them from files.
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    golden = SNAPSHOTS / f"search_{width}.txt"
    if os.environ.get("TOKENOPT_WRITE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "the answer looks different; if that is meant: make golden"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_and_summary_fit_and_nothing_is_cut(width: int) -> None:
    answer = search_text(RESULT, width, today=TODAY).split("\n\ngpt-oss-120b")[0]
    assert max(map(len, answer.splitlines())) <= width
    assert "…" not in answer
    assert "\x1b" not in answer


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_accelerator_shows_cost_fleet_and_price(width: int) -> None:
    text = search_text(RESULT, width, today=TODAY)
    for solution in RESULT.by_accelerator:
        assert len(re.findall(rf"^ {re.escape(solution.accelerator)} ", text, re.MULTILINE)) == 3
    for figure in ("$0.0653", "$0.0327", "$0.0000669", "$235.20", "$131,040", "12,480", "1,560", "1,644", "45.2",
                   "on-demand", "reserved-1y", "2026-01-05", "$10.50", "bandwidth", "TPOT limit"):  # fmt: skip
        assert figure in text


def test_what_the_reader_must_know_is_there() -> None:
    text = search_text(RESULT, 120, today=TODAY)
    for part in (
        "prices ranked: on-demand, rental",
        "pue = 1.25 (facility power over IT power (--pue))",
        "of 3 prices shown, 1 older than 90 days and 1 without a full date",
        "3 suspect prices fit and are not ranked",
        "no such price, left out: epsilon",
        "no engine serves it there, left out: no-engine",
        "cannot meet the limits or hold the model: too-small",
        "15,649,341 configurations evaluated, 640,006,642 ruled out by bounds, 15,162,510 feasible, 0.432 s",
    ):
        assert part in text
    fresh = replace(RESULT, by_accelerator=[FIRST], problem={**RESULT.problem, "doubtful_prices": 0})
    quiet = search_text(fresh, 120, today=TODAY)
    assert "older than" not in quiet
    assert "suspect" not in quiet


def test_brackets_in_a_seller_s_names_are_text() -> None:
    assert "[bold]x" in search_text(RESULT, 200, today=TODAY)


def test_emphasis_only_on_a_terminal() -> None:
    assert "\x1b[" in search_text(RESULT, 120, is_terminal=True, today=TODAY)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0193, "$0.0193"), (0.01934567, "$0.0193"), (28_012.4, "$28,012"), (999.994, "$999.99"), (2.1, "$2.10"),
        (0.0000239, "$0.0000239"), (0, "$0.00"), (None, "-"), (float("nan"), "-"), (float("inf"), "-"),
    ],
)  # fmt: skip
def test_dollars(value: float | None, expected: str) -> None:
    assert usd(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.512, "0.51"), (45.23, "45.2"), (9876.5, "9,876")])
def test_milliseconds(value: float, expected: str) -> None:
    assert milliseconds(value) == expected


@pytest.mark.parametrize(
    ("as_of", "age", "mark"),
    [
        ("2026-06-30", "today", ""),
        ("2026-04-01", "90 days ago", ""),
        ("2026-03-31", "91 days ago", "stale"),
        ("2026-undated", "age unknown", "undated"),
        ("", "age unknown", "undated"),
    ],
)
def test_age_of_a_price(as_of: str, age: str, mark: str) -> None:
    assert age_text(as_of, TODAY) == age
    assert price_mark(as_of, TODAY) == mark


def test_doubt_is_marked_before_age() -> None:
    def mark(suspect: str, as_of: str) -> str:
        offer = Offer("alpha", "north", "a8", "", "on-demand", 2.0, 8, as_of, Source("x", "assumed"), suspect)
        return offer_rows([offer], TODAY)[0][-1]

    assert mark("too cheap", "2020-01-01") == "suspect"
    assert mark("", "2020-01-01") == "stale"
    assert mark("", "2026-06-01") == ""


def test_the_most_dispensable_column_goes_first_and_figures_are_never_cut() -> None:
    def titles(width: int) -> list[str]:
        columns: list[Column] = [("key", "left"), ("usd", "right"), ("b", "left", 1), ("c", "left", 2)]
        return [str(column.header) for column in plain_table(columns, [["x" * 10, "1234", "bb", "cc"]], width).columns]

    assert titles(26) == ["key", "usd", "b", "c"]
    assert titles(25) == ["key", "usd", "b"]
    assert titles(21) == ["key", "usd"]
    assert titles(5) == ["key", "usd"]
