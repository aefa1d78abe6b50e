"""Calibrated parameters of the training model: one global physical set, with deviations where data support them.

The file holds ``[global]`` values and tables of deviations by accelerator, accelerator family, software stack, number
format and, for mixture-of-experts models, software release. A deviation is a factor on the level above, so that what was
never measured inherits the level above unchanged.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.catalog.engines import Novelty
from tokenopt.errors import SpecError

_FILE = Path(__file__).parent / "data" / "calibration" / "training.toml"

LEVELS = ("accelerator", "family", "format", "release", "stack")
"""Levels that deviations may exist at."""

_P90_OF_NORMAL = 1.2816
_UNCALIBRATED_SPREAD = 0.23
"""Log standard deviation of measured over predicted rate before any fit: physical priors miss half of the published steps
by more than 11%, one in ten by more than 35%."""


@dataclass(frozen=True, slots=True)
class TrainingCalibration:
    """A fitted parameter set.

    Attributes:
        name: Name and date.
        basis: What the parameters rest on.
        as_of: Date of the newest row behind it.
        base: Value of every parameter.
        deviations: Factors by level, name and parameter.
        seen: Names with measured rows behind them, by level.
        spread: Log standard deviation of measured over predicted rate, by `dense` or `moe` and novelty class.
        source: Where the data come from.
        fitted: Parameters whose global value was fitted; the others hold their prior.
    """

    name: str
    basis: str
    as_of: str
    base: Mapping[str, float]
    deviations: Mapping[str, Mapping[str, Mapping[str, float]]]
    seen: Mapping[str, tuple[str, ...]]
    spread: Mapping[str, float]
    source: str
    fitted: tuple[str, ...] = field(default=())


@cache
def _parameter_table() -> tuple[dict[str, Any], ...]:
    from tokenopt import _core

    return tuple(json.loads(_core.training_parameters()))


def training_parameter_priors() -> dict[str, float]:
    """Prior centre of every training parameter, by name, in the core's order."""
    return {entry["name"]: entry["prior"] for entry in _parameter_table()}


@cache
def default_training_calibration() -> TrainingCalibration:
    """The calibration that ships with tokenopt, or the physical priors where none was fitted."""
    if _FILE.exists():
        return load_training_calibration(_FILE)
    return TrainingCalibration(
        name="priors",
        basis="uncalibrated",
        as_of="",
        base=training_parameter_priors(),
        deviations={},
        seen={},
        spread={},
        source="centres of the physical priors",
    )


def load_training_calibration(path: Path) -> TrainingCalibration:
    """Reads a calibration file.

    Raises:
        SpecError: Names the file and what is wrong with it.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        header = data["calibration"]
        priors = training_parameter_priors()
        base = {**priors, **{name: float(value) for name, value in data["global"].items()}}
        deviations = {
            level: {
                name: {parameter: float(factor) for parameter, factor in values.items()}
                for name, values in data.get(level, {}).items()
            }
            for level in LEVELS
        }
        used = {name for level in deviations.values() for factors in level.values() for name in factors}
        unknown = sorted((set(base) | used) - set(priors))
        if unknown:
            raise SpecError(f"{path.name}: unknown parameter {unknown[0]}")
        return TrainingCalibration(
            name=header["name"],
            basis=header["basis"],
            as_of=str(header["as_of"]),
            base=base,
            deviations=deviations,
            seen={level: tuple(names) for level, names in data.get("seen", {}).items()},
            spread={name: float(value) for name, value in data.get("spread", {}).items()},
            source=header["source"],
            fitted=tuple(data.get("uncertainty", {})),
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"calibration {path} cannot be read: {type(error).__name__} {error}") from error


def resolve_training_parameters(
    calibration: TrainingCalibration,
    *,
    accelerator: str,
    family: str,
    format: str,
    stack: str = "",
    release: str = "",
) -> dict[str, float]:
    """Parameters of one accelerator, format and software stack.

    Args:
        calibration: The fitted set.
        accelerator: Key of the accelerator.
        family: Its architecture family.
        format: Number format of the linear layers.
        stack: Software family (`megatron`, `torchtitan`, `maxtext` …); empty = the mean of all that were measured.
        release: Software and release, e.g. `megatron 26.08`; only mixture-of-experts layers depend on it.

    Returns:
        Every parameter in the core's order, inside its physical bounds.
    """
    values = dict(calibration.base)
    names = {"accelerator": accelerator, "family": family, "format": format, "release": release, "stack": stack}
    for level in LEVELS:
        for parameter, factor in calibration.deviations.get(level, {}).get(names[level], {}).items():
            values[parameter] *= factor
    return {entry["name"]: min(max(values[entry["name"]], entry["low"]), entry["high"]) for entry in _parameter_table()}


def training_novelty(
    calibration: TrainingCalibration,
    *,
    model: str,
    accelerator: str,
    family: str,
    format: str,
    is_moe: bool,
    stack: str = "",
) -> Novelty:
    """The interval of a case: residual spread of the calibration, wider the less of the case was measured.

    Mixture-of-experts models have spreads of their own. Software that was not measured, or is not stated, is at least as
    uncertain as a left-out stack.

    Returns:
        Class, and factors on cost at P10 and P90.
    """
    seen = calibration.seen
    if f"{model} {accelerator} {format}" in seen.get("group", ()):
        name = "seen"
    elif accelerator in seen.get("accelerator", ()):
        name = "new_group" if model in seen.get("model", ()) else "new_model"
    elif family in seen.get("family", ()):
        name = "new_accelerator"
    else:
        name = "new_family"
    kind = "moe" if is_moe else "dense"
    spread = calibration.spread.get(f"{kind}_{name}", _UNCALIBRATED_SPREAD)
    if stack not in seen.get("stack", ()):
        spread = max(spread, calibration.spread.get(f"{kind}_new_stack", _UNCALIBRATED_SPREAD))
    factor = math.exp(_P90_OF_NORMAL * spread)
    return Novelty(name, (1.0 / factor, factor))
