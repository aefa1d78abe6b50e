"""Measured rows as the core predicts them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.engines import quarter_of
from tokenopt.catalog.models import precision_label, weight_formats
from tokenopt.catalog.sized import architecture_of
from tokenopt.errors import SpecError
from tokenopt.measured.serving_data import ServingRow
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import DEFAULT_PUE, core_accelerator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_TOKENS = 8192.0
"""Prefill chunk of the measured servers; the recipes of all three engines use it or more."""

Level = tuple[str, str, str, str]
"""Engine, accelerator family, weight precision and release: what deviations of a calibration may depend on."""


def level_names(level: Level) -> dict[str, str]:
    """Name of a row's level at each level of a calibration."""
    engine, family, precision, release = level
    return {
        "engine": engine,
        "family": family,
        "format": precision,
        "stack": f"{engine} {family}",
        "kernel": f"{engine} {family} {precision}",
        "release": f"{engine} {release}",
    }


@dataclass(frozen=True, slots=True)
class CompiledRows:
    """Rows compiled into the core.

    Attributes:
        rows: The rows that can be predicted.
        refused: Reason by id of the others.
        levels: Distinct engine, family and precision of the rows; one parameter set each.
        sets: Index of each row's level.
    """

    rows: list[ServingRow]
    refused: dict[str, str]
    levels: list[Level]
    sets: list[int]
    _core: Any

    def predict(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows x (tpot_s, ttft_s, output_tps_per_chip, decode_step_s) for one parameter set a level; NaN = no fit."""
        predicted: NDArray[np.float64] = self._core.predict(parameters)
        return predicted

    def predict_each(self, sets: NDArray[np.float64]) -> NDArray[np.float64]:
        """As :meth:`predict`, for one parameter set a row."""
        import numpy as np

        indices = np.arange(len(self.rows))
        return self.predict_jobs(indices, indices, sets)

    def predict_jobs(
        self, rows: NDArray[np.int64], sets: NDArray[np.int64], parameters: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """As :meth:`predict`, for row `rows[i]` with set `sets[i]` of `parameters`."""
        predicted: NDArray[np.float64] = self._core.predict_jobs(rows, sets, parameters)
        return predicted


def compile_rows(rows: Sequence[ServingRow], registry: PluginRegistry) -> CompiledRows:
    """Compiles rows into the core; what cannot be predicted gets a reason.

    Args:
        rows: Measured rows.
        registry: Plugins that describe the accelerators.

    Returns:
        The compiled rows.
    """
    from tokenopt import _core

    kept: list[ServingRow] = []
    refused: dict[str, str] = {}
    models: dict[str, Any] = {}
    architectures: dict[str, tuple[dict[str, Any], str]] = {}
    chips: dict[str, Any] = {}
    levels: dict[Level, int] = {}
    sets: list[int] = []
    entries = []
    for row in rows:
        chip = registry.accelerators.get(row.accelerator)
        if chip is None:
            refused[row.id] = f"accelerator {row.accelerator} is not in the catalogue"
            continue
        try:
            architecture, stand_in = architectures.get(row.model) or architecture_of(row.model)
            label = precision_label(architecture, row.weight_precision)
            formats = weight_formats(architecture, row.weight_precision)
        except SpecError as error:
            refused[row.id] = error.message
            continue
        architectures[row.model] = architecture, stand_in
        models.setdefault(row.model, architecture)
        chips.setdefault(row.accelerator, core_accelerator(chip, DEFAULT_PUE))
        level = (row.engine, chip.family, label, release_of(row))
        sets.append(levels.setdefault(level, len(levels)))
        entries.append(
            {
                "model": list(models).index(row.model),
                "accelerator": list(chips).index(row.accelerator),
                "weights": formats,
                "kv_precision": kv_format(row),
                "set": sets[-1],
                "workers": float(row.workers),
                "prefill_pool": _prefill_pool(row),
                "layout": {"tp": row.tp, "pp": row.pp, "ep": row.ep, "attn_dp": row.attn_dp},
                "workload": {"isl": row.isl, "osl": row.osl, "prefix_hit": 0.0},
                "concurrency": row.concurrency,
                "chunk_tokens": CHUNK_TOKENS,
                "in_waves": row.is_in_waves,
            }
        )
        kept.append(replace(row, unscored=row.unscored or stand_in))
    problem = {"models": list(models.values()), "accelerators": list(chips.values()), "rows": entries}
    return CompiledRows(kept, refused, list(levels), sets, _core.ServingRows(json.dumps(problem)))


def _prefill_pool(row: ServingRow) -> dict[str, Any] | None:
    pool = row.prefill
    if pool is None:
        return None
    layout = {"tp": pool.tp, "pp": pool.pp, "ep": pool.ep, "attn_dp": pool.attn_dp}
    return {"layout": layout, "workers": float(pool.workers)}


def kv_format(row: ServingRow) -> str:
    """KV-cache format of a row, which no source prints: 8 bits for quantised weights where the recipes do so."""
    is_quantised = row.weight_precision not in ("bf16", "fp16")
    return "fp8" if is_quantised and (row.source == "InferenceX" or row.engine == "trtllm") else "bf16"


VERSION_QUARTERS = {
    ("trtllm", "1.0.0"): "2025-Q3", ("sglang", "0.5.1"): "2025-Q3", ("sglang", "0.5.6"): "2025-Q4",
    ("sglang", "0.5.8"): "2026-Q1", ("vllm", "0.12.0"): "2025-Q4",
}  # fmt: skip
"""Quarter in which a version came out, for rows without a date."""


def release_of(row: ServingRow) -> str:
    """Quarter of the engine's release that a row was measured with; empty where it is not known."""
    if row.date:
        return quarter_of(row.date)
    for (engine, version), quarter in VERSION_QUARTERS.items():
        if row.engine == engine and row.version.startswith(version):
            return quarter
    return ""
