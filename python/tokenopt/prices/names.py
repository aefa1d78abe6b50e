"""What providers call an accelerator, and which catalogue key that is.

Part of what plugins may import. The tables are `data/gpu_families.csv` (how a family is written) and
`data/gpu_variants.csv` (which key a family, form and memory size mean).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DATA = Path(__file__).parent / "data"
_VENDOR_WORDS = re.compile(
    r"\b(nvidia|amd|intel|habana|google|cloud|tesla|geforce|instinct|radeon|tensor core|graphics|hgx|oam)\b",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"(?<![a-z0-9])(\d+)[ -]?gi?b?(?![a-z0-9])", re.IGNORECASE)
_TPU = re.compile(r"(?:tpu[- ]?)?(v\d+(?:litepod|lite|e|p|x)?|7x)(?:pod)?-(\d+)", re.IGNORECASE)
_TPU_KEYS = {
    "v3": ("tpu-v3", 2), "v4": ("tpu-v4", 2), "v5p": ("tpu-v5p", 2),
    "v5litepod": ("tpu-v5e", 1), "v5lite": ("tpu-v5e", 1), "v5e": ("tpu-v5e", 1), "v6e": ("tpu-v6e", 1),
    "v7": ("tpu-v7", 1), "v7x": ("tpu-v7", 1), "7x": ("tpu-v7", 1),
}  # fmt: skip
"""Key, and units that the slice's name counts per chip: v3, v4 and v5p names count TensorCores, two a chip."""

_MEMORY_TOLERANCE = 0.12
"""Providers write 96 GB, 94 GB or 95,830 MiB for the same card; the variants of one family differ by more."""


@dataclass(frozen=True, slots=True)
class Chip:
    """What a name means.

    Attributes:
        key: Accelerator key.
        doubt: What had to be assumed, empty = nothing.
    """

    key: str
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class _Variant:
    form: str
    memory_gb: float
    key: str
    is_default: bool
    is_plain: bool
    """Whether the bare family name means this variant by common usage, so that nothing is assumed."""


def chip_by_name(name: str, memory_gb: float | None = None, hint: str = "") -> Chip | None:
    """The accelerator that a provider's name means.

    Args:
        name: For instance `NVIDIA A100-SXM4-80GB`, `H100NVL`, `MI300X`.
        memory_gb: Memory of one accelerator, GB or GiB, where the provider gives it apart.
        hint: Further text that may name the form (SXM, PCIe, NVL), for instance the instance type.

    Returns:
        None for a name that no table knows.
    """
    plain = _VENDOR_WORDS.sub(" ", name.replace("_", " "))
    family, rest = _family(plain)
    if family is None:
        return None
    size_in_name = _MEMORY.search(plain)
    size = float(size_in_name.group(1)) if size_in_name else memory_gb
    variants = _variants()[family]
    form = _form(rest) or _form(hint) or ("sxm" if "hgx" in name.lower() else "")
    candidates = [v for v in variants if not form or v.form in ("", form)] or list(variants)
    if size:
        near = [v for v in candidates if abs(v.memory_gb - size) <= _MEMORY_TOLERANCE * v.memory_gb]
        if not near:
            # The stated form and size contradict each other or the table: say nothing rather than guess.
            return None
        candidates = near
    keys = {v.key for v in candidates}
    if len(keys) == 1:
        return Chip(candidates[0].key)
    default = next((v for v in candidates if v.is_default), candidates[0])
    if default.is_plain:
        return Chip(default.key)
    return Chip(default.key, f"{name!r} does not say which of {', '.join(sorted(keys))} it is; taken as {default.key}")


def chip_of_slice(name: str) -> tuple[str, int] | None:
    """Key and chips of a TPU slice by its name, for instance `tpu-v5p-8` (4 chips) or `v6e-8` (8 chips)."""
    match = _TPU.search(name)
    if match is None or match.group(1).lower() not in _TPU_KEYS:
        return None
    key, units_per_chip = _TPU_KEYS[match.group(1).lower()]
    chips = int(match.group(2)) // units_per_chip
    return (key, chips) if chips else None


@cache
def variant_keys() -> frozenset[str]:
    """Every accelerator key of the tables."""
    return frozenset(variant.key for variants in _variants().values() for variant in variants)


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One line of a provider's instance table."""

    pattern: re.Pattern[str]
    accelerator: str
    chips: float
    columns: Mapping[str, str]


class InstanceTable:
    """Which accelerators an instance type holds: a CSV file with `instance_type` (a pattern), `accelerator`, `chips`."""

    def __init__(self, file: Path) -> None:
        with file.open(encoding="utf-8", newline="") as handle:
            self.rows = tuple(
                InstanceRow(
                    re.compile(row["instance_type"], re.IGNORECASE), row["accelerator"], float(row["chips"]), dict(row)
                )
                for row in csv.DictReader(handle)
            )
        self._found: dict[str, InstanceRow | None] = {}

    def __iter__(self) -> Iterator[InstanceRow]:
        return iter(self.rows)

    def find(self, instance_type: str) -> InstanceRow | None:
        """The line whose pattern is the whole of `instance_type`, None where none is."""
        if instance_type not in self._found:
            self._found[instance_type] = next((row for row in self.rows if row.pattern.fullmatch(instance_type)), None)
        return self._found[instance_type]


def _family(name: str) -> tuple[str | None, str]:
    compact = re.sub(r"[^a-z0-9]+", "", name.lower())
    for family, pattern in _families():
        match = pattern.match(compact)
        if match:
            rest = compact[match.end() :]
            # "100" after "a" must not be read as A10 with a rest of "0": a family ends where its digits end.
            if rest[:1].isdigit() and not re.match(r"\d+(gi?b?|mib)", rest):
                continue
            return family, rest
    return None, ""


def _form(text: str) -> str:
    lower = text.lower()
    if "pcie" in lower:
        return "pcie"
    if "sxm" in lower or "hbm3" in lower or "oam" in lower:
        return "sxm"
    if re.search(r"nvl(?!ink)", lower):
        return "nvl"
    return ""


@cache
def _families() -> tuple[tuple[str, re.Pattern[str]], ...]:
    with (_DATA / "gpu_families.csv").open(encoding="utf-8", newline="") as handle:
        rows = [(row["family"], row["pattern"]) for row in csv.DictReader(handle)]
    # The longest pattern first, so that L40S is not an L4.
    return tuple((family, re.compile(pattern)) for family, pattern in sorted(rows, key=lambda row: -len(row[1])))


@cache
def _variants() -> dict[str, tuple[_Variant, ...]]:
    variants: dict[str, list[_Variant]] = {}
    with (_DATA / "gpu_variants.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            variants.setdefault(row["family"], []).append(
                _Variant(
                    row["form"], float(row["memory_gb"]), row["key"], bool(row["default"]), row["default"] == "plain"
                )
            )
    return {family: tuple(rows) for family, rows in variants.items()}
