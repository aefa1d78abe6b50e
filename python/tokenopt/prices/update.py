"""`tokenopt prices update`: fetch, parse and store, one source after the other. A source that fails changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from tokenopt.errors import PluginError, PriceSourceError, StoreError, TokenoptError
from tokenopt.plugins import guarded
from tokenopt.prices.fetch import HttpFetcher
from tokenopt.prices.sources import Unchanged, reasons, usable
from tokenopt.prices.store import (
    Change,
    NewSnapshot,
    Snapshot,
    cached_pages,
    confirm_snapshot,
    last_snapshots,
    write_snapshots,
)
from tokenopt.records import PricePage, PriceSource

Status = Literal["updated", "unchanged", "failed", "left out"]

FETCH_LIMIT_S = 3600.0
PARSE_LIMIT_S = 600.0
"""A source that takes longer hangs; a bulk list of every region is some gigabytes."""
LEAST_SHARE = 0.2
"""A source that suddenly offers less than this share of what it did has changed its form, not its prices."""
LEAST_OFFERS = 20
"""Below so many stored offers the share says nothing."""


@dataclass(slots=True)
class SourceResult:
    """What became of one source.

    Attributes:
        name: Source name.
        status: `left out` means that it needs credentials and was not named.
        change: What changed in the store, None where nothing was written.
        skipped: Rows left out, by reason.
        message: Why it failed or was left out.
        requests: HTTP requests sent.
        retries: Requests sent again.
        not_modified: Answers that the server said have not changed.
    """

    name: str
    status: Status
    change: Change | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    message: str = ""
    requests: int = 0
    retries: int = 0
    not_modified: int = 0


def choose_sources(
    sources: Mapping[str, PriceSource], names: Sequence[str]
) -> tuple[list[PriceSource], list[SourceResult]]:
    """The sources to update.

    Args:
        sources: All there are, by name.
        names: Those wanted; none = every one that can be fetched with the credentials that are there.

    Returns:
        Sources, and a result for each that is left out for want of credentials or cannot say whether it has them.

    Raises:
        PriceSourceError: A name is unknown, or of a format that is only read from files.
    """
    live = {name: source for name, source in sources.items() if source.fetch is not None}
    if names:
        unknown = [name for name in names if name not in live]
        if unknown:
            raise PriceSourceError(
                f"no live price source {unknown[0]!r}" + (", it is read from files" if unknown[0] in sources else ""),
                [f"live sources: {', '.join(sorted(live)) or 'none installed'}"],
            )
        return [live[name] for name in dict.fromkeys(names)], []
    chosen: list[PriceSource] = []
    left_out: list[SourceResult] = []
    for name in sorted(live):
        source = live[name]
        try:
            ready = is_ready(source)
        except PluginError as error:
            left_out.append(SourceResult(name, "failed", message=error.message))
            continue
        if ready:
            chosen.append(source)
        else:
            left_out.append(SourceResult(name, "left out", message=f"needs {source.needs}"))
    return chosen, left_out


def is_ready(source: PriceSource) -> bool:
    """Whether a source has the credentials it needs.

    Raises:
        PluginError: Its plugin cannot say.
    """
    return source.is_ready is None or bool(guarded(source.is_ready, f"is_ready of {source.name}"))


def update_source(
    source: PriceSource,
    *,
    rates: Mapping[str, float] | None = None,
    path: Path | None = None,
    full: bool = False,
    accept_fewer: bool = False,
    on_page: Callable[[PricePage], None] | None = None,
    fetcher: Callable[..., HttpFetcher] = HttpFetcher,
) -> SourceResult:
    """Fetches one source and stores it.

    Args:
        source: A source with a `fetch`.
        rates: USD per unit of a currency, from the user.
        path: Another store than the user's.
        full: Ask as if nothing were stored yet.
        accept_fewer: Store even when most of what it offered before is missing.
        on_page: Called with each page.
        fetcher: Makes the HTTP client; tests replace it.

    Returns:
        What became of it; a source that fails is told, never raised, and leaves the store as it was.

    Raises:
        StoreError: The store itself cannot be used.
    """
    if source.fetch is None:
        return SourceResult(source.name, "failed", message="is read from files only")
    last = last_snapshots(path).get(source.name)
    since = datetime.fromisoformat(last.fetched_at) if last and not full else None
    result = SourceResult(source.name, "failed")
    with fetcher(cached={} if full else cached_pages(source.name, path), on_page=on_page) as client:
        try:
            pages = _fetch(source, client, since)
            parsed = guarded(lambda: usable(source.parse(pages, rates or {})), f"parsing {source.name}", PARSE_LIMIT_S)
            result.skipped = parsed.skipped
            _refuse_drift(source.name, len(parsed.offers), last, parsed.skipped, accept_fewer)
            (result.change,) = write_snapshots(
                [NewSnapshot(source.name, parsed.offers, parsed.skipped, client.to_cache)], path=path
            )
            is_same = not result.change.new and not result.change.gone
            result.status = "unchanged" if is_same else "updated"
        except Unchanged:
            result.change = confirm_snapshot(source.name, path=path)
            result.status = "unchanged"
        except StoreError:
            raise
        except TokenoptError as error:
            result.message = error.message
        finally:
            result.requests = client.statistics.requests
            result.retries = client.statistics.retries
            result.not_modified = client.statistics.not_modified
    return result


def _fetch(source: PriceSource, client: HttpFetcher, since: datetime | None) -> list[PricePage]:
    """All pages of a source.

    Raises:
        Unchanged: The source says that nothing is new.
        TokenoptError: It cannot be fetched.
    """
    unchanged = False

    def work() -> list[PricePage]:
        nonlocal unchanged
        try:
            return list(source.fetch(client, since)) if source.fetch is not None else []
        except Unchanged:
            unchanged = True
            return []

    pages: list[PricePage] = guarded(work, f"fetching {source.name}", FETCH_LIMIT_S)
    if unchanged:
        raise Unchanged
    return pages


def _refuse_drift(
    name: str, offers: int, last: Snapshot | None, skipped: Mapping[str, int], accept_fewer: bool
) -> None:
    if not offers:
        raise PriceSourceError(
            f"{name} answered without a single usable offer ({reasons(skipped) or 'no rows at all'})"
        )
    if last and last.offers >= LEAST_OFFERS and offers < LEAST_SHARE * last.offers and not accept_fewer:
        raise PriceSourceError(
            f"{name} has {offers:,} usable offers, {last.offers:,} the last time: its answer may have changed form "
            f"({reasons(skipped)}); the old prices are kept, --accept-fewer takes the new ones"
        )
