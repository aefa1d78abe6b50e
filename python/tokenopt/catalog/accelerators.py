"""Accelerator data files: TOML in data-sheet units, turned into records in SI units."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from tokenopt.errors import PluginError
from tokenopt.records import PEAK_FORMATS, Accelerator, Confidence, Source, Status, Topology
from tokenopt.units import GB, GBIT_BYTES, GIB, TB, TERA

_KNOWN_FIELDS = {
    "key", "vendor", "name", "family", "launch_year", "hbm_usable_gib", "hbm_gb", "hbm_tb_per_s", "peak_tflops", "matmul_tflops",
    "scale_up", "scale_out_gbit_per_s", "chips_per_node", "tdp_w", "system_w", "capex_usd", "status", "notes", "sources",
}  # fmt: skip


def load_accelerators_toml(source: Path | str) -> list[Accelerator]:
    """Reads accelerators from TOML in data-sheet units.

    Args:
        source: A file, or the TOML text itself.

    Returns:
        Records in SI units, in the order of the file.

    Raises:
        PluginError: Names the file, the accelerator and the field that cannot be used.
    """
    where = source.name if isinstance(source, Path) else "accelerators"
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PluginError(f"{where} cannot be read as TOML: {error}") from error
    entries = data.get("accelerator")
    if not isinstance(entries, list) or not entries:
        raise PluginError(f"{where} has no [[accelerator]] table")
    return [_accelerator(where, entry) for entry in entries]


def _accelerator(where: str, entry: Mapping[str, Any]) -> Accelerator:
    reader = _Reader(f"{where}: {entry.get('key', 'accelerator without key')}", entry)
    unknown = sorted(set(entry) - _KNOWN_FIELDS)
    if unknown:
        raise PluginError(f"{reader.where}: unknown field {unknown[0]}, known are {', '.join(sorted(_KNOWN_FIELDS))}")
    scale_up = _Reader(f"{reader.where} scale_up", reader.table("scale_up"))
    peaks = _Reader(f"{reader.where} peak_tflops", reader.table("peak_tflops"))
    if "hbm_usable_gib" in entry:
        hbm_bytes = reader.positive("hbm_usable_gib") * GIB
    else:
        hbm_bytes = reader.positive("hbm_gb") * GB
    unknown_formats = sorted(set(peaks.entry) - set(PEAK_FORMATS))
    if unknown_formats:
        raise PluginError(f"{peaks.where}: unknown format {unknown_formats[0]}, known are {', '.join(PEAK_FORMATS)}")
    topology = scale_up.choice("topology", get_args(Topology))
    return Accelerator(
        key=reader.text("key"),
        vendor=reader.text("vendor"),
        name=reader.text("name"),
        family=reader.text("family"),
        launch_year=int(reader.positive("launch_year")),
        hbm_bytes=hbm_bytes,
        hbm_bytes_per_s=reader.positive("hbm_tb_per_s") * TB,
        peak_flops={name: peaks.positive(name) * TERA for name in peaks.entry},
        scale_up_bytes_per_s=scale_up.number("gb_per_s", at_least=0.0) * GB,
        scale_up_domain_chips=int(scale_up.positive("domain_chips")),
        scale_up_topology=topology,  # type: ignore[arg-type]
        scale_out_bytes_per_s=reader.number("scale_out_gbit_per_s", at_least=0.0) * GBIT_BYTES,
        chips_per_node=int(reader.positive("chips_per_node")),
        tdp_w=reader.positive("tdp_w"),
        system_w=reader.positive("system_w") if "system_w" in entry else None,
        capex_usd=reader.positive("capex_usd") if "capex_usd" in entry else None,
        matmul_flops=reader.positive("matmul_tflops") * TERA if "matmul_tflops" in entry else None,
        status=reader.choice("status", get_args(Status), default="shipping"),  # type: ignore[arg-type]
        notes=str(entry.get("notes", "")),
        sources=_sources(reader),
    )


def _sources(reader: _Reader) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for name, value in reader.table("sources").items():
        source = _Reader(f"{reader.where} source of {name}", value)
        sources[name] = Source(
            reference=source.text("reference"),
            confidence=source.choice("confidence", get_args(Confidence)),  # type: ignore[arg-type]
            as_of=str(value.get("as_of", "")),
            note=str(value.get("note", "")),
        )
    if not sources:
        raise PluginError(f"{reader.where}: no source; a figure without a source is refused")
    return sources


class _Reader:
    """Typed access to one TOML table, with errors that say where."""

    def __init__(self, where: str, entry: Any) -> None:
        if not isinstance(entry, Mapping):
            raise PluginError(f"{where} is not a table")
        self.where = where
        self.entry = entry

    def table(self, name: str) -> Mapping[str, Any]:
        value = self.entry.get(name)
        if not isinstance(value, Mapping):
            raise PluginError(f"{self.where}: {name} is missing or not a table")
        return value

    def text(self, name: str) -> str:
        value = self.entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise PluginError(f"{self.where}: {name} is missing or not a text")
        return value

    def choice(self, name: str, legal: tuple[str, ...], default: str | None = None) -> str:
        value = self.entry.get(name, default)
        if value not in legal:
            raise PluginError(f"{self.where}: {name} is {value!r}, expected one of {', '.join(legal)}")
        return str(value)

    def number(self, name: str, at_least: float) -> float:
        value: Any = self.entry.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < at_least:
            raise PluginError(f"{self.where}: {name} is {value!r}, expected a finite number of at least {at_least:g}")
        return float(value)

    def positive(self, name: str) -> float:
        value = self.number(name, at_least=0.0)
        if value == 0.0:
            raise PluginError(f"{self.where}: {name} is 0, expected a number above 0")
        return value
