"""Parameters of a stack: the global set, changed level by level, inside physical bounds, each with its origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenopt.catalog.engines import (
    Calibration,
    load_calibration,
    parameter_bounds,
    parameter_origins,
    parameter_priors,
    resolve_parameters,
)
from tokenopt.errors import SpecError

NAME = "layer_overhead_s"


def _calibration(**factors: float) -> Calibration:
    """A set whose layer overhead is changed at the named levels."""
    names = {"engine": "serve", "family": "greek", "format": "fp8", "stack": "serve greek"}
    return Calibration(
        name="test", basis="calibrated", as_of="2026-01-01", base={**parameter_priors(), NAME: 2e-5},
        deviations={level: {names[level]: {NAME: factor}} for level, factor in factors.items()},
        seen={}, spread={}, source="test", fitted=(NAME,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "expected", "origin"),
    [
        ({}, 2e-5, "global fit"),
        ({"engine": 1.5}, 3e-5, "global fit, engine serve x1.5"),
        ({"engine": 1.5, "family": 0.5}, 1.5e-5, "global fit, engine serve x1.5, family greek x0.5"),
        ({"format": 2.0, "stack": 2.0}, 8e-5, "global fit, format fp8 x2, stack serve greek x2"),
    ],
)
def test_levels_multiply(factors: dict[str, float], expected: float, origin: str) -> None:
    calibration = _calibration(**factors)
    # Factors multiply near the prior; towards the bounds the value bends so that it stays inside.
    assert resolve_parameters(calibration, "serve", "greek", "fp8")[NAME] == pytest.approx(expected, rel=0.05)
    assert parameter_origins(calibration, "serve", "greek", "fp8")[NAME] == origin


def test_what_was_never_measured_inherits_the_level_above() -> None:
    calibration = _calibration(engine=1.5, family=3.0, format=3.0, stack=3.0)
    assert resolve_parameters(calibration, "unheard", "unseen", "int4")[NAME] == pytest.approx(2e-5)
    assert resolve_parameters(calibration, "serve", "unseen", "int4")[NAME] == pytest.approx(3e-5, rel=0.01)


def test_a_plugin_s_own_value_replaces_all() -> None:
    calibration = _calibration(engine=1.5)
    own = {NAME: 1e-5}
    assert resolve_parameters(calibration, "serve", "greek", "fp8", own)[NAME] == 1e-5
    assert parameter_origins(calibration, "serve", "greek", "fp8", own)[NAME] == "engine plugin serve"


@pytest.mark.parametrize("factor", [1e9, 1e-9])
def test_values_stay_inside_physical_bounds(factor: float) -> None:
    low, high = parameter_bounds()[NAME]
    value = resolve_parameters(_calibration(family=factor), "serve", "greek", "fp8")[NAME]
    assert value == (high if factor > 1 else low)


def test_the_set_is_complete_and_says_what_is_only_a_prior() -> None:
    calibration = _calibration()
    assert set(resolve_parameters(calibration, "serve", "greek", "fp8")) == set(parameter_priors())
    origins = parameter_origins(calibration, "serve", "greek", "fp8")
    assert {name for name, origin in origins.items() if origin == "prior"} == set(parameter_priors()) - {NAME}


HEADER = '[calibration]\nname = "t"\nbasis = "calibrated"\nas_of = "2026-01-01"\nsource = "here"\n'


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    path.write_text(
        f"{HEADER}[global]\n{NAME} = 3e-5\n[uncertainty]\n{NAME} = 0.1\n[engine.serve]\n{NAME} = 2.0\n[spread]\nseen = 0.1\n"
    )
    calibration = load_calibration(path)
    assert calibration.fitted == (NAME,)
    assert calibration.spread == {"seen": 0.1}
    assert resolve_parameters(calibration, "serve", "x", "y")[NAME] == pytest.approx(6e-5, rel=0.05)
    assert parameter_origins(calibration, "serve", "x", "y")[NAME] == "global fit, engine serve x2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "calibration"),
        ("[calibration", "TOML"),
        (f"{HEADER}[global]\nspeed = 1.0\n", "speed"),
        (f'{HEADER}[global]\n{NAME} = "fast"\n', "fast"),
        (HEADER, "global"),
        (f"{HEADER}[global]\n[family.greek]\nspeed = 2.0\n", "speed"),
        (f'{HEADER}[global]\n[family.greek]\n{NAME} = "twice"\n', "twice"),
    ],
)
def test_a_bad_file_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"set\.toml") as caught:
        load_calibration(path)
    assert expected in str(caught.value)
