"""The store of measured points: one SQLite file beside the prices, each import one transaction.

What many points share (model, chip, engine, source ...) stands once in `stacks`; `points` holds numbers. The id of a
point is a hash of its stack and its numbers, so a measurement that is imported twice is there once. Reading needs the standard
library alone; an import that is killed leaves the store as it was.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenopt.errors import StoreError
from tokenopt.measured.columns import NUMBER_NAMES, POINT_TEXT_NAMES, STACK_NAMES
from tokenopt.prices.store import BUSY_TIMEOUT_S, DATA_DIR_VARIABLE, store_path

FILE_NAME = "measured.sqlite"
SCHEMA_VERSION = 1
APPLICATION_ID = 0x746F6B6D

_SCHEMA = f"""
CREATE TABLE imports (
    id INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    format TEXT NOT NULL,
    imported_at TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    points INTEGER NOT NULL,
    new INTEGER NOT NULL,
    skipped TEXT NOT NULL
);
CREATE TABLE stacks (
    id INTEGER PRIMARY KEY,
    {", ".join(f"{name} TEXT NOT NULL" for name in STACK_NAMES)}
);
CREATE INDEX stacks_by_model ON stacks (model, accelerator);
CREATE TABLE points (
    id INTEGER PRIMARY KEY,
    stack INTEGER NOT NULL REFERENCES stacks (id),
    import INTEGER NOT NULL REFERENCES imports (id),
    {", ".join(f"{name} TEXT NOT NULL DEFAULT ''" for name in POINT_TEXT_NAMES)},
    {", ".join(f"{name} REAL" for name in NUMBER_NAMES)}
);
CREATE INDEX points_by_stack ON points (stack);
"""


@dataclass(frozen=True, slots=True)
class NewImport:
    """What one file holds, ready to be stored.

    Attributes:
        file: Name of the file.
        format: Reader of it.
        sha256: Hash of the file.
        stacks: Id and texts, one tuple a stack.
        columns: Columns beside id and stack that any point fills.
        points: Id, stack and those columns, one tuple a point, sorted by id.
        count: How many points.
        skipped: Rows left out, by reason.
    """

    file: str
    format: str
    sha256: str
    stacks: Sequence[tuple[Any, ...]]
    columns: Sequence[str]
    points: Iterable[tuple[Any, ...]]
    count: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """One import as the store remembers it."""

    id: int
    file: str
    format: str
    imported_at: str
    sha256: str
    points: int
    new: int
    skipped: Mapping[str, int]


def measured_path() -> Path:
    """Where the store is: beside the price store."""
    return store_path().with_name(FILE_NAME)


def write_imports(imports: Sequence[NewImport], *, at: datetime | None = None, path: Path | None = None) -> list[int]:
    """Stores files in one transaction: all of them or nothing.

    Args:
        imports: One for each file.
        at: When; now by default.
        path: Another store than the user's.

    Returns:
        How many points of each file were new.

    Raises:
        StoreError: The store cannot be written.
    """
    moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    with _writing(path or measured_path()) as connection:
        return [_write(connection, new, moment) for new in imports]


def _write(connection: sqlite3.Connection, new: NewImport, moment: str) -> int:
    cursor = connection.execute(
        "INSERT INTO imports (file, format, imported_at, sha256, points, new, skipped) VALUES (?, ?, ?, ?, ?, 0, ?)",
        (new.file, new.format, moment, new.sha256, new.count, json.dumps(dict(new.skipped), sort_keys=True)),
    )
    number = cursor.lastrowid
    marks = ", ".join("?" * (1 + len(STACK_NAMES)))
    connection.executemany(f"INSERT OR IGNORE INTO stacks VALUES ({marks})", new.stacks)
    before = connection.total_changes
    # What no point of the file fills is left to the table's defaults: a million rows are bound in half the time.
    names = ", ".join(("id", "stack", *new.columns))
    marks = ", ".join("?" * (2 + len(new.columns)))
    connection.executemany(f"INSERT OR IGNORE INTO points (import, {names}) VALUES ({number}, {marks})", new.points)
    added = connection.total_changes - before
    connection.execute("UPDATE imports SET new = ? WHERE id = ?", (added, number))
    return added


def read_points(
    *,
    model: str | None = None,
    kind: str | None = None,
    where: Mapping[str, str] | None = None,
    import_id: int | None = None,
    limit: int | None = None,
    path: Path | None = None,
) -> list[dict[str, Any]]:
    """Points of the store with everything they say.

    Args:
        model: Only this catalogue key.
        kind: `serving` or `training`.
        where: Texts that must match, by column; `*` and `?` are wild.
        import_id: Only what this import brought.
        limit: Most points.
        path: Another store than the user's.

    Returns:
        One dict a point: `id`, `import`, texts and numbers (None where the source says nothing).

    Raises:
        StoreError: The store is damaged or was written by a newer tokenopt.
    """
    with _reading(path or measured_path()) as connection:
        return [] if connection is None else list(_points(connection, model, kind, where or {}, import_id, limit))


def _points(
    connection: sqlite3.Connection,
    model: str | None,
    kind: str | None,
    where: Mapping[str, str],
    import_id: int | None,
    limit: int | None,
) -> Iterator[dict[str, Any]]:
    condition, values = _condition(model, kind, where, import_id)
    own = ("id", "import", *POINT_TEXT_NAMES, *NUMBER_NAMES)
    names = (*own, *STACK_NAMES)
    chosen = ", ".join([*(f"points.{name}" for name in own), *(f"stacks.{name}" for name in STACK_NAMES)])
    ends = f" LIMIT {int(limit)}" if limit is not None else ""
    for row in connection.execute(
        f"SELECT {chosen} FROM points JOIN stacks ON stacks.id = points.stack{condition} "
        f"ORDER BY points.import, points.id{ends}",
        values,
    ):
        yield dict(zip(names, row, strict=True))


def _condition(
    model: str | None, kind: str | None, where: Mapping[str, str], import_id: int | None
) -> tuple[str, list[Any]]:
    parts, values = [], []
    for name, wanted in ((("stacks.model"), model), ("stacks.kind", kind), ("points.import", import_id)):
        if wanted is not None:
            parts.append(f"{name} = ?")
            values.append(wanted)
    for name, glob in where.items():
        if name not in STACK_NAMES:
            raise StoreError(f"points have no text column {name!r}")
        parts.append(f"lower(stacks.{name}) GLOB ?")
        values.append(glob.lower())
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


def remove_points(
    *, where: Mapping[str, str] | None = None, import_id: int | None = None, path: Path | None = None
) -> int:
    """Takes points out of the store, and imports and stacks that are left without any.

    Args:
        where: As for :func:`read_points`.
        import_id: Only what this import brought.
        path: Another store than the user's.

    Returns:
        How many points went.

    Raises:
        StoreError: The store cannot be written.
    """
    file = path or measured_path()
    if not file.exists():
        return 0
    condition, values = _condition(None, None, where or {}, import_id)
    with _writing(file) as connection:
        cursor = connection.execute(
            "DELETE FROM points WHERE id IN (SELECT points.id FROM points JOIN stacks ON stacks.id = points.stack"
            f"{condition})",
            values,
        )
        connection.execute("DELETE FROM stacks WHERE id NOT IN (SELECT stack FROM points)")
        connection.execute("DELETE FROM imports WHERE id NOT IN (SELECT import FROM points)")
        return cursor.rowcount


def imports(path: Path | None = None) -> list[ImportRecord]:
    """Every import that brought points, oldest first.

    Raises:
        StoreError: As for :func:`read_points`.
    """
    with _reading(path or measured_path()) as connection:
        if connection is None:
            return []
        rows = connection.execute(
            "SELECT id, file, format, imported_at, sha256, points, new, skipped FROM imports ORDER BY id"
        ).fetchall()
    return [
        ImportRecord(number, file, kind, moment, sha256, points, new, json.loads(skipped))
        for number, file, kind, moment, sha256, points, new, skipped in rows
    ]


def summary(where: Mapping[str, str] | None = None, path: Path | None = None) -> list[dict[str, Any]]:
    """What the store covers: points by kind, model, accelerator, engine, precision and shape.

    Raises:
        StoreError: As for :func:`read_points`.
    """
    condition, values = _condition(None, None, where or {}, None)
    by = (
        "kind",
        "model",
        "model_name",
        "accelerator",
        "accelerator_name",
        "engine",
        "weight_precision",
        "mode",
        "source",
    )
    with _reading(path or measured_path()) as connection:
        if connection is None:
            return []
        columns = ", ".join(f"stacks.{name}" for name in by)
        rows = connection.execute(
            f"SELECT {columns}, points.isl, points.osl, count(*), min(stacks.measured_on), max(stacks.measured_on) "
            f"FROM points JOIN stacks ON stacks.id = points.stack{condition} GROUP BY {columns}, points.isl, points.osl "
            f"ORDER BY {columns}, points.isl, points.osl",
            values,
        ).fetchall()
    names = (*by, "isl", "osl", "points", "first", "last")
    return [dict(zip(names, row, strict=True)) for row in rows]


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A read-only connection, None where there is no store; nothing is created."""
    if not path.exists():
        yield None
        return
    with _told(path):
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            yield connection if _check_version(connection, path) else None


@contextmanager
def _writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection inside a transaction that is committed on leaving and rolled back on any exception."""
    with _told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of the measured store {path.parent} cannot be made: {error}") from error
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            _check_version(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA cache_size = -200000")
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
            f"{path} is not a measured store of tokenopt; move it away or set {DATA_DIR_VARIABLE} to another folder"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the measured store {path} has version {version}, written by a newer tokenopt; this one reads version "
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
            aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}")
            for suffix in ("", "-wal", "-shm"):
                part = path.with_name(path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
            raise StoreError(
                f"the measured store {path} is damaged ({error}); it is kept as {aside.name} and a new one starts empty",
                ["`tokenopt measured import` reads files again"],
            ) from error
        raise StoreError(f"the measured store {path} cannot be used: {error}") from error
