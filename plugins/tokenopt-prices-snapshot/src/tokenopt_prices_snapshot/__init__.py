"""A dated snapshot of accelerator prices."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenopt.hookspecs import hookimpl
from tokenopt.records import Confidence, Offer, Source, Term

TOKENOPT_HOOK_API_VERSION = 1

_PRICES = Path(__file__).parent / "prices.csv"

_TERMS: Mapping[str, Term] = {
    "on-demand": "on-demand",
    "spot": "spot",
    "rental": "rental",
    "reserved-1y": "reserved-1y",
    "reserved-3y": "reserved-3y",
    "tco-hyperscaler": "owned",
    "tco-neocloud": "owned",
}
"""`list-capex` rows are purchase prices, not offers, and have no term here."""

_MARKETPLACES = {"vast.ai", "akash"}

_SUSPECT = re.compile(
    r"SUSPECT|PLACEHOLDER|ESTIMATE:|fixture value|'starting at'|third-party aggregator|search excerpt|superseded",
    re.IGNORECASE,
)
"""What the notes say of figures that nobody can be held to."""

_SINGLE_CHIP_SHAPE = re.compile(r"(^|[_\-. ])(1x|1gpu|x1)([_\-. ]|$)|\.4xlarge$|_1x_|-1g$", re.IGNORECASE)
"""Instance names that promise one chip and no fabric to a second."""

_NODE_CHIPS = 8
_TRAY_CHIPS = 4
_TRAY_PARTS = ("gb200", "gb300", "vera-rubin")
_SLICE_CHIPS = {"tpu-v3": 1024, "tpu-v4": 4096, "tpu-v5e": 256, "tpu-v5p": 8960, "tpu-v6e": 256, "tpu-v7": 9216}
"""A TPU is sold as a slice of a pod, up to the whole pod, and its chips share the pod's fabric."""


@hookimpl
def tokenopt_prices() -> Iterable[Offer]:
    """Every hourly price of the snapshot; doubtful ones carry the reason in `suspect`."""
    with _PRICES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            offer = _offer(row)
            if offer is not None:
                yield offer


def _offer(row: Mapping[str, str]) -> Offer | None:
    term = _TERMS.get(row["term"])
    if term is None or not row["usd_per_chip_hr"]:
        return None
    notes = row["notes"]
    provider = row["provider"]
    if provider in _MARKETPLACES or "marketplace" in notes:
        term = "marketplace"
    chips = int(row["chips"] or 1)
    instance_type = row["instance_type"]
    whole_node = _SLICE_CHIPS.get(row["key"], _TRAY_CHIPS if row["key"].startswith(_TRAY_PARTS) else _NODE_CHIPS)
    fabric_chips = None
    if "sold whole" in notes:
        # The list price is per chip but the shape is sold whole: its name ends in the number of chips.
        chips = int(instance_type.rsplit(".", 1)[-1])
    elif provider == "semianalysis-tco":
        # Ownership and contract cost per chip: whole nodes are bought.
        chips = whole_node
    elif chips == 1 and not _SINGLE_CHIP_SHAPE.search(instance_type):
        # A per-chip price list: chips of one node are sold in any number.
        fabric_chips = whole_node
    doubt = _SUSPECT.search(notes)
    confidence: Confidence = "third-party"
    return Offer(
        accelerator=row["key"],
        provider=provider,
        instance_type=f"{instance_type} ({row['term'][4:]})" if term == "owned" else instance_type,
        region=row["region"],
        term=term,
        usd_per_chip_hr=float(row["usd_per_chip_hr"]),
        chips_per_instance=chips,
        as_of=row["as_of"],
        source=Source(row["source_ref"], confidence, as_of=row["as_of"], note=notes),
        suspect=notes if doubt else "",
        fabric_chips=fabric_chips,
    )
