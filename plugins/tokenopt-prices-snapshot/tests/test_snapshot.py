"""The snapshot keeps every hourly row, and reads its traps."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import tokenopt_prices_snapshot as snapshot
from tokenopt.testing import PriceConformance


class TestPrices(PriceConformance):
    plugin = snapshot


def test_every_hourly_row_becomes_an_offer() -> None:
    text = (Path(snapshot.__file__).parent / "prices.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    hourly = [row for row in rows if row["term"] != "list-capex"]
    assert len(list(snapshot.tokenopt_prices())) == len(hourly)


def test_doubtful_rows_are_marked() -> None:
    suspects = [offer for offer in snapshot.tokenopt_prices() if offer.suspect]
    assert suspects
    assert any("SUSPECT" in offer.suspect for offer in suspects)


def test_a_shape_sold_whole_is_not_one_chip() -> None:
    oracle = [offer for offer in snapshot.tokenopt_prices() if offer.instance_type.startswith("BM.GPU.H100")]
    assert {offer.chips_per_instance for offer in oracle} == {8}


def test_marketplaces_are_not_on_demand() -> None:
    terms = Counter(offer.term for offer in snapshot.tokenopt_prices() if offer.provider == "vast.ai")
    assert set(terms) <= {"marketplace", "spot"}
