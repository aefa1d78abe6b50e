"""What changed between two moments of the store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tokenopt.prices.store import read_offers
from tokenopt.records import Offer

Identity = tuple[str, str, str, str, str, int]


@dataclass(frozen=True, slots=True)
class PriceChange:
    """One thing whose price changed, came or went.

    Attributes:
        offer: The newest of the two.
        was_usd_per_chip_hr: Price before, None where there was none.
        is_usd_per_chip_hr: Price after, None where there is none.
    """

    offer: Offer
    was_usd_per_chip_hr: float | None
    is_usd_per_chip_hr: float | None

    def relative(self) -> float | None:
        """Change as a share of the price before, None where one of the two is missing."""
        if not self.was_usd_per_chip_hr or self.is_usd_per_chip_hr is None:
            return None
        return self.is_usd_per_chip_hr / self.was_usd_per_chip_hr - 1


def price_changes(since: date, until: date | None = None, path: Path | None = None) -> list[PriceChange]:
    """Offers that differ between the end of two days.

    Args:
        since: Day before.
        until: Day after; now by default.
        path: Another store than the user's.

    Returns:
        Changes, the largest relative ones first, then what came and what went.

    Raises:
        StoreError: The store cannot be read.
    """
    before = _by_identity(read_offers(as_of=since, path=path))
    after = _by_identity(read_offers(as_of=until, path=path))
    changes: list[PriceChange] = []
    for identity in before.keys() | after.keys():
        old, new = before.get(identity), after.get(identity)
        newest = new or old
        was = old.usd_per_chip_hr if old else None
        now = new.usd_per_chip_hr if new else None
        if newest is not None and was != now:
            changes.append(PriceChange(newest, was, now))

    def order(change: PriceChange) -> tuple[float, Identity]:
        relative = change.relative()
        return (-abs(relative) if relative is not None else 1.0, _identity(change.offer))

    return sorted(changes, key=order)


def _by_identity(offers: Iterable[Offer]) -> dict[Identity, Offer]:
    """The cheapest offer for each thing."""
    best: dict[Identity, Offer] = {}
    for offer in offers:
        known = best.get(_identity(offer))
        if known is None or offer.usd_per_chip_hr < known.usd_per_chip_hr:
            best[_identity(offer)] = offer
    return best


def _identity(offer: Offer) -> Identity:
    return (
        offer.accelerator, offer.provider, offer.instance_type, offer.region, offer.term, offer.minimum_instances,
    )  # fmt: skip
