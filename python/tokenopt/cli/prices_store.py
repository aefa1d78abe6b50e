"""`tokenopt prices update`, `import`, `history`, `diff`, `sources` and `forget`: the commands around the price store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenopt.cli.options import debug_option
from tokenopt.errors import ExitCode

if TYPE_CHECKING:
    from tokenopt.prices.importer import ImportResult
    from tokenopt.prices.update import SourceResult

_format_option = click.option(
    "--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="Form of the answer.",
)  # fmt: skip
_rate_option = click.option(
    "--rate",
    "rates",
    multiple=True,
    metavar="CODE=USD",
    help="USD per unit of a currency; repeatable. None is built in.",
)
_MOST_REASONS = 4


@click.command("update")
@click.option("--source", "names", multiple=True, metavar="NAME", help="Only this source; repeatable. All by default.")
@_rate_option
@click.option("--full", is_flag=True, help="Ask for everything again, as if nothing were stored.")
@click.option("--accept-fewer", is_flag=True, help="Store a source even when most of its earlier offers are missing.")
@click.option("--strict", is_flag=True, help="Exit with 1 when any source fails, not only when all do.")
@_format_option
@debug_option
def update(
    names: tuple[str, ...],
    rates: tuple[str, ...],
    full: bool,
    accept_fewer: bool,
    strict: bool,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Fetch prices from live sources into the local store.

    Each source is stored in one transaction: one that fails, or is interrupted, leaves what was stored before. Sources that
    need credentials which are not there are left out unless named.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tokenopt.plugins import default_registry
    from tokenopt.prices.currency import parse_rates
    from tokenopt.prices.update import choose_sources, update_source
    from tokenopt.records import PricePage

    usd_per_unit = parse_rates(rates)
    registry = default_registry()
    chosen, results = choose_sources(registry.price_sources, names)
    _tell(registry.problems)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pages]}"),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("prices", total=len(chosen), pages="")
        for source in chosen:
            pages = 0

            def count(page: PricePage, name: str = source.name) -> None:
                nonlocal pages
                pages += 1
                progress.update(task, description=name, pages=f"page {pages}, {len(page.content) / 1e6:.1f} MB")

            progress.update(task, description=source.name, pages="")
            results.append(
                update_source(source, rates=usd_per_unit, full=full, accept_fewer=accept_fewer, on_page=count)
            )
            progress.advance(task)
    _show_update(results, output_format)
    asked = [result for result in results if result.status != "left out"]
    failed = [result for result in asked if result.status == "failed"]
    if (strict and failed) or len(failed) == len(asked):
        raise click.exceptions.Exit(ExitCode.ERROR)


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--as-format",
    "file_format",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Source whose files these are; told by their shape by default. `tokenopt prices sources` lists them.",
)
@_rate_option
@click.option(
    "--as-of", type=click.DateTime(["%Y-%m-%d"]), help="The day the prices were seen, where the files do not say."
)
@click.option("--provider", default="", metavar="NAME", help="Whose prices they are, where the files do not say.")
@_format_option
@debug_option
def import_(
    files: tuple[Path, ...],
    file_format: str,
    rates: tuple[str, ...],
    as_of: Any,
    provider: str,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Read price FILES into the local store.

    Files of one format are read together. Reading a file again replaces what it held. Exits with 1 when a file is refused,
    or when none holds a price of an accelerator.
    """
    from tokenopt.plugins import default_registry
    from tokenopt.prices.currency import parse_rates
    from tokenopt.prices.importer import import_files

    registry = default_registry()
    results = import_files(
        files, registry.price_sources, file_format=file_format, rates=parse_rates(rates),
        as_of=as_of.date().isoformat() if as_of else "", provider=provider,
    )  # fmt: skip
    _tell(registry.problems)
    _show_import(results, output_format)
    if any(result.message and not result.is_empty for result in results) or all(result.message for result in results):
        raise click.exceptions.Exit(ExitCode.ERROR)


@click.command("history")
@click.option("--accelerator", required=True, metavar="KEY", help="Accelerator key.")
@click.option("--provider", metavar="GLOB", help="Only providers that match.")
@click.option("--region", metavar="GLOB", help="Only regions that match.")
@click.option("--term", help="Only this kind of price.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Most lines.")
@_format_option
@debug_option
def history(
    accelerator: str,
    provider: str | None,
    region: str | None,
    term: str | None,
    limit: int,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Show every price the store has held for an accelerator, and how long."""
    from tokenopt.errors import MissingDataError
    from tokenopt.prices.store import price_history

    points = [
        point
        for point in price_history(accelerator.lower())
        if fits(point.offer.provider, provider) and fits(point.offer.region, region)
        and (term is None or point.offer.term == term)
    ]  # fmt: skip
    if not points:
        raise MissingDataError(
            f"the store holds no price of {accelerator}",
            ["`tokenopt prices update` fetches prices, `tokenopt prices import FILE` reads a file"],
        )
    if output_format == "json":
        rows = [
            {"seen_from": point.seen_from, "gone_on": point.gone_on, "store_source": point.store_source,
             "offer": asdict(point.offer)}
            for point in points
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "history": rows}, indent=2))
        return
    columns = [("from", "left"), ("until", "left"), ("provider", "left"), ("instance", "left"), ("region", "left"),
               ("term", "left"), ("$/chip-hr", "right"), ("source", "left")]  # fmt: skip
    shown = points[-limit:]
    _print_table(
        columns,
        [
            [point.seen_from, point.gone_on or "now", point.offer.provider, point.offer.instance_type,
             point.offer.region or "any", point.offer.term, f"{point.offer.usd_per_chip_hr:.4f}", point.store_source]
            for point in shown
        ],
    )  # fmt: skip
    click.echo(f"{len(shown)} of {len(points)} prices of {accelerator}")


@click.command("diff")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The day to compare with.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="The later day; now by default.")
@click.option("--accelerator", metavar="GLOB", help="Only accelerators that match.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Most lines.")
@_format_option
@debug_option
def diff(
    since: Any,
    until: Any,
    accelerator: str | None,
    limit: int,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Show stored prices that changed, came or went, the largest changes first."""
    from tokenopt.prices.history import price_changes

    changes = [
        change
        for change in price_changes(since.date(), until.date() if until else None)
        if fits(change.offer.accelerator, accelerator)
    ]
    if output_format == "json":
        rows = [
            {"offer": asdict(change.offer), "was_usd_per_chip_hr": change.was_usd_per_chip_hr,
             "is_usd_per_chip_hr": change.is_usd_per_chip_hr, "relative": change.relative()}
            for change in changes
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "changes": rows}, indent=2))
        return
    columns = [("accelerator", "left"), ("provider", "left"), ("instance", "left"), ("region", "left"), ("term", "left"),
               ("was", "right"), ("is", "right"), ("change", "right")]  # fmt: skip
    lines = []
    for change in changes[:limit]:
        relative = change.relative()
        word = f"{relative:+.1%}" if relative is not None else "new" if change.was_usd_per_chip_hr is None else "gone"
        offer = change.offer
        lines.append(
            [offer.accelerator, offer.provider, offer.instance_type, offer.region or "any", offer.term,
             _usd(change.was_usd_per_chip_hr), _usd(change.is_usd_per_chip_hr), word]
        )  # fmt: skip
    if lines:
        _print_table(columns, lines)
    click.echo(f"{len(lines)} of {len(changes)} changes since {since.date().isoformat()}, USD per chip-hour")


@click.command("sources")
@_format_option
@debug_option
def sources(output_format: str, debug: bool) -> None:  # noqa: ARG001
    """List live sources and file formats, what each needs, and when it was last stored."""
    from tokenopt.errors import PluginError
    from tokenopt.plugins import default_registry
    from tokenopt.prices.store import last_snapshots, store_path
    from tokenopt.prices.update import is_ready
    from tokenopt.report.tables import age_text

    registry = default_registry()
    last = last_snapshots()
    known = registry.price_sources
    _tell(registry.problems)
    rows: list[dict[str, Any]] = []
    for name in sorted(known.keys() | last.keys()):
        source, snapshot = known.get(name), last.get(name)
        is_live = source is not None and source.fetch is not None
        needs = ""
        if source is not None:
            try:
                needs = "" if is_ready(source) else source.needs
            except PluginError as error:
                needs = error.message
        rows.append(
            {
                "name": name,
                "kind": "live" if is_live else "file",
                "description": source.description if source else "stored earlier",
                "needs": needs,
                "offers": snapshot.offers if snapshot else 0,
                "last": snapshot.fetched_at if snapshot else "",
                "skipped": dict(snapshot.skipped) if snapshot else {},
            }
        )
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "store": str(store_path()), "sources": rows}, indent=2))
        return
    columns = [("source", "left"), ("kind", "left"), ("what", "left"), ("offers", "right"), ("last", "left"),
               ("needs", "left")]  # fmt: skip
    today = date.today()
    _print_table(
        columns,
        [
            [row["name"], row["kind"], row["description"], f"{row['offers']:,}" if row["last"] else "",
             age_text(row["last"][:10], today) if row["last"] else "never", row["needs"]]
            for row in rows
        ],
    )  # fmt: skip
    click.echo(f"store: {store_path()}")


@click.command("forget")
@click.argument("source")
@debug_option
def forget(source: str, debug: bool) -> None:  # noqa: ARG001
    """Take a SOURCE's prices out of the store; its history is kept."""
    from tokenopt.errors import MissingDataError
    from tokenopt.prices.store import NewSnapshot, last_snapshots, write_snapshots

    known = last_snapshots()
    if source not in known:
        raise MissingDataError(f"the store holds nothing of {source!r}", [f"it holds: {', '.join(known) or 'nothing'}"])
    (change,) = write_snapshots([NewSnapshot(source, (), {}, {})])
    click.echo(f"{change.gone:,} offers of {source} taken out")


COMMANDS: tuple[click.Command, ...] = (update, import_, history, diff, sources, forget)
"""What `tokenopt prices` carries beside its list."""


def _show_update(results: Sequence[SourceResult], output_format: str) -> None:
    if output_format == "json":
        rows = [
            {
                "source": result.name, "status": result.status, "message": result.message,
                "offers": result.change.offers if result.change else None, "new": result.change.new if result.change else None,
                "gone": result.change.gone if result.change else None,
                "unchanged": result.change.unchanged if result.change else None, "skipped": dict(result.skipped),
                "requests": result.requests, "retries": result.retries, "not_modified": result.not_modified,
            }
            for result in results
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "sources": rows}, indent=2))
        return
    columns = [("source", "left"), ("status", "left"), ("offers", "right"), ("new", "right"), ("gone", "right"),
               ("unchanged", "right"), ("skipped", "right")]  # fmt: skip
    _print_table(
        columns,
        [
            [result.name, result.status,
             *((f"{result.change.offers:,}", f"{result.change.new:,}", f"{result.change.gone:,}",
                f"{result.change.unchanged:,}") if result.change else ("", "", "", "")),
             f"{result.skipped.total():,}" if result.skipped else ""]
            for result in results
        ],
    )  # fmt: skip
    for result in results:
        if result.message:
            click.echo(f"{result.name} {result.status}: {result.message}", err=result.status == "failed")
    _show_reasons([(result.name, result.skipped) for result in results])


def _show_import(results: Sequence[ImportResult], output_format: str) -> None:
    if output_format == "json":
        rows = [
            {
                "files": result.files, "format": result.format, "message": result.message,
                "refused": bool(result.message) and not result.is_empty, "offers": len(result.offers),
                "changes": {name: asdict(change) for name, change in result.changes.items()},
                "skipped": dict(result.skipped),
            }
            for result in results
        ]  # fmt: skip
        click.echo(json.dumps({"schema": 1, "imports": rows}, indent=2))
        return
    taken = [result for result in results if not result.message]
    if taken:
        columns = [("file", "left"), ("format", "left"), ("offers", "right"), ("new", "right"), ("gone", "right"),
                   ("suspect", "right"), ("skipped", "right")]  # fmt: skip
        _print_table(
            columns,
            [
                [", ".join(result.files), result.format, f"{len(result.offers):,}",
                 f"{sum(change.new for change in result.changes.values()):,}",
                 f"{sum(change.gone for change in result.changes.values()):,}",
                 f"{sum(bool(offer.suspect) for offer in result.offers):,}", f"{result.skipped.total():,}"]
                for result in taken
            ],
        )  # fmt: skip
        _show_reasons([(result.format, result.skipped) for result in taken])
    for result in results:
        if result.message:
            click.echo(result.message if result.is_empty else f"refused: {result.message}", err=True)


def _show_reasons(rows: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    from tokenopt.prices.sources import reasons

    for name, skipped in rows:
        if skipped:
            click.echo(f"{name} skipped {reasons(skipped, _MOST_REASONS)}")


def _print_table(columns: Sequence[tuple[str, Any]], rows: Sequence[Sequence[str]]) -> None:
    from tokenopt.report.tables import listing_console, plain_table

    console = listing_console()
    console.print(plain_table(list(columns), [list(row) for row in rows], console.width))


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)


def fits(value: str, pattern: str | None) -> bool:
    """Whether a name matches a glob, whatever the case; no glob matches all."""
    import fnmatch

    return pattern is None or fnmatch.fnmatch(value.lower(), pattern.lower())


def _usd(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else "-"
