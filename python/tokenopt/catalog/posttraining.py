"""What the software of a post-training step adds to what its operators take: calibrated factors and overheads.

A calibration file holds ``[global]`` values and tables ``[stack.NAME]`` of factors on them; software that was never
measured inherits the global values.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenopt.errors import SpecError

FOLDER = Path(__file__).parent / "data" / "calibration"

PARAMETERS = ("generation_factor", "training_factor", "host_bytes_per_s", "phase_overhead_s", "refit_efficiency")
"""In the order of the core's rows."""


@dataclass(frozen=True, slots=True)
class PosttrainingCalibration:
    """A fitted parameter set.

    Attributes:
        name: Name and date.
        basis: What the parameters rest on.
        base: Value of every parameter.
        stacks: Factors on them by software and parameter.
        spread: Log standard deviation of measured over predicted step time for a model that was not measured.
        source: Where the data come from.
    """

    name: str
    basis: str
    base: Mapping[str, float]
    stacks: Mapping[str, Mapping[str, float]]
    spread: float
    source: str

    def software(self, stack: str = "") -> dict[str, float]:
        """Parameters of a software; the global ones where it was not measured."""
        factors = self.stacks.get(stack, {})
        return {name: value * factors.get(name, 1.0) for name, value in self.base.items()}


def load_posttraining_calibration(path: Path) -> PosttrainingCalibration:
    """Reads a calibration file.

    Raises:
        SpecError: Names the file and what is wrong with it.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        header = data["calibration"]
        return PosttrainingCalibration(
            name=header["name"],
            basis=header["basis"],
            base={name: float(data["global"][name]) for name in PARAMETERS},
            stacks={
                stack: {name: float(value) for name, value in factors.items()}
                for stack, factors in data.get("stack", {}).items()
            },
            spread=float(header["spread"]),
            source=header["source"],
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"calibration {path} cannot be read: {type(error).__name__} {error}") from error


@cache
def default_posttraining_calibration() -> PosttrainingCalibration:
    """The newest calibration that ships with tokenopt."""
    return load_posttraining_calibration(max(FOLDER.glob("posttraining-*.toml")))
