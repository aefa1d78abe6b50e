"""One price for one thing: of what several sources say of the same offer, the newest."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from tokenopt.records import Offer


def newest_offers(offers: Iterable[Offer]) -> list[Offer]:
    """Offers without those that a newer one replaces.

    Two offers are the same thing when accelerator, provider, instance type, region, term, chips and least quantity agree,
    and both are doubtful or neither: a doubtful price never takes the place of one that can be ranked. A full date is
    newer than a vague one; on the same day the first stays.

    Args:
        offers: Of all sources.

    Returns:
        One offer for each thing, in the order in which the things first came.
    """
    best: dict[tuple[object, ...], tuple[tuple[bool, str], Offer]] = {}
    for offer in offers:
        identity = (
            offer.accelerator, offer.provider.lower(), offer.instance_type.lower(), offer.region.lower(), offer.term,
            offer.chips_per_instance, offer.minimum_instances, bool(offer.suspect),
        )  # fmt: skip
        rank = _day(offer.as_of)
        known = best.get(identity)
        if known is None or rank > known[0]:
            best[identity] = (rank, offer)
    return [offer for _, offer in best.values()]


def _day(as_of: str) -> tuple[bool, str]:
    try:
        date.fromisoformat(as_of)
    except ValueError:
        return False, ""
    return True, as_of
