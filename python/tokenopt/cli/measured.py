"""`tokenopt measured`: the store of measured points."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenopt.cli import say
from tokenopt.cli.options import debug_option
from tokenopt.errors import ExitCode

if TYPE_CHECKING:
    from tokenopt.measured.importer import FileResult

_format_option = click.option(
    "--output", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="Form of the answer.",
)  # fmt: skip
_MOST_REASONS = 3


@click.group("measured")
def command() -> None:
    """Keep measured benchmarks: what `search --basis measured` answers from."""


@command.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--format", "file_format", default="auto", show_default=True,
              help="inferencex, mlperf-inference, mlperf-training, load-test or csv; told by the shape by default.")  # fmt: skip
@click.option("--hardware", "accelerator", metavar="NAME", help="Accelerator, where the files do not say.")
@click.option("--chips", type=float, help="Accelerators in use, where the files do not say.")
@click.option("--model", metavar="NAME", help="Model, where the files do not say.")
@click.option("--engine", metavar="NAME", help="Serving engine, where the files do not say.")
@click.option("--engine-version", metavar="TEXT", help="Its version, where the files do not say.")
@click.option("--precision", "weight_precision", metavar="NAME", help="Weight precision, where the files do not say.")
@click.option("--tp", type=float, help="Tensor parallel degree, where the files do not say.")
@click.option("--pp", type=float, help="Pipeline stages, where the files do not say.")
@click.option("--ep", type=float, help="Expert parallel degree, where the files do not say.")
@click.option("--attn-dp", type=float, help="Data-parallel ranks of attention, where the files do not say.")
@click.option("--isl", type=float, help="Prompt length, where the files do not say.")
@click.option("--osl", type=float, help="Output length, where the files do not say.")
@click.option("--concurrency", type=float, help="Requests in flight, where the files do not say.")
@click.option("--measured-on", metavar="DATE", help="Day of the measurement (ISO), where the files do not say.")
@click.option(
    "--skip-invalid", is_flag=True, help="Leave out rows with impossible figures instead of refusing their file."
)
@_format_option
@debug_option
def import_(
    paths: tuple[Path, ...],
    file_format: str,
    skip_invalid: bool,
    output_format: str,
    debug: bool,  # noqa: ARG001
    **given: Any,
) -> None:
    """Read benchmark files, or all of a folder, into the local store.

    Every file is told by its shape. All of them are stored in one transaction; a refused file changes nothing. Exits with 1
    when a file that was named is refused, or when nothing could be read.
    """
    from tokenopt.measured.importer import import_files

    results = import_files(paths, file_format=file_format, given=given, skip_invalid=skip_invalid)
    _show_import(results, output_format)
    named = {str(path) for path in paths}
    refused = [result for result in results if result.message]
    if any(result.file in named for result in refused) or len(refused) == len(results):
        raise click.exceptions.Exit(ExitCode.ERROR)


def _show_import(results: Sequence[FileResult], output_format: str) -> None:
    points, new = sum(result.points for result in results), sum(result.new for result in results)
    if output_format == "json":
        rows = [
            {
                "file": result.file, "format": result.format, "tool": result.tool, "points": result.points,
                "new": result.new, "skipped": dict(result.skipped), "refused": result.message,
            }
            for result in results
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "points": points, "new": new, "files": rows}, indent=2))
        return
    taken = [result for result in results if not result.message]
    if taken:
        from tokenopt.report.tables import Column, listing_console, plain_table

        columns: list[Column] = [("points", "right"), ("new", "right"), ("skipped", "right"), ("format", "left", 2),
                                 ("tool", "left", 1), ("file", "left"), ("why skipped", "left", 3)]  # fmt: skip
        lines = [
            [f"{result.points:,}", f"{result.new:,}", f"{sum(result.skipped.values()):,}" if result.skipped else "",
             result.format, result.tool, Path(result.file).name, _reasons(result.skipped)]
            for result in taken
        ]  # fmt: skip
        console = listing_console()
        console.print(plain_table(columns, lines, console.width))
    for result in results:
        if result.message:
            say(f"refused: {result.message}")
    click.echo(f"{points:,} points read, {new:,} new, {len(results) - len(taken)} of {len(results)} files refused")


def _reasons(skipped: Counter[str]) -> str:
    listed = [f"{count:,} {reason}" for reason, count in skipped.most_common(_MOST_REASONS)]
    return "; ".join(listed) + ("; ..." if len(skipped) > _MOST_REASONS else "")


_FILTERS = (
    click.option("--model", metavar="GLOB", help="Only models that match (catalogue keys)."),
    click.option("--hardware", "accelerator", metavar="GLOB", help="Only accelerators that match (catalogue keys)."),
    click.option("--engine", metavar="GLOB", help="Only engines that match."),
    click.option("--source", metavar="GLOB", help="Only sources that match."),
    click.option("--tool", metavar="GLOB", help="Only kinds of file that match."),
    click.option("--kind", type=click.Choice(["serving", "training"]), help="Only this kind."),
)


def _filters(function: Any) -> Any:
    for decorate in reversed(_FILTERS):
        function = decorate(function)
    return function


def _where(filters: dict[str, str | None]) -> dict[str, str]:
    return {name: glob for name, glob in filters.items() if glob}


@command.command("list")
@_filters
@click.option("--imports", "by_import", is_flag=True, help="List the imported files instead.")
@click.option("--bundled", is_flag=True, help="List what is bundled with tokenopt instead.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Most lines.")
@_format_option
@debug_option
def list_(
    by_import: bool,
    bundled: bool,
    limit: int,
    output_format: str,
    debug: bool,  # noqa: ARG001
    **filters: str | None,
) -> None:
    """Show what the store covers: points by model, accelerator, engine, precision and shape."""
    from tokenopt.measured.store import imports, measured_path, summary

    if by_import:
        _show_imports(imports(), output_format)
        return
    if bundled:
        from tokenopt.measured.bundled import summary_of_bundled

        lines = summary_of_bundled(_where(filters))
    else:
        lines = summary(_where(filters))
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "store": str(measured_path()), "stacks": lines}, indent=2))
        return
    from tokenopt.report.tables import Column, listing_console, plain_table

    columns: list[Column] = [("kind", "left", 5), ("model", "left"), ("accelerator", "left"), ("engine", "left", 1),
               ("weights", "left", 2), ("mode", "left", 4), ("isl", "right"), ("osl", "right"), ("points", "right"),
               ("last", "left", 3), ("source", "left", 6)]  # fmt: skip
    rows = [
        [line["kind"], line["model"] or line["model_name"], line["accelerator"] or line["accelerator_name"], line["engine"],
         line["weight_precision"], line["mode"], _whole(line["isl"]), _whole(line["osl"]), f"{line['points']:,}",
         line["last"], line["source"]]
        for line in lines[:limit]
    ]  # fmt: skip
    console = listing_console()
    if rows:
        console.print(plain_table(columns, rows, console.width))
    points = sum(line["points"] for line in lines)
    click.echo(
        f"{len(rows)} of {len(lines)} lines, {points:,} points " + ("bundled" if bundled else f"in {measured_path()}")
    )


def _whole(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""


def _show_imports(records: Sequence[Any], output_format: str) -> None:
    if output_format == "json":
        rows = [
            {"id": record.id, "file": record.file, "format": record.format, "imported_at": record.imported_at,
             "sha256": record.sha256, "points": record.points, "new": record.new, "skipped": dict(record.skipped)}
            for record in records
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "imports": rows}, indent=2))
        return
    from tokenopt.report.tables import Column, listing_console, plain_table

    columns: list[Column] = [("id", "right"), ("file", "left"), ("tool", "left"), ("imported", "left"), ("points", "right"),
               ("new", "right"), ("skipped", "right")]  # fmt: skip
    lines = [
        [str(record.id), record.file, record.format, record.imported_at, f"{record.points:,}", f"{record.new:,}",
         f"{sum(record.skipped.values()):,}"]
        for record in records
    ]  # fmt: skip
    console = listing_console()
    if lines:
        console.print(plain_table(columns, lines, console.width))
    click.echo(f"{len(lines)} imports")


@command.command("show")
@_filters
@click.option("--import", "import_id", type=int, help="Only what this import brought (`measured list --imports`).")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Most points.")
@_format_option
@debug_option
def show(import_id: int | None, limit: int, output_format: str, debug: bool, **filters: str | None) -> None:  # noqa: ARG001
    """Show points with everything their source says."""
    from tokenopt.errors import MissingDataError
    from tokenopt.measured.store import read_points

    points = read_points(where=_where(filters), import_id=import_id, limit=limit)
    if not points:
        raise MissingDataError(
            "the store holds no such point",
            ["`tokenopt measured list` shows what it holds, `measured import` reads files"],
        )
    said = [{name: value for name, value in point.items() if value not in (None, "")} for point in points]
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "points": said}, indent=2))
        return
    for point in said:
        head = " ".join(str(point.pop(name, "")) for name in ("model", "accelerator", "engine"))
        click.echo(head.strip() or "point")
        for name, value in point.items():
            click.echo(f"  {name}: {f'{value:,.6g}' if isinstance(value, float) else value}")


@command.command("remove")
@_filters
@click.option("--import", "import_id", type=int, help="Only what this import brought (`measured list --imports`).")
@click.option("--all", "everything", is_flag=True, help="Take everything out.")
@debug_option
def remove(import_id: int | None, everything: bool, debug: bool, **filters: str | None) -> None:  # noqa: ARG001
    """Take points out of the store."""
    from tokenopt.errors import SpecError
    from tokenopt.measured.store import imports, remove_points

    where = _where(filters)
    if not where and import_id is None and not everything:
        raise SpecError("say what to remove: --import ID, --model, --hardware, --source ..., or --all")
    if import_id is not None and import_id not in {record.id for record in imports()}:
        raise SpecError(
            f"--import is {import_id}, but the store has no such import",
            ["`tokenopt measured list --imports` lists them"],
        )
    click.echo(f"{remove_points(where=where, import_id=import_id):,} points taken out")


@command.command("export")
@_filters
@click.option("--out", type=click.Path(path_type=Path), help="File to write (.csv or .parquet); stdout by default.")
@debug_option
def export(out: Path | None, debug: bool, **filters: str | None) -> None:  # noqa: ARG001
    """Write points as CSV or Parquet; `measured import --format csv` reads the CSV back."""
    from tokenopt.measured.columns import NAMES
    from tokenopt.measured.store import read_points
    from tokenopt.report import files

    if out is not None:
        files.check_writable(out)
    points = read_points(where=_where(filters))
    rows = [{name: point[name] for name in NAMES} for point in points]
    if out is None:
        click.echo(_csv(rows), nl=False)
        return
    content = files.to_parquet(rows) if out.suffix == ".parquet" else _csv(rows).encode()
    files.write_atomically(out, content)
    say(f"{len(rows):,} points written to {out}")


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    import csv
    import io

    from tokenopt.measured.columns import NAMES

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=NAMES, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()
