"""`tokenopt measured import`: benchmark files on disk, told apart by their shape, checked, and into the store."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.model_names import model_key
from tokenopt.errors import SpecError, TokenoptError
from tokenopt.measured.columns import (
    COLUMNS,
    NUMBER_NAMES,
    NUMBERS,
    POINT_TEXT_NAMES,
    RESULTS,
    STACK_NAMES,
    TEXT_NAMES,
)
from tokenopt.measured.formats import inferencex, load_test, mlperf, mlperf_training, tables
from tokenopt.measured.formats.document import Document, Parsed
from tokenopt.measured.names import accelerator_key, hardware_in_path
from tokenopt.measured.store import NewImport, write_imports

if TYPE_CHECKING:
    import polars as pl

FORMATS = ("inferencex", "mlperf-inference", "mlperf-training", "load-test", "csv")
MAX_FILE_BYTES = 4 * 1024**3
ENDINGS = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".log", ".ndjson"}


@dataclass(slots=True)
class FileResult:
    """What became of one file.

    Attributes:
        file: Its name.
        format: Family that read it; empty where none did.
        tool: Shape inside the family.
        points: Points it holds.
        new: Of them not in the store before.
        skipped: Rows left out, by reason.
        message: Why it was refused; empty where it was not.
        is_companion: Whether it only serves to read the others (a system description, a summary beside its log).
    """

    file: str
    format: str = ""
    tool: str = ""
    points: int = 0
    new: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    message: str = ""
    is_companion: bool = False


def _has_ending(file: Path) -> bool:
    ending = file.suffix.lower()
    return (Path(file.stem).suffix.lower() if ending == ".gz" else ending) in ENDINGS


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Files, and those inside folders that a benchmark may have written, sorted.

    Raises:
        SpecError: A path does not exist, or a folder holds no such file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _has_ending(file))
            if not inside:
                raise SpecError(f"{path} holds no file with results ({', '.join(sorted(ENDINGS))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise SpecError(f"{path} is neither a file nor a folder")
    return list(dict.fromkeys(found))


def import_files(
    paths: Sequence[Path],
    *,
    file_format: str = "auto",
    given: Mapping[str, Any] | None = None,
    skip_invalid: bool = False,
    store: Path | None = None,
) -> list[FileResult]:
    """Reads benchmark files and stores their points, all files in one transaction.

    Args:
        paths: Files, or folders that are searched for them.
        file_format: One of :data:`FORMATS`, or `auto` to tell by the shape.
        given: Columns that the files do not state (hardware, chips, model, engine, tp ...), from the user.
        skip_invalid: Leave out rows with impossible figures instead of refusing their file.
        store: Another store than the user's.

    Returns:
        One result a file. A refused file changes nothing; if every file is refused the store is not touched.

    Raises:
        SpecError: The format or a path is unknown, or a given value cannot be used.
        StoreError: The store cannot be used.
    """
    if file_format not in ("auto", *FORMATS):
        raise SpecError(f"--format is {file_format!r}, expected auto, {', '.join(FORMATS)}")
    stated = _given(given or {})
    results: list[FileResult] = []
    documents: list[tuple[FileResult, Document, str]] = []
    for path in files_of(paths):
        result = FileResult(str(path))
        results.append(result)
        try:
            content = _read(path)
            documents.append(
                (result, Document(path.name, path.as_posix(), content), hashlib.sha256(content).hexdigest())
            )
        except TokenoptError as error:
            result.message = error.message
    systems, detailed = _companions(documents)
    ready: list[tuple[FileResult, NewImport]] = []
    while documents:
        result, document, sha256 = documents.pop(0)
        try:
            family, tool, frame, skipped = _parsed(document, file_format, systems, detailed)
            result.format, result.tool, result.skipped = family, tool, skipped
            if frame is None or not len(frame):
                is_summary = bool(skipped) and all("detail log" in reason for reason in skipped)
                result.is_companion = tool == "mlperf-system" or is_summary
                if not result.is_companion:
                    result.message = (
                        f"{document.name} holds no point that measures serving or training ({_reasons(skipped)})"
                    )
                continue
            frame = _checked(_filled(frame, document, stated), document.name, skip_invalid, result.skipped)
            if not len(frame):
                result.message = f"{document.name} holds no usable point ({_reasons(result.skipped)})"
                continue
            new = _ready(frame, result.file, tool, sha256, result.skipped)
            result.points = new.count
            ready.append((result, new))
        except TokenoptError as error:
            result.message = error.message
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # A field of another kind than the format has: the file is refused, the others are still read.
            result.message = f"{document.name} does not have the fields of its format ({type(error).__name__}: {error})"
    if ready:
        for (result, _), added in zip(ready, write_imports([new for _, new in ready], path=store), strict=True):
            result.new = added
    return results


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise SpecError(f"{path} is {size:,} bytes long, the most is {MAX_FILE_BYTES:,}")
        content = path.read_bytes()
        return _unpacked(path, content) if content[:2] == b"\x1f\x8b" else content
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or error}") from error


def _unpacked(path: Path, content: bytes) -> bytes:
    """The content of a gzip file."""
    import gzip
    import io
    import zlib

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            unpacked = packed.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(f"{path} is not a whole gzip file: {error}") from error
    if len(unpacked) > MAX_FILE_BYTES:
        raise SpecError(f"{path} unpacks to more than {MAX_FILE_BYTES:,} bytes")
    return unpacked


def _companions(documents: Sequence[tuple[FileResult, Document, str]]) -> tuple[mlperf.Systems, list[str]]:
    """System descriptions and detail logs, which other files of the import are read with."""
    systems = mlperf.Systems()
    detailed = []
    for _, document, _ in documents:
        try:
            system = mlperf.system_of(document)
        except TokenoptError:
            continue
        if system is not None:
            systems.found.append(system)
        if stem := mlperf.log_stem(document.path):
            detailed.append(stem)
    return systems, detailed


def _parsed(
    document: Document, file_format: str, systems: mlperf.Systems, detailed: Sequence[str]
) -> tuple[str, str, pl.DataFrame | None, Counter[str]]:
    """Family, tool, points and what was skipped."""
    family = _family(document) if file_format == "auto" else file_format
    parsed: Parsed
    if family == "inferencex":
        _expect(inferencex.recognises(document), document, family)
        parsed = inferencex.read(document)
    elif family == "mlperf-inference":
        _expect(mlperf.recognises(document), document, family)
        parsed = mlperf.read(document, systems, detailed)
    elif family == "mlperf-training":
        is_system = mlperf.system_of(document) is not None
        _expect(is_system or mlperf_training.recognises(document), document, family)
        parsed = mlperf.read(document, systems) if is_system else mlperf_training.read(document, systems)
    elif family == "load-test" and load_test.recognises(document):
        parsed = load_test.read(document)
    elif family in ("load-test", "csv") and document.syntax == "table" and tables.is_aiperf(document):
        parsed = tables.read_aiperf(document)
    else:
        _expect(document.syntax == "table", document, family)
        tool, frame, skipped = tables.read_frame(document)
        return family, tool, frame, skipped
    return family, parsed.tool, _frame(parsed), parsed.skipped


def _family(document: Document) -> str:
    # The cheap question first: a table of a million rows is not split into cells to find out what it is.
    if document.syntax == "table":
        plan = tables.plan_of(tables.header_of_text(document.text))
        if plan is not None and plan.tool in ("csv", "sweep", "published"):
            return "csv"
    for name, module in (
        ("inferencex", inferencex), ("mlperf-training", mlperf_training), ("mlperf-inference", mlperf),
        ("load-test", load_test),
    ):  # fmt: skip
        if module.recognises(document):
            return name
    if tables.recognises(document):
        return "load-test"
    raise SpecError(
        f"{document.name} is not a benchmark result of a known shape ({_looks_like(document)}); "
        f"--format names one of {', '.join(FORMATS)}"
    )


def _expect(is_right: bool, document: Document, family: str) -> None:
    if not is_right:
        raise SpecError(f"{document.name} does not have the shape of {family} ({_looks_like(document)})")


def _looks_like(document: Document) -> str:
    if document.syntax == "json":
        value = document.json_value
        value = value[0] if isinstance(value, list) and value else value
        names = list(value)[:5] if isinstance(value, Mapping) else []
        return f"JSON with {', '.join(map(str, names))}" if names else "JSON without objects"
    if document.syntax == "table":
        return f"a table with {', '.join(cell.strip() for cell in tables.header_of_text(document.text)[:5])}"
    return "text"


def _reasons(skipped: Mapping[str, int]) -> str:
    listed = [f"{count:,} {reason}" for reason, count in Counter(skipped).most_common(4)]
    return "; ".join(listed) + ("; ..." if len(skipped) > 4 else "") or "no rows"


def _given(given: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own columns, checked."""
    stated = {name: value for name, value in given.items() if value not in (None, "")}
    if "accelerator" in stated:
        name = str(stated["accelerator"])
        stated |= {"accelerator": accelerator_key(name) or name.lower(), "accelerator_name": name}
    if "model" in stated:
        name = str(stated["model"])
        stated |= {"model": model_key(name) or name.lower(), "model_name": name}
    for column in NUMBERS:
        if column.name in stated and not column.low <= float(stated[column.name]) <= column.high:
            raise SpecError(f"{column.name} is {stated[column.name]}, expected {column.low:g} to {column.high:g}")
    return stated


def _frame(parsed: Parsed) -> pl.DataFrame | None:
    import polars as pl

    if not parsed.points:
        return None
    schema = {column.name: pl.String if column.kind == "text" else pl.Float64 for column in COLUMNS}
    data: dict[str, list[Any]] = {name: [point.get(name) for point in parsed.points] for name in schema}
    return pl.DataFrame(data, schema=schema, strict=False)


def _filled(frame: pl.DataFrame, document: Document, stated: Mapping[str, Any]) -> pl.DataFrame:
    """Every column, what the user states where the file does not, and per-chip figures that follow."""
    import polars as pl

    texts = [(pl.col(name).fill_null("") if name in frame.columns else pl.lit("")).alias(name) for name in TEXT_NAMES]
    numbers = [
        (pl.col(name).cast(pl.Float64) if name in frame.columns else pl.lit(None, dtype=pl.Float64)).alias(name)
        for name in NUMBER_NAMES
    ]
    frame = frame.select(texts + numbers)
    for name in TEXT_NAMES:
        if name in stated:
            frame = frame.with_columns(
                pl.when(pl.col(name) == "").then(pl.lit(str(stated[name]))).otherwise(pl.col(name)).alias(name)
            )
    for name in NUMBER_NAMES:
        if name in stated:
            frame = frame.with_columns(pl.col(name).fill_null(float(stated[name])))
    name, chips = hardware_in_path(document.path)
    key = accelerator_key(name) if name else ""
    if key:
        silent = pl.col("accelerator_name") == ""
        count = (
            pl.when(silent & pl.col("chips").is_null()).then(pl.lit(chips, dtype=pl.Float64)).otherwise(pl.col("chips"))
        )
        frame = frame.with_columns(
            count.alias("chips"),
            pl.when(silent).then(pl.lit("; hardware from the file's name")).otherwise(pl.lit("")).alias("_how"),
            pl.when(silent).then(pl.lit(key)).otherwise(pl.col("accelerator")).alias("accelerator"),
            pl.when(silent).then(pl.lit(name)).otherwise(pl.col("accelerator_name")).alias("accelerator_name"),
        ).with_columns((pl.col("note") + pl.col("_how")).str.strip_chars_start("; ").alias("note"))
    for kind in ("output", "total"):
        per_chip = pl.col(f"{kind}_tps") / pl.col("chips")
        frame = frame.with_columns(pl.col(f"{kind}_tps_per_chip").fill_null(per_chip).alias(f"{kind}_tps_per_chip"))
    # A closed loop of n requests ends with n requests in flight; a rate that is not finite is no rate.
    rate = pl.when(pl.col("request_rate").is_infinite()).then(None).otherwise(pl.col("request_rate"))
    per_user = pl.when(pl.col("tpot_ms") > 0).then(1e3 / pl.col("tpot_ms"))
    return frame.with_columns(
        rate.alias("request_rate"), pl.col("tps_per_user").fill_null(per_user).alias("tps_per_user")
    ).select([*TEXT_NAMES, *NUMBER_NAMES])


def _checked(frame: pl.DataFrame, name: str, skip_invalid: bool, skipped: Counter[str]) -> pl.DataFrame:
    """Rows whose figures are possible.

    Raises:
        SpecError: A row holds an impossible figure, and `skip_invalid` is not set.
    """
    import polars as pl

    # Zero stands for "not stated" in exports: no degree, no count of chips and no length is truly zero.
    zeros = [column.name for column in NUMBERS if column.name not in ("completed", "failed", "prefix_hit")]
    has_result = pl.any_horizontal([pl.col(result).fill_null(0.0) > 0 for result in RESULTS])
    measured = frame.select(has_result).to_series()
    frame = frame.with_columns(
        [pl.when(pl.col(name) == 0).then(None).otherwise(pl.col(name)).alias(name) for name in zeros]
    )
    bad = []
    for column in NUMBERS:
        value = pl.col(column.name)
        is_bad = value.is_not_null() & (~value.is_finite() | (value < column.low) | (value > column.high))
        bad.append(is_bad.alias(column.name))
    flags = frame.select(bad)
    any_bad = flags.select(pl.any_horizontal(pl.all())).to_series()
    if any_bad.any():
        for column in NUMBERS:
            count = int(flags[column.name].sum())
            if not count:
                continue
            at = int(flags[column.name].arg_true()[0])
            value = frame[column.name][at]
            if not skip_invalid:
                raise SpecError(
                    f"{name}: {column.name} of point {at + 1} is {value:g}, expected {column.low:g} to {column.high:g}",
                    ["--skip-invalid leaves such rows out and reads the others"],
                )
            skipped[f"{column.name} is impossible"] += count
        frame, measured = frame.filter(~any_bad), measured.filter(~any_bad)
    empty = int((~measured).sum())
    if empty:
        skipped["nothing was measured: no throughput, no latency"] += empty
        frame = frame.filter(measured)
    return frame


def _ready(frame: pl.DataFrame, file: str, tool: str, sha256: str, skipped: Counter[str]) -> NewImport:
    """Ids, stacks and points; rows that say the same are there once."""
    import numpy as np
    import polars as pl

    frame = frame.with_columns(
        pl.when(pl.col("tool") == "").then(pl.lit(tool)).otherwise(pl.col("tool")).alias("tool"),
        pl.when(pl.col("kind") == "").then(pl.lit("serving")).otherwise(pl.col("kind")).alias("kind"),
    )
    keys = frame.select(pl.concat_str([pl.col(name) for name in STACK_NAMES], separator="\x1f").alias("key"))
    frame = frame.with_columns(keys.to_series())
    stacks = frame.select(["key", *STACK_NAMES]).unique(subset="key", maintain_order=True)
    hashed = pl.Series("stack", _hashes([text.encode() for text in stacks["key"]]), dtype=pl.Int64)
    stacks = stacks.with_columns(hashed)
    frame = frame.with_columns(pl.col("key").replace_strict(stacks["key"], stacks["stack"]).alias("stack"))
    figures = frame.select(NUMBER_NAMES).fill_null(float("nan")).to_numpy()
    said = np.column_stack([frame["stack"].to_numpy().view(np.float64), figures])
    width = said.itemsize * said.shape[1]
    words = said.tobytes()
    ids = _hashes([words[at : at + width] for at in range(0, len(words), width)])
    frame = frame.with_columns(pl.Series("id", ids, dtype=pl.Int64))
    before = len(frame)
    frame = frame.unique(subset="id", keep="first").sort("id")
    if len(frame) < before:
        skipped["repeat inside the file"] += before - len(frame)
    columns = [name for name in POINT_TEXT_NAMES if (frame[name] != "").any()]
    columns += [name for name in NUMBER_NAMES if frame[name].null_count() < len(frame)]
    rows = frame.select(["id", "stack", *columns]).iter_rows()
    return NewImport(
        file, tool, sha256, stacks.select(["stack", *STACK_NAMES]).rows(), columns, rows, len(frame), dict(skipped)
    )


def _hashes(words: Sequence[bytes]) -> list[int]:
    """64-bit hashes, the same on every machine."""
    blake, to_int = hashlib.blake2b, int.from_bytes
    return [to_int(blake(word, digest_size=8).digest(), "little", signed=True) for word in words]
