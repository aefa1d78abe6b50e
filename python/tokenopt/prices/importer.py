"""`tokenopt prices import`: files on disk, told apart by their shape, into the store."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from tokenopt.errors import PriceSourceError, TokenoptError
from tokenopt.plugins import guarded
from tokenopt.prices.sources import reasons, usable
from tokenopt.prices.store import Change, NewSnapshot, write_snapshots
from tokenopt.records import FileShape, Offer, PricePage, PriceSource

PARSE_LIMIT_S = 600.0
MAX_FILE_BYTES = 2 * 1024**3
FILE_PREFIX = "file:"
_WHOLE_BYTES = 64 * 1024**2
_HEAD_CHARACTERS = 65_536
_DEPTH = 6
_KEY = re.compile(r'"((?:[^"\\]|\\.){1,80})"\s*:')


@dataclass(slots=True)
class ImportResult:
    """What became of files that were read together.

    Attributes:
        files: File names.
        format: Source that read them, empty where none did.
        offers: What they hold.
        changes: What changed in the store, by store source.
        skipped: Rows left out, by reason.
        message: Why they were refused, empty where they were not.
        is_empty: They were read and understood, and hold no price of an accelerator.
    """

    files: tuple[str, ...]
    format: str = ""
    offers: Sequence[Offer] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    message: str = ""
    is_empty: bool = False


def shape_of(name: str, content: bytes) -> FileShape:
    """What kind of file this is: its syntax, and the names at its top.

    Raises:
        PriceSourceError: It is neither JSON nor a table nor an archive of tables.
    """
    if content.startswith(b"PK\x03\x04"):
        return _archive_shape(name, content)
    head = content[:_HEAD_CHARACTERS].decode("utf-8-sig", "replace").lstrip()
    if not head:
        raise PriceSourceError(f"{name} is empty")
    if head[0] in "[{":
        if len(content) > _WHOLE_BYTES:
            return FileShape("json", frozenset(_KEY.findall(head)) | _late_keys(content))
        try:
            document = json.loads(content.decode("utf-8-sig"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise PriceSourceError(f"{name} is not whole JSON: {error}") from error
        names: set[str] = set()
        _collect(document, names, _DEPTH)
        return FileShape("json", frozenset(names))
    if "\x00" in head or head[0] == "<":
        raise PriceSourceError(f"{name} is neither JSON nor a table with a header")
    header = next(csv.reader(io.StringIO(head)), [])
    if len(header) < 2:
        raise PriceSourceError(f"{name} is neither JSON nor a table with a header")
    return FileShape("csv", frozenset(column.strip() for column in header))


def _archive_shape(name: str, content: bytes) -> FileShape:
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.namelist():
                if entry.endswith(".csv"):
                    with archive.open(entry) as file:
                        return shape_of(f"{entry} in {name}", file.read(_HEAD_CHARACTERS))
    except zipfile.BadZipFile as error:
        raise PriceSourceError(f"{name} is not a whole archive: {error}") from error
    raise PriceSourceError(f"{name} is an archive without a table")


def _late_keys(content: bytes) -> frozenset[str]:
    """Keys that stand far down in a long offer file and tell what it is."""
    return frozenset(
        key for key in ("products", "terms", "skus", "Items", "savingsPlan") if f'"{key}"'.encode() in content
    )


def _collect(value: Any, names: set[str], depth: int) -> None:
    if depth == 0:
        return
    if isinstance(value, Mapping):
        names.update(str(key) for key in islice(value, 200))
        for inner in islice(value.values(), 40):
            _collect(inner, names, depth - 1)
    elif isinstance(value, list):
        for inner in islice(value, 3):
            _collect(inner, names, depth - 1)
    elif isinstance(value, str) and value.startswith("{"):
        # The AWS Query API puts JSON text inside JSON.
        names.update(_KEY.findall(value[:4096]))


def import_files(
    paths: Sequence[Path],
    sources: Mapping[str, PriceSource],
    *,
    file_format: str = "auto",
    rates: Mapping[str, float] | None = None,
    as_of: str = "",
    provider: str = "",
    store: Path | None = None,
    today: date | None = None,
) -> list[ImportResult]:
    """Reads price files and stores their offers; files of one format are read together.

    Args:
        paths: Files.
        sources: All there are, by name.
        file_format: A source's name, or `auto` to tell by the shape.
        rates: USD per unit of a currency, from the user.
        as_of: The day the prices were seen, ISO format, where the files do not say.
        provider: Whose prices they are, where neither the rows nor the file's name say.
        store: Another store than the user's.
        today: Day of import; today by default.

    Returns:
        One result for each group of files. A refused group changes nothing; each accepted one is stored in one
        transaction.

    Raises:
        PriceSourceError: `file_format` is unknown.
        StoreError: The store cannot be used.
    """
    if file_format != "auto" and file_format not in sources:
        raise PriceSourceError(
            f"no price file format {file_format!r}",
            [f"formats: auto, {', '.join(sorted(sources)) or 'none installed'}"],
        )
    groups: dict[str, list[PricePage]] = {}
    results: list[ImportResult] = []
    for path in paths:
        try:
            page = _read(path, provider)
            name = file_format if file_format != "auto" else _recognise(page, sources)
            groups.setdefault(name, []).append(page)
        except TokenoptError as error:
            results.append(ImportResult((path.name,), message=error.message))
    for name, pages in groups.items():
        results.append(_import_group(sources[name], pages, rates or {}, as_of, today or date.today(), store))
    return results


def _read(path: Path, provider: str) -> PricePage:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise PriceSourceError(f"{path} is {size:,} bytes long, the most is {MAX_FILE_BYTES:,}")
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                content = packed.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise PriceSourceError(f"{path} unpacks to more than {MAX_FILE_BYTES:,} bytes")
        return PricePage(path.name, content, provider)
    except (EOFError, zlib.error) as error:
        raise PriceSourceError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise PriceSourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _recognise(page: PricePage, sources: Mapping[str, PriceSource]) -> str:
    shape = shape_of(page.name, page.content)
    fitting = [name for name, source in sorted(sources.items()) if _recognises(source, shape)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise PriceSourceError(f"{page.name} could be {' or '.join(fitting)}: say which with --as-format")
    raise PriceSourceError(
        f"{page.name} is not a price file of a known shape ({shape.kind} with "
        f"{', '.join(sorted(shape.names)[:6]) or 'no names'}, ...): say which it is with --as-format, one of "
        f"{', '.join(sorted(sources))}"
    )


def _recognises(source: PriceSource, shape: FileShape) -> bool:
    """Whether a source knows the shape; one whose plugin fails to say does not, so that the others can."""
    try:
        return bool(guarded(lambda: source.recognises(shape), f"recognises of {source.name}"))
    except TokenoptError:
        return False


def _import_group(
    source: PriceSource,
    pages: Sequence[PricePage],
    rates: Mapping[str, float],
    as_of: str,
    today: date,
    store: Path | None,
) -> ImportResult:
    result = ImportResult(tuple(page.name for page in pages), source.name)
    try:
        parsed = guarded(lambda: usable(source.parse(pages, rates)), f"parsing {source.name}", PARSE_LIMIT_S)
    except TokenoptError as error:
        # A plugin's own mistake is told like a file that cannot be read; the other files are still read.
        result.message = error.message
        return result
    result.skipped = parsed.skipped
    if not parsed.offers:
        result.is_empty = True
        result.message = (
            f"{', '.join(result.files)} holds no price of an accelerator ({reasons(parsed.skipped) or 'no rows'})"
        )
        return result
    # An undated file says nothing of its age: the day of import is told as what it is, and counts as no date.
    dated = as_of or f"undated, imported {today.isoformat()}"
    result.offers = [offer if offer.as_of else replace(offer, as_of=dated) for offer in parsed.offers]
    snapshots = _by_file(result.files, result.offers, parsed.skipped)
    changes = write_snapshots(snapshots, path=store)
    result.changes = {snapshot.source: change for snapshot, change in zip(snapshots, changes, strict=True)}
    return result


def _by_file(files: Sequence[str], offers: Sequence[Offer], skipped: Mapping[str, int]) -> list[NewSnapshot]:
    """One snapshot a file, so that reading a file again replaces what it held."""
    mine: dict[str, list[Offer]] = {name: [] for name in files}
    for offer in offers:
        mine.get(offer.source.reference, mine[files[0]]).append(offer)
    filled = [name for name in files if mine[name]]
    return [NewSnapshot(FILE_PREFIX + name, mine[name], skipped if name == filled[0] else {}) for name in filled]
