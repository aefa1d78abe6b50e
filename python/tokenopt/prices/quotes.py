"""The user's own offers: `prices.toml`."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

from tokenopt.errors import SpecError
from tokenopt.prices.currency import BASE, to_usd
from tokenopt.records import Offer, Source, Term

FILE_VARIABLE = "TOKENOPT_PRICES_FILE"
"""Environment variable that names the file; otherwise `prices.toml` in the platform's configuration directory."""

HOURS_PER_YEAR = 8760
_TERMS = get_args(Term)
_PRICES = ("usd_per_chip_hr", "usd_per_instance_hr", "per_chip_hr", "per_instance_hr")
_TIER_KEYS = frozenset({"minimum_chips", "minimum_instances", *_PRICES})
_OFFER_KEYS = frozenset(
    {
        "accelerator", "provider", "instance_type", "region", "regions", "term", "commitment_years", "currency", "chips",
        "minimum_chips", "minimum_instances", "fabric_chips", "upfront", "upfront_usd", "egress_usd_per_gb",
        "storage_usd_per_gb_month", "as_of", "note", "tiers", *_PRICES,
    }
)  # fmt: skip


def default_file() -> Path:
    """Where the user's own prices are looked for."""
    chosen = os.environ.get(FILE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("tokenopt", appauthor=False)) / "prices.toml"


def load_user_prices(path: Path) -> list[Offer]:
    """Offers in a `prices.toml`.

    Args:
        path: File with `[[offer]]` tables: `accelerator`, a price (`usd_per_chip_hr`, or `usd_per_instance_hr` with `chips`;
            in another `currency` the same without `usd_`), and what is known of `provider`, `instance_type`, `regions`,
            `term` or `commitment_years`, `minimum_chips`, `upfront`, `tiers`, `as_of`. `[rates]` holds USD per unit of each
            currency used.

    Returns:
        One offer for each region and quantity tier. An upfront payment is spread over the commitment.

    Raises:
        SpecError: The file cannot be read, or a field is missing, unknown or unusable; names the offer and the field.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"prices file {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"prices file {path} is not TOML: {error}") from error
    unknown = sorted(set(document) - {"offer", "rates"})
    if unknown:
        raise SpecError(f"{path}: unknown table {unknown[0]!r}, expected [[offer]] and [rates]")
    rates = _rates(document.get("rates", {}), path)
    tables = document.get("offer", [])
    if not isinstance(tables, list):
        raise SpecError(f"{path}: offer must be written as [[offer]] tables")
    offers: list[Offer] = []
    for index, table in enumerate(tables, start=1):
        offers.extend(_Quote(table, f"{path.name}, offer {index}", rates, str(path)).offers())
    return offers


def _rates(table: Any, path: Path) -> dict[str, float]:
    if not isinstance(table, Mapping):
        raise SpecError(f"{path}: rates must be a table of USD per unit, for instance EUR = 1.08")
    rates: dict[str, float] = {}
    for code, rate in table.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate <= 0:
            raise SpecError(f"{path}: rate {code} is {rate!r}, expected USD per unit, a number above 0")
        rates[code.upper()] = float(rate)
    return rates


class _Quote:
    """One `[[offer]]` table."""

    def __init__(self, table: Any, where: str, rates: Mapping[str, float], file: str) -> None:
        self._where = where
        self._rates = rates
        self._file = file
        if not isinstance(table, Mapping):
            raise SpecError(f"{where}: must be a table")
        self._table: Mapping[str, Any] = table
        self._known(table, _OFFER_KEYS)

    def offers(self) -> list[Offer]:
        """The offers of the table, one for each region and tier."""
        table = self._table
        accelerator = self._text("accelerator").lower()
        if not accelerator:
            raise SpecError(f"{self._where}: accelerator is missing, expected a key of `tokenopt hardware`")
        chips = self._count(table, "chips", 1)
        term, years = self._commitment()
        upfront = self._upfront(years)
        offers: list[Offer] = []
        for tier in self._tiers():
            per_chip = self._price(tier, chips)
            if years:
                per_chip += upfront / chips / (years * HOURS_PER_YEAR)
            for region in self._regions():
                offers.append(
                    Offer(
                        accelerator=accelerator,
                        provider=self._text("provider") or "your quote",
                        instance_type=self._text("instance_type"),
                        region=region,
                        term=term,
                        usd_per_chip_hr=per_chip,
                        chips_per_instance=chips,
                        as_of=self._as_of(),
                        source=Source(self._file, "assumed", as_of=self._as_of(), note=self._text("note")),
                        minimum_instances=self._minimum(tier, chips),
                        fabric_chips=self._count(table, "fabric_chips", 0) or None,
                        upfront_usd_per_chip=upfront / chips,
                        egress_usd_per_gb=self._amount(table, "egress_usd_per_gb"),
                        storage_usd_per_gb_month=self._amount(table, "storage_usd_per_gb_month"),
                    )
                )
        return offers

    def _known(self, table: Mapping[str, Any], legal: frozenset[str]) -> None:
        unknown = sorted(set(table) - legal)
        if unknown:
            raise SpecError(f"{self._where}: unknown field {unknown[0]!r}", [f"fields: {', '.join(sorted(legal))}"])

    def _tiers(self) -> Sequence[Mapping[str, Any]]:
        tiers = self._table.get("tiers")
        if tiers is None:
            return [self._table]
        if not isinstance(tiers, list) or not tiers or not all(isinstance(tier, Mapping) for tier in tiers):
            raise SpecError(
                f"{self._where}: tiers must be a list of tables such as {{minimum_chips = 64, usd_per_chip_hr = 2}}"
            )
        for tier in tiers:
            self._known(tier, _TIER_KEYS)
        has_base = any(name in self._table for name in _PRICES)
        return [self._table, *tiers] if has_base else tiers

    def _price(self, tier: Mapping[str, Any], chips: int) -> float:
        given = [name for name in _PRICES if name in tier]
        if len(given) != 1:
            raise SpecError(
                f"{self._where}: {' and '.join(given) or 'no price'} given, expected exactly one of {', '.join(_PRICES)}"
            )
        (name,) = given
        amount = self._amount(tier, name)
        if not amount:
            raise SpecError(f"{self._where}: {name} is {tier[name]!r}, expected a number above 0")
        currency = self._currency()
        if name.startswith("usd"):
            if currency != BASE:
                raise SpecError(f"{self._where}: {name} is in USD but currency is {currency}: write {name[4:]}")
            usd: float | None = amount
        else:
            usd = self._usd(amount, currency)
        if usd is None:
            raise SpecError(f"{self._where}: no rate for {currency}: add it to [rates] as USD per {currency}")
        if name.endswith("instance_hr"):
            if "chips" not in self._table:
                raise SpecError(f"{self._where}: {name} needs chips, the accelerators of one instance")
            return usd / chips
        return usd

    def _usd(self, amount: float, currency: str) -> float | None:
        return to_usd(amount, currency, self._rates)

    def _currency(self) -> str:
        return (self._text("currency") or BASE).upper()

    def _upfront(self, years: float) -> float:
        """USD per instance paid before the first hour."""
        given = [name for name in ("upfront", "upfront_usd") if name in self._table]
        if not given:
            return 0.0
        if len(given) > 1:
            raise SpecError(f"{self._where}: upfront and upfront_usd given, expected one")
        if not years:
            raise SpecError(f"{self._where}: {given[0]} needs commitment_years, over which it is spread")
        amount = self._amount(self._table, given[0]) or 0.0
        usd = amount if given[0] == "upfront_usd" else self._usd(amount, self._currency())
        if usd is None:
            raise SpecError(
                f"{self._where}: no rate for {self._currency()}: add it to [rates] as USD per {self._currency()}"
            )
        return usd

    def _commitment(self) -> tuple[Term, float]:
        years = self._amount(self._table, "commitment_years") or 0.0
        term = self._text("term")
        if term and term not in _TERMS:
            raise SpecError(f"{self._where}: term is {term!r}, expected one of {', '.join(_TERMS)}")
        implied: dict[str, float] = {"reserved-1y": 1.0, "reserved-3y": 3.0}
        if term in implied and years not in (0.0, implied[term]):
            raise SpecError(f"{self._where}: term is {term} but commitment_years is {years:g}")
        if not term:
            term = {1.0: "reserved-1y", 3.0: "reserved-3y"}.get(years, "rental")
        return term, years or implied.get(term, 0.0)  # type: ignore[return-value]

    def _regions(self) -> Sequence[str]:
        if "region" in self._table and "regions" in self._table:
            raise SpecError(f"{self._where}: region and regions given, expected one")
        regions = self._table.get("regions", [self._text("region")])
        if not isinstance(regions, list) or not regions or not all(isinstance(region, str) for region in regions):
            raise SpecError(f"{self._where}: regions is {regions!r}, expected a list of names")
        return list(dict.fromkeys(regions))

    def _minimum(self, tier: Mapping[str, Any], chips: int) -> int:
        if "minimum_chips" in tier and "minimum_instances" in tier:
            raise SpecError(f"{self._where}: minimum_chips and minimum_instances given, expected one")
        if "minimum_chips" in tier:
            return math.ceil(self._count(tier, "minimum_chips", 1) / chips)
        return self._count(tier, "minimum_instances", 1)

    def _as_of(self) -> str:
        value = self._table.get("as_of", "undated")
        if isinstance(value, date):
            return value.isoformat()[:10]
        if not isinstance(value, str):
            raise SpecError(f"{self._where}: as_of is {value!r}, expected a date such as 2026-11-24")
        return value

    def _text(self, name: str) -> str:
        value = self._table.get(name, "")
        if not isinstance(value, str):
            raise SpecError(f"{self._where}: {name} is {value!r}, expected text")
        return value.strip()

    def _amount(self, table: Mapping[str, Any], name: str) -> float | None:
        value = table.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise SpecError(f"{self._where}: {name} is {value!r}, expected a finite number of at least 0")
        return float(value)

    def _count(self, table: Mapping[str, Any], name: str, otherwise: int) -> int:
        value = table.get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int) or value < min(1, otherwise) or value >= 2**31:
            raise SpecError(f"{self._where}: {name} is {value!r}, expected a whole number of at least 1")
        return value
