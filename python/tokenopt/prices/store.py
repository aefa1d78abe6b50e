"""The store of fetched prices: one SQLite file, history kept, written in one transaction per source.

Reading imports nothing beyond the standard library and never writes. An update that is killed leaves the store as it
was: SQLite's write-ahead log drops what was not committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from tokenopt.errors import StoreError
from tokenopt.prices.fetch import CachedPage
from tokenopt.records import Offer, Source, Term

DATA_DIR_VARIABLE = "TOKENOPT_DATA_DIR"
"""Environment variable that moves the store away from the platform's data directory."""
FILE_NAME = "prices.sqlite"
SCHEMA_VERSION = 1
APPLICATION_ID = 0x746F6B6F
BUSY_TIMEOUT_S = 30.0

_SCHEMA = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    fetched_at TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    offers INTEGER NOT NULL,
    skipped TEXT NOT NULL
);
CREATE INDEX snapshots_by_source ON snapshots (source, id);
CREATE TABLE origins (
    id INTEGER PRIMARY KEY,
    reference TEXT NOT NULL,
    confidence TEXT NOT NULL,
    as_of TEXT NOT NULL,
    note TEXT NOT NULL,
    UNIQUE (reference, confidence, as_of, note)
);
CREATE TABLE products (
    id INTEGER PRIMARY KEY,
    content_hash TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    accelerator TEXT NOT NULL,
    provider TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    term TEXT NOT NULL,
    chips_per_instance INTEGER NOT NULL CHECK (chips_per_instance > 0),
    as_of TEXT NOT NULL,
    origin INTEGER NOT NULL REFERENCES origins (id),
    suspect TEXT NOT NULL,
    minimum_instances INTEGER NOT NULL CHECK (minimum_instances > 0),
    fabric_chips INTEGER,
    egress_usd_per_gb REAL,
    storage_usd_per_gb_month REAL
);
CREATE INDEX products_by_accelerator ON products (accelerator);
CREATE TABLE offers (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    product INTEGER NOT NULL REFERENCES products (id),
    region TEXT NOT NULL,
    usd_per_chip_hr REAL NOT NULL CHECK (usd_per_chip_hr > 0),
    upfront_usd_per_chip REAL NOT NULL,
    first_snapshot INTEGER NOT NULL REFERENCES snapshots (id),
    gone_snapshot INTEGER REFERENCES snapshots (id)
);
CREATE UNIQUE INDEX offers_current ON offers (source, content_hash) WHERE gone_snapshot IS NULL;
CREATE INDEX offers_by_product ON offers (product);
CREATE TABLE pages (
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    etag TEXT NOT NULL,
    last_modified TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (source, name)
) WITHOUT ROWID;
"""

_ROW = "product, region, usd_per_chip_hr, upfront_usd_per_chip"
"""What is read for each offer. All else is the product's, which many regions share: that keeps reading fast."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One successful fetch or import of a source.

    Attributes:
        source: Source name; `file:NAME` for an imported file.
        fetched_at: When, ISO 8601 in UTC.
        offers: Offers it held.
        skipped: Rows left out, by reason.
        content_hash: Of all its offers; equal hashes mean equal prices.
    """

    id: int
    source: str
    fetched_at: str
    offers: int
    skipped: Mapping[str, int]
    content_hash: str


@dataclass(frozen=True, slots=True)
class Change:
    """What writing a snapshot did to the store.

    Attributes:
        offers: Offers of the snapshot.
        new: Offers that were not in the one before (a changed price is one new and one gone).
        gone: Offers of the one before that are not in it.
        unchanged: Offers in both.
    """

    offers: int
    new: int
    gone: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class PricePoint:
    """One price and how long it held: `gone_on` is empty while it does."""

    offer: Offer
    store_source: str
    seen_from: str
    gone_on: str


def store_path() -> Path:
    """Where the store is: under `TOKENOPT_DATA_DIR` or the platform's data directory."""
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / FILE_NAME
    import platformdirs

    return Path(platformdirs.user_data_dir("tokenopt", appauthor=False)) / FILE_NAME


def own_calibration_path() -> Path:
    """Where the user's own calibration is: beside the stores."""
    return store_path().with_name("calibration.toml")


def read_offers(
    as_of: date | datetime | None = None,
    max_age_days: int | None = None,
    path: Path | None = None,
    today: date | None = None,
) -> list[Offer]:
    """Offers in the store.

    Args:
        as_of: The store as it was at this moment, or at the end of this day (UTC); None = now.
        max_age_days: Leave out offers seen longer ago than this, and those whose source gives no day.
        path: Another store than the user's.
        today: Day from which age counts; today by default.

    Returns:
        Offers, in the order they came in; none where there is no store yet.

    Raises:
        StoreError: The store is damaged (it is then set aside), was written by a newer tokenopt, or cannot be read.
    """
    file = path or store_path()
    with _reading(file) as connection:
        if connection is None:
            return []
        at = _moment(as_of)
        days = {
            source: fetched_at[:10]
            for source, _, fetched_at in connection.execute(
                "SELECT source, max(id), fetched_at FROM snapshots WHERE (?1 IS NULL OR fetched_at <= ?1) GROUP BY source",
                (at,),
            )
        }
        if at is None:
            rows = connection.execute(f"SELECT {_ROW} FROM offers WHERE gone_snapshot IS NULL")
        else:
            rows = connection.execute(
                f"SELECT {_ROW} FROM offers JOIN (SELECT source, max(id) AS newest FROM snapshots "
                "WHERE fetched_at <= ?1 GROUP BY source) AS then_ ON offers.source = then_.source "
                "WHERE first_snapshot <= newest AND (gone_snapshot IS NULL OR gone_snapshot > newest) ORDER BY offers.id",
                (at,),
            )
        products = _products(connection)
        offers = [products[row[0]].offer(row[1], row[2], row[3], days) for row in rows]
    if max_age_days is None:
        return offers
    now = today or date.today()
    return [offer for offer in offers if (age := offer.age_days(now)) is not None and age <= max_age_days]


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What a source holds now.

    Attributes:
        source: Source name.
        offers: Everything it offers; what it held before and is not in here is gone (and stays in history).
        skipped: Rows left out, by reason.
        pages: Raw answers for the next conditional request, None = keep the ones there are.
    """

    source: str
    offers: Sequence[Offer]
    skipped: Mapping[str, int]
    pages: Mapping[str, CachedPage] | None = None


def write_snapshots(
    snapshots: Sequence[NewSnapshot], *, fetched_at: datetime | None = None, path: Path | None = None
) -> list[Change]:
    """Stores what sources hold now, in one transaction: all of it or nothing.

    Args:
        snapshots: One for each source.
        fetched_at: When; now by default.
        path: Another store than the user's.

    Returns:
        What changed, for each source.

    Raises:
        StoreError: The store cannot be written.
    """
    moment = (fetched_at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    with _writing(path or store_path()) as connection:
        return [_write(connection, snapshot, moment) for snapshot in snapshots]


def _write(connection: sqlite3.Connection, new: NewSnapshot, moment: str) -> Change:
    by_hash = {_offer_hash(offer): offer for offer in new.offers}
    total = hashlib.sha256("".join(sorted(by_hash)).encode()).hexdigest()
    snapshot = connection.execute(
        "INSERT INTO snapshots (source, fetched_at, content_hash, offers, skipped) VALUES (?, ?, ?, ?, ?)",
        (new.source, moment, total, len(by_hash), json.dumps(dict(new.skipped), sort_keys=True)),
    ).lastrowid
    known = dict(
        connection.execute(
            "SELECT content_hash, id FROM offers WHERE source = ? AND gone_snapshot IS NULL", (new.source,)
        ).fetchall()
    )
    gone = [identifier for content_hash, identifier in known.items() if content_hash not in by_hash]
    connection.executemany(
        "UPDATE offers SET gone_snapshot = ? WHERE id = ?", [(snapshot, identifier) for identifier in gone]
    )
    fresh = [(content_hash, offer) for content_hash, offer in by_hash.items() if content_hash not in known]
    products = _store_products(connection, new.source, [offer for _, offer in fresh])
    connection.executemany(
        "INSERT INTO offers (source, content_hash, product, region, usd_per_chip_hr, upfront_usd_per_chip, "
        "first_snapshot) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                new.source,
                content_hash,
                product,
                offer.region,
                offer.usd_per_chip_hr,
                offer.upfront_usd_per_chip,
                snapshot,
            )
            for (content_hash, offer), product in zip(fresh, products, strict=True)
        ],
    )
    if new.pages is not None:
        connection.execute("DELETE FROM pages WHERE source = ?", (new.source,))
        connection.executemany(
            "INSERT INTO pages (source, name, etag, last_modified, content) VALUES (?, ?, ?, ?, ?)",
            [
                (new.source, name, page.etag, page.last_modified, zlib.compress(page.content, 6))
                for name, page in new.pages.items()
            ],
        )
    return Change(len(by_hash), len(fresh), len(gone), len(by_hash) - len(fresh))


def confirm_snapshot(source: str, *, fetched_at: datetime | None = None, path: Path | None = None) -> Change:
    """Notes that the source was asked and nothing had changed: its prices are as fresh as now.

    Raises:
        StoreError: The store cannot be written, or holds nothing of the source.
    """
    moment = (fetched_at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    with _writing(path or store_path()) as connection:
        last = connection.execute(
            "SELECT content_hash, offers, skipped FROM snapshots WHERE source = ? ORDER BY id DESC LIMIT 1", (source,)
        ).fetchone()
        if last is None:
            raise StoreError(f"the store holds no prices of {source} yet")
        connection.execute(
            "INSERT INTO snapshots (source, fetched_at, content_hash, offers, skipped) VALUES (?, ?, ?, ?, ?)",
            (source, moment, *last),
        )
    return Change(last[1], 0, 0, last[1])


def last_snapshots(path: Path | None = None) -> dict[str, Snapshot]:
    """The newest snapshot of every source.

    Raises:
        StoreError: As for :func:`read_offers`.
    """
    with _reading(path or store_path()) as connection:
        if connection is None:
            return {}
        rows = connection.execute(
            "SELECT id, source, fetched_at, offers, skipped, content_hash FROM snapshots "
            "WHERE id IN (SELECT max(id) FROM snapshots GROUP BY source) ORDER BY source"
        ).fetchall()
    return {row[1]: Snapshot(row[0], row[1], row[2], row[3], Counter(json.loads(row[4])), row[5]) for row in rows}


def cached_pages(source: str, path: Path | None = None) -> dict[str, CachedPage]:
    """Answers kept for conditional requests.

    Raises:
        StoreError: As for :func:`read_offers`.
    """
    with _reading(path or store_path()) as connection:
        if connection is None:
            return {}
        rows = connection.execute(
            "SELECT name, etag, last_modified, content FROM pages WHERE source = ?", (source,)
        ).fetchall()
    return {name: CachedPage(etag, modified, zlib.decompress(content)) for name, etag, modified, content in rows}


def price_history(accelerator: str, path: Path | None = None) -> list[PricePoint]:
    """Every price ever stored for an accelerator, oldest first.

    Raises:
        StoreError: As for :func:`read_offers`.
    """
    with _reading(path or store_path()) as connection:
        if connection is None:
            return []
        rows = connection.execute(
            f"SELECT began.fetched_at, ended.fetched_at, offers.source, {_ROW} FROM offers "
            "JOIN products ON products.id = offers.product "
            "JOIN snapshots AS began ON began.id = first_snapshot "
            "LEFT JOIN snapshots AS ended ON ended.id = gone_snapshot "
            "WHERE accelerator = ? ORDER BY first_snapshot, offers.id",
            (accelerator,),
        ).fetchall()
        products = _products(connection)
    points: list[PricePoint] = []
    for began, ended, source, product, region, usd_per_chip_hr, upfront in rows:
        offer = products[product].offer(region, usd_per_chip_hr, upfront, {source: began[:10]})
        points.append(PricePoint(offer, source, began[:10], (ended or "")[:10]))
    return points


@dataclass(frozen=True, slots=True)
class _Product:
    """What the offers of one instance type share, whatever the region."""

    store_source: str
    accelerator: str
    provider: str
    instance_type: str
    term: Term
    chips_per_instance: int
    as_of: str
    origin: Source
    suspect: str
    minimum_instances: int
    fabric_chips: int | None
    egress_usd_per_gb: float | None
    storage_usd_per_gb_month: float | None

    def offer(self, region: str, usd_per_chip_hr: float, upfront: float, days: Mapping[str, str]) -> Offer:
        """The offer in a region; one whose source gives no day was seen when the source was last read."""
        return Offer(
            self.accelerator, self.provider, self.instance_type, region, self.term, usd_per_chip_hr,
            self.chips_per_instance, self.as_of or days[self.store_source], self.origin, self.suspect,
            self.minimum_instances, self.fabric_chips, upfront, self.egress_usd_per_gb, self.storage_usd_per_gb_month,
        )  # fmt: skip


def _products(connection: sqlite3.Connection) -> dict[int, _Product]:
    origins = {
        row[0]: Source(row[1], row[2], as_of=row[3], note=row[4])
        for row in connection.execute("SELECT id, reference, confidence, as_of, note FROM origins")
    }
    return {
        row[0]: _Product(row[1], row[2], row[3], row[4], row[5], row[6], row[7], origins[row[8]], *row[9:])
        for row in connection.execute(
            "SELECT id, source, accelerator, provider, instance_type, term, chips_per_instance, as_of, origin, suspect, "
            "minimum_instances, fabric_chips, egress_usd_per_gb, storage_usd_per_gb_month FROM products"
        )
    }


def _store_products(connection: sqlite3.Connection, source: str, offers: Sequence[Offer]) -> list[int]:
    """Identifiers of the offers' products, stored where they are new."""
    found: dict[str, int] = {}
    identifiers: list[int] = []
    for offer in offers:
        fields = (
            offer.accelerator, offer.provider, offer.instance_type, offer.term, offer.chips_per_instance, offer.as_of,
            offer.suspect, offer.minimum_instances, offer.fabric_chips, offer.egress_usd_per_gb,
            offer.storage_usd_per_gb_month,
        )  # fmt: skip
        origin = (offer.source.reference, offer.source.confidence, offer.source.as_of, offer.source.note)
        content_hash = _hash((source, *fields, *origin))
        if content_hash not in found:
            connection.execute(
                "INSERT OR IGNORE INTO origins (reference, confidence, as_of, note) VALUES (?, ?, ?, ?)", origin
            )
            connection.execute(
                "INSERT OR IGNORE INTO products (content_hash, source, accelerator, provider, instance_type, term, "
                "chips_per_instance, as_of, suspect, minimum_instances, fabric_chips, egress_usd_per_gb, "
                "storage_usd_per_gb_month, origin) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, id FROM origins "
                "WHERE reference = ? AND confidence = ? AND as_of = ? AND note = ?",
                (content_hash, source, *fields, *origin),
            )
            (found[content_hash],) = connection.execute(
                "SELECT id FROM products WHERE content_hash = ?", (content_hash,)
            ).fetchone()
        identifiers.append(found[content_hash])
    return identifiers


def _hash(fields: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]


def _offer_hash(offer: Offer) -> str:
    return _hash(
        (
            offer.accelerator, offer.provider, offer.instance_type, offer.region, offer.term, offer.usd_per_chip_hr,
            offer.chips_per_instance, offer.as_of, offer.suspect, offer.minimum_instances, offer.fabric_chips,
            offer.upfront_usd_per_chip, offer.egress_usd_per_gb, offer.storage_usd_per_gb_month,
            offer.source.reference, offer.source.confidence, offer.source.as_of, offer.source.note,
        )
    )  # fmt: skip


def _moment(as_of: date | datetime | None) -> str | None:
    if as_of is None:
        return None
    if isinstance(as_of, datetime):
        moment = as_of if as_of.tzinfo else as_of.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat(timespec="seconds")
    end_of_day = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC) + timedelta(days=1, seconds=-1)
    return end_of_day.isoformat(timespec="seconds")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A read-only connection, None where there is no store; nothing is created."""
    if not path.exists():
        yield None
        return
    with _told(path), closing(_connect_read_only(path)) as connection:
        if not _check_version(connection, path):
            yield None
            return
        connection.execute("BEGIN")
        yield connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    address = path.absolute().as_uri()
    try:
        connection = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise StoreError(f"the price store {path} cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError:
        # A read-only folder has no room for the write-ahead log's index; nobody can be writing there either.
        connection.close()
        return sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, isolation_level=None)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


@contextmanager
def _writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection inside a transaction that is committed on leaving and rolled back on any exception."""
    with _told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of the price store {path.parent} cannot be made: {error}") from error
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            _check_version(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not _check_version(connection, path):
                    for statement in _SCHEMA.split(";"):
                        if statement.strip():
                            connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _check_version(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is a store; False for one that is still empty.

    Raises:
        StoreError: It is another program's file, or a newer tokenopt's.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and version == 0:
        return False
    if application != APPLICATION_ID:
        raise StoreError(
            f"{path} is not a price store of tokenopt; move it away or set {DATA_DIR_VARIABLE} to another folder"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the price store {path} has version {version}, written by a newer tokenopt; this one reads version "
            f"{SCHEMA_VERSION}: update tokenopt or set {DATA_DIR_VARIABLE} to another folder"
        )
    return True


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into one sentence; a damaged file is set aside."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            aside = _set_aside(path)
            raise StoreError(
                f"the price store {path} is damaged ({error}); it is kept as {aside.name} and a new one starts empty",
                ["`tokenopt prices update` fetches prices again"],
            ) from error
        raise StoreError(f"the price store {path} cannot be used: {error}") from error


def _set_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            try:
                part.rename(aside.with_name(aside.name + suffix))
            except OSError as error:
                raise StoreError(f"the price store {path} is damaged and cannot be moved away: {error}") from error
    return aside
