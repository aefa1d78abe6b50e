"""Measured training steps as the core predicts them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.models import is_mixture_of_experts
from tokenopt.catalog.sized import architecture_of
from tokenopt.errors import SpecError
from tokenopt.measured.training_data import TrainingRow, layout_offer
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import DEFAULT_PUE, core_accelerator
from tokenopt.units import TERA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Level:
    """What deviations of a calibration may depend on; one parameter set each."""

    stack: str
    accelerator: str
    family: str
    format: str
    release: str
    is_moe: bool


@dataclass(frozen=True, slots=True)
class CompiledTraining:
    """Rows compiled into the core.

    Attributes:
        rows: Rows that can be predicted.
        is_moe: Whether each row's model routes to experts.
        refused: Reason by id of the others.
        levels: Distinct levels of the rows; one parameter set each.
        level_of: Index of each row's level.
        core: The core's rows, layouts and recomputation as printed.
    """

    rows: list[TrainingRow]
    is_moe: list[bool]
    refused: dict[str, str]
    levels: list[Level]
    level_of: list[int]
    core: Any

    def resolved(self, parameters: NDArray[np.float64]) -> CompiledTraining:
        """The same rows with open layouts and recomputation filled in at `parameters` (one set a level)."""
        return replace(self, core=self.core.resolve(parameters))

    def layouts(self) -> list[dict[str, Any] | None]:
        """Layout of every row; None where none was printed or found."""
        layouts: list[dict[str, Any] | None] = json.loads(self.core.layouts())
        return layouts

    def predict(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows x (step_s, tokens_per_s_per_chip, printed rate, flops_per_s, utilisation, memory_ratio)."""
        predicted: NDArray[np.float64] = self.core.predict(parameters)
        return predicted


def compile_training(
    rows: Sequence[TrainingRow], registry: PluginRegistry, refused: Mapping[str, str] | None = None
) -> CompiledTraining:
    """Compiles rows into the core; what cannot be predicted gets a reason.

    Args:
        rows: Measured rows.
        registry: Plugins that describe the accelerators.
        refused: Reasons of rows that were already refused.

    Returns:
        The compiled rows.
    """
    from tokenopt import _core

    kept: list[TrainingRow] = []
    is_moe: list[bool] = []
    reasons = dict(refused or {})
    models: dict[str, dict[str, Any]] = {}
    architectures: dict[str, tuple[dict[str, Any], str]] = {}
    chips: dict[tuple[object, ...], dict[str, Any]] = {}
    levels: dict[Level, int] = {}
    level_of: list[int] = []
    entries = []
    for row in rows:
        chip = registry.accelerators.get(row.accelerator)
        if chip is None:
            reasons[row.id] = f"accelerator {row.accelerator} is not in the catalogue"
            continue
        try:
            architecture, stand_in = architectures.get(row.model) or architecture_of(
                row.model, row.parameters_b, row.active_parameters_b
            )
        except SpecError as error:
            reasons[row.id] = error.message
            continue
        architectures[row.model] = architecture, stand_in
        models.setdefault(row.model, architecture)
        key = (row.accelerator, *sorted(row.chip.items()))
        chips.setdefault(key, {**core_accelerator(chip, DEFAULT_PUE), **row.chip})
        routes = is_mixture_of_experts(architecture)
        level = Level(row.stack, row.accelerator, chip.family, row.format, row.release, routes)
        layout = _for_model(row.layout, architecture)
        entries.append(
            {
                "model": list(models).index(row.model),
                "accelerator": list(chips).index(key),
                "set": levels.setdefault(level, len(levels)),
                "job": {"seq_len": row.seq_len, "global_batch": row.global_batch, "format": row.format, **row.job},
                "chips": row.chips,
                "layout": layout,
                "printed": {
                    "tokens_per_s_per_chip": row.tokens_per_s_per_chip,
                    "step_s": row.step_time_s if row.batch_is_printed else None,
                    "flops_per_s": row.tflops and row.tflops * TERA,
                    "utilisation": row.mfu,
                    "counts_full_attention": row.counts_full_attention,
                    "peak_format": row.mfu_peak_format,
                },
                "offer": layout_offer(row.stack),
                "is_recompute_open": row.is_recompute_open,
                "recomputes_all_or_nothing": row.recomputes_all_or_nothing,
                "is_expert_split_open": routes and row.is_expert_split_open,
                "is_interleave_open": row.is_interleave_open,
            }
        )
        if stand_in:
            row = replace(row, unscored=row.unscored or stand_in, assumed=(*row.assumed, stand_in))
        kept.append(row)
        is_moe.append(routes)
        level_of.append(levels[level])
    problem = {"models": list(models.values()), "accelerators": list(chips.values()), "rows": entries}
    return CompiledTraining(kept, is_moe, reasons, list(levels), level_of, _core.TrainingRows(json.dumps(problem)))


def _for_model(layout: Mapping[str, Any] | None, architecture: Mapping[str, Any]) -> dict[str, Any] | None:
    """A layout with what depends on the model.

    Half of its layers recomputed; expert parallelism 1 without experts, and where only the framework says that experts are
    spread (-1), over as many ranks as divide both.
    """
    if layout is None:
        return None
    import math

    if layout["recompute"] == "half":
        layers = sum(layer["count"] for layer in architecture["layers"])
        layout = {**layout, "recompute": {"blocks": max(1, layers // layout["pp"] // 2)}}
    experts = max((layer["ffn"].get("experts", 0) for layer in architecture["layers"]), default=0)
    if not experts:
        return {**layout, "ep": 1}
    ranks = layout["tp"] * layout["cp"] * layout["dp"]
    wanted = layout["ep"] if layout["ep"] > 0 else ranks
    return {**layout, "ep": math.gcd(math.gcd(wanted, ranks), experts)}
