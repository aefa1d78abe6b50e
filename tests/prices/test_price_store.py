"""The store keeps what it is given, as it was at any moment, and never loses it to damage."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenopt.errors import StoreError
from tokenopt.prices import store as module
from tokenopt.prices.fetch import CachedPage
from tokenopt.prices.store import (
    Change,
    NewSnapshot,
    cached_pages,
    confirm_snapshot,
    last_snapshots,
    price_history,
    read_offers,
    write_snapshots,
)
from tokenopt.records import Offer, Source

DAY = datetime(2026, 11, 1, 12, tzinfo=UTC)
H100 = Offer(
    "h100-sxm", "acme", "8x", "us", "reserved-1y", 2.5, 8, "", Source("list", "third-party", note="n"), "", 2, 16, 0.5,
    0.09, 0.02,
)  # fmt: skip


def put(path: Path, offers: list[Offer], day: int = 0, source: str = "s") -> Change:
    (change,) = write_snapshots(
        [NewSnapshot(source, offers, {"odd": 1})], fetched_at=DAY + timedelta(days=day), path=path
    )
    return change


def test_nothing_is_made_by_reading(price_store: Path) -> None:
    assert read_offers(path=price_store) == []
    assert last_snapshots(price_store) == {}
    assert price_history("h100-sxm", price_store) == []
    assert not price_store.exists()


def test_an_offer_comes_back_whole_with_the_day_it_was_fetched(price_store: Path) -> None:
    put(price_store, [H100])
    assert read_offers(path=price_store) == [replace(H100, as_of="2026-11-01")]


def test_a_stated_day_is_kept(price_store: Path) -> None:
    put(price_store, [replace(H100, as_of="2026-05-24")])
    assert read_offers(path=price_store)[0].as_of == "2026-05-24"


def test_an_unchanged_offer_is_not_stored_twice_and_gets_fresher(price_store: Path) -> None:
    assert put(price_store, [H100]) == Change(1, 1, 0, 0)
    assert put(price_store, [H100], day=3) == Change(1, 0, 0, 1)
    with sqlite3.connect(price_store) as connection:
        assert connection.execute("SELECT count(*) FROM offers").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM snapshots").fetchone() == (2,)
    connection.close()
    assert read_offers(path=price_store)[0].as_of == "2026-11-04"
    assert read_offers(as_of=date(2026, 11, 2), path=price_store)[0].as_of == "2026-11-01"


def test_a_source_that_has_not_changed_is_confirmed(price_store: Path) -> None:
    put(price_store, [H100])
    assert confirm_snapshot("s", fetched_at=DAY + timedelta(days=5), path=price_store) == Change(1, 0, 0, 1)
    assert read_offers(path=price_store)[0].as_of == "2026-11-06"
    with pytest.raises(StoreError, match="no prices"):
        confirm_snapshot("other", path=price_store)


def test_history_and_as_of(price_store: Path) -> None:
    cheaper = replace(H100, usd_per_chip_hr=2.0)
    put(price_store, [H100])
    assert put(price_store, [cheaper], day=2) == Change(1, 1, 1, 0)
    put(price_store, [], day=4)
    assert [o.usd_per_chip_hr for o in read_offers(as_of=date(2026, 11, 2), path=price_store)] == [2.5]
    assert [o.usd_per_chip_hr for o in read_offers(as_of=date(2026, 11, 3), path=price_store)] == [2.0]
    assert read_offers(as_of=date(2026, 10, 1), path=price_store) == []
    assert read_offers(path=price_store) == []
    points = price_history("h100-sxm", price_store)
    assert [(p.offer.usd_per_chip_hr, p.seen_from, p.gone_on) for p in points] == [
        (2.5, "2026-11-01", "2026-11-03"),
        (2.0, "2026-11-03", "2026-11-05"),
    ]


def test_sources_are_apart(price_store: Path) -> None:
    put(price_store, [H100], source="a")
    put(price_store, [H100], source="b")
    put(price_store, [], source="a", day=1)
    assert len(read_offers(path=price_store)) == 1
    assert {name: snapshot.offers for name, snapshot in last_snapshots(price_store).items()} == {"a": 0, "b": 1}
    assert last_snapshots(price_store)["b"].skipped == {"odd": 1}


def test_old_and_undated_prices_can_be_left_out(price_store: Path) -> None:
    put(price_store, [H100], source="fresh")
    put(price_store, [replace(H100, as_of="2026-01-01")], source="old")
    put(price_store, [replace(H100, as_of="undated")], source="undated")
    today = date(2026, 11, 5)
    assert len(read_offers(path=price_store, today=today)) == 3
    assert [o.as_of for o in read_offers(max_age_days=4, path=price_store, today=today)] == ["2026-11-01"]
    assert read_offers(max_age_days=3, path=price_store, today=today) == []


def test_raw_answers_are_kept_for_the_next_request(price_store: Path) -> None:
    page = CachedPage('"abc"', "Sat, 01 Nov 2026 00:00:00 GMT", b"body" * 100)
    write_snapshots([NewSnapshot("s", [H100], {}, {"https://x/1": page})], path=price_store)
    assert cached_pages("s", price_store) == {"https://x/1": page}
    write_snapshots([NewSnapshot("s", [H100], {}, None)], path=price_store)
    assert cached_pages("s", price_store) == {"https://x/1": page}
    write_snapshots([NewSnapshot("s", [H100], {}, {})], path=price_store)
    assert cached_pages("s", price_store) == {}


def test_all_or_nothing(price_store: Path) -> None:
    put(price_store, [H100])
    bad = replace(H100, usd_per_chip_hr=-1.0)
    with pytest.raises(StoreError):
        write_snapshots([NewSnapshot("t", [H100], {}), NewSnapshot("s", [bad], {})], path=price_store)
    assert set(last_snapshots(price_store)) == {"s"}
    assert read_offers(path=price_store)[0].usd_per_chip_hr == 2.5


@pytest.mark.parametrize("garbage", [b"not a database at all" * 100, None], ids=["foreign text", "overwritten pages"])
def test_a_damaged_store_is_set_aside_never_deleted(price_store: Path, garbage: bytes | None) -> None:
    put(price_store, [replace(H100, instance_type=f"type {i}") for i in range(500)])
    if garbage is None:
        content = bytearray(price_store.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        garbage = bytes(content)
    price_store.write_bytes(garbage)
    with pytest.raises(StoreError, match="damaged") as caught:
        read_offers(path=price_store)
    (aside,) = (
        path for path in price_store.parent.glob("prices.sqlite.damaged-*") if not path.name.endswith(("-wal", "-shm"))
    )
    assert aside.read_bytes() == garbage
    assert aside.name in caught.value.message
    assert read_offers(path=price_store) == []
    put(price_store, [H100])
    assert len(read_offers(path=price_store)) == 1


def test_a_newer_store_is_refused_and_left_alone(price_store: Path) -> None:
    put(price_store, [H100])
    connection = sqlite3.connect(price_store)
    connection.execute(f"PRAGMA user_version = {module.SCHEMA_VERSION + 1}")
    connection.close()
    before = price_store.read_bytes()
    for use in (lambda: read_offers(path=price_store), lambda: put(price_store, [])):
        with pytest.raises(StoreError, match="newer tokenopt"):
            use()
    assert price_store.read_bytes() == before


def test_another_programs_database_is_refused(price_store: Path) -> None:
    connection = sqlite3.connect(price_store)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="not a price store"):
        put(price_store, [H100])


def test_plugin_text_is_never_sql(price_store: Path) -> None:
    nasty = replace(
        H100, provider="'; DROP TABLE offers; --", instance_type='"); DELETE FROM snapshots; --', region="../../x"
    )
    put(price_store, [nasty], source="x'; DROP TABLE offers; --")
    (back,) = read_offers(path=price_store)
    assert (back.provider, back.instance_type, back.region) == (nasty.provider, nasty.instance_type, nasty.region)
    assert [path.name for path in price_store.parent.iterdir() if not path.name.startswith("prices.sqlite")] == []


def test_the_data_directory_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_DATA_DIR", str(tmp_path / "elsewhere"))
    write_snapshots([NewSnapshot("s", [H100], {})])
    assert (tmp_path / "elsewhere" / "prices.sqlite").exists()
    assert len(read_offers()) == 1


def test_reading_imports_no_heavy_package(price_store: Path) -> None:
    put(price_store, [H100])
    code = (
        "import sys; from pathlib import Path; from tokenopt.prices.store import read_offers; "
        f"assert len(read_offers(path=Path({str(price_store)!r}))) == 1; "
        "heavy = {'httpx', 'numpy', 'scipy', 'rich', 'click', 'platformdirs'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


names = st.text("abc-", min_size=1, max_size=3)
offers_of = st.lists(
    st.builds(
        lambda key, region, cents, chips: Offer(
            key, "p", "t", region, "on-demand", cents / 100, chips, "", Source("r", "third-party")
        ),
        names, st.sampled_from(["us", "eu"]), st.integers(1, 5), st.sampled_from([1, 8]),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(history=st.lists(st.tuples(st.sampled_from(["a", "b"]), offers_of), min_size=1, max_size=6))
def test_any_history_reads_back_as_it_was_at_each_moment(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, list[Offer]]]
) -> None:
    path = tmp_path_factory.mktemp("h") / "prices.sqlite"
    expected: list[set[tuple[str, str, float, int]]] = []
    now: dict[str, list[Offer]] = {}
    for day, (source, offers) in enumerate(history):
        change = put(path, offers, day, source)
        before = {facts(o) for o in now.get(source, [])}
        after = {facts(o) for o in offers}
        assert (change.offers, change.new, change.gone, change.unchanged) == (
            len(after), len(after - before), len(before - after), len(after & before),
        )  # fmt: skip
        now[source] = offers
        expected.append({(name, *facts(o)) for name, held in now.items() for o in held})
    for day, wanted in enumerate(expected):
        found = read_offers(as_of=DAY + timedelta(days=day), path=path)
        assert {facts(o) for o in found} == {row[1:] for row in wanted}
        assert len(found) == len(wanted)
    assert {facts(o) for o in read_offers(path=path)} == {row[1:] for row in expected[-1]}


def facts(offer: Offer) -> tuple[str, str, float, int]:
    return offer.accelerator, offer.region, offer.usd_per_chip_hr, offer.chips_per_instance


@pytest.mark.bench
def test_reading_ten_thousand_offers(price_store: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    put(price_store, [replace(H100, instance_type=f"t{i % 200}", region=f"r{i // 200}") for i in range(10_000)])
    assert len(benchmark(lambda: read_offers(path=price_store))) == 10_000
    assert benchmark.stats.stats.min < 0.03
