"""Published measurements as the core predicts them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.models import precision_label, weight_formats
from tokenopt.catalog.sized import architecture_of
from tokenopt.errors import SpecError
from tokenopt.measured.published import PublishedRow, PublishedRows
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import DEFAULT_PUE, core_accelerator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_FIT = "does not fit in memory"


@dataclass(frozen=True, slots=True)
class StackLevel:
    """What deviations of a calibration may depend on: one parameter set each."""

    engine: str
    generation: str
    family: str
    accelerator: str
    precision: str


@dataclass(frozen=True, slots=True)
class CompiledPublished:
    """Published rows compiled into the core.

    Attributes:
        rows: Those that can be predicted.
        refused: Reason by id of the others.
        levels: Distinct stacks, one parameter set each.
        level_of: Index of each row's level.
        vendors: Vendor of each row's accelerator.
    """

    rows: list[PublishedRow]
    refused: dict[str, str]
    levels: list[StackLevel]
    level_of: list[int]
    vendors: list[str]
    _core: Any

    def predict(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows x (tpot_s, ttft_s, output_tps_per_chip, decode_step_s) for one parameter set a level; NaN = no fit."""
        predicted: NDArray[np.float64] = self._core.predict(parameters)
        return predicted

    def predict_jobs(
        self, rows: NDArray[np.int64], sets: NDArray[np.int64], parameters: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The same, row `rows[i]` with parameter set `sets[i]`, one line a job."""
        predicted: NDArray[np.float64] = self._core.predict_jobs(rows, sets, parameters)
        return predicted


def compile_published(published: PublishedRows, registry: PluginRegistry) -> CompiledPublished:
    """Compiles rows into the core; what cannot be predicted gets a reason.

    Args:
        published: Operating points.
        registry: Plugins that describe the accelerators.

    Returns:
        The compiled rows.
    """
    from tokenopt import _core

    kept: list[PublishedRow] = []
    refused = dict(published.refused)
    models: dict[str, Any] = {}
    architectures: dict[str, tuple[dict[str, Any], str]] = {}
    chips: dict[tuple[str, bool], Any] = {}
    levels: dict[StackLevel, int] = {}
    level_of: list[int] = []
    vendors: list[str] = []
    entries = []
    for row in published.rows:
        chip = registry.accelerators[row.accelerator]
        try:
            architecture, stand_in = architectures.get(row.model) or architecture_of(row.model)
            label = precision_label(architecture, row.weight_precision)
            formats = weight_formats(architecture, row.weight_precision)
        except SpecError as error:
            refused[row.id] = error.message
            continue
        architectures[row.model] = architecture, stand_in
        models.setdefault(row.model, architecture)
        described = core_accelerator(chip, DEFAULT_PUE)
        if row.is_weight_only:
            described["peak_flops"] = {"bf16": described["peak_flops"]["bf16"]}
        chips.setdefault((row.accelerator, row.is_weight_only), described)
        level = StackLevel(row.engine, row.generation, chip.family, row.accelerator, label)
        level_of.append(levels.setdefault(level, len(levels)))
        vendors.append(chip.vendor)
        entries.append(_entry(row, list(models).index(row.model), list(chips).index((row.accelerator, row.is_weight_only)),
                              formats, level_of[-1]))  # fmt: skip
        kept.append(replace(row, reason=row.reason or stand_in))
    problem = {"models": list(models.values()), "accelerators": list(chips.values()), "rows": entries}
    return CompiledPublished(kept, refused, list(levels), level_of, vendors, _core.ServingRows(json.dumps(problem)))


def _entry(row: PublishedRow, model: int, accelerator: int, formats: dict[str, str], level: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "model": model,
        "accelerator": accelerator,
        "weights": formats,
        "kv_precision": row.kv_precision,
        "set": level,
        "layout": asdict(row.layout),
        "alternatives": [asdict(layout) for layout in row.alternatives],
        # A pool that only decodes gets its prompts prefilled.
        "workload": {"isl": row.isl, "osl": row.osl, "prefix_hit": float(row.is_decode_pool)},
        "concurrency": row.concurrency,
        "chunk_tokens": row.chunk_tokens,
        "scenario": row.load,
        "osl_cv2": row.osl_cv2,
        "ttft_is_median": row.ttft_is_median,
    }
    if row.depth:
        entry["speculation"] = {"depth": row.depth, "acceptance": row.acceptance}
    if row.pools is not None and row.load == "closed":
        entry["workers"] = row.pools.decode_workers
        entry["prefill_pool"] = {"layout": asdict(row.pools.prefill), "workers": row.pools.prefill_workers}
    if row.max_batch is not None:
        entry["max_batch"] = row.max_batch
    return entry
