"""Families of other vendors deviate from a calibration; the chips it was fitted on do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_published import entry
from tokenopt.catalog.engines import (
    Calibration,
    base_calibration,
    default_calibration,
    load_calibration,
    resolve_parameters,
    with_families,
)
from tokenopt.measured.published import PublishedRows, read_published
from tokenopt.measured.published_fit import OTHER, FamilyCalibrator
from tokenopt.measured.published_rows import compile_published
from tokenopt.measured.published_validate import families_toml, parameter_sets
from tokenopt.plugins import default_registry


def rows(gpu: str, framework: str, slower: float, base: Calibration) -> PublishedRows:
    """Rows whose measured times are the predictions of `base`, with launches `slower` times as long."""
    registry = default_registry()
    raw = [
        entry(
            id=f"{gpu}-{model}-{batch}",
            gpu=gpu,
            n_gpus="8",
            tp="8",
            framework=framework,
            concurrency=str(batch),
            model=model,
        )
        for model in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b")
        for batch in (1, 4, 16, 64)
    ]
    found = read_published(raw, registry.accelerators)
    compiled = compile_published(found, registry)
    sets = parameter_sets(compiled, base)
    names = list(base.base)
    for name in ("layer_overhead_s", "step_overhead_s"):
        sets[:, names.index(name)] *= slower
    for line, predicted in zip(raw, compiled.predict(sets), strict=True):
        line["tpot_ms"] = str(predicted[0] * 1e3)
    return read_published(raw, registry.accelerators)


def calibrator(found: PublishedRows, base: Calibration) -> FamilyCalibrator:
    compiled = compile_published(found, default_registry())
    return FamilyCalibrator(compiled, base, np.ones(len(compiled.rows), bool))


def test_slow_launches_of_a_family_are_found() -> None:
    base = base_calibration()
    found = rows("mi300x", "vllm", 4.0, base)
    fitter = calibrator(found, base)
    exponents = fitter.fit()
    measured = np.array([row.tpot_s for row in found.rows])

    def error(deviations: np.ndarray) -> float:
        return float(np.abs(np.log(fitter.predict(deviations)[:, 0] / measured)).max())

    assert error(exponents) < 0.4 * error(np.zeros(len(exponents)))
    family = fitter.result(exponents, {"cdna3": "amd", "cdna-next": "amd"}).deviations["family"]
    assert family["cdna3"]["layer_overhead_s"] > 1.2
    assert family["cdna3"]["weight_bandwidth_efficiency"] == pytest.approx(1.0, abs=0.2)
    # A family of the vendor that nobody measured inherits most of it.
    assert 1.15 < family["cdna-next"]["layer_overhead_s"] <= family["cdna3"]["layer_overhead_s"]


def test_what_only_the_left_out_rows_told_is_forgotten() -> None:
    base = base_calibration()
    found = rows("mi300x", "vllm", 4.0, base)
    fitter = calibrator(found, base)
    fitter.fit()
    left_out = fitter.leave_out(["everything"] * len(found.rows))
    compiled = compile_published(found, default_registry())
    # What stays is where every other vendor starts from.
    sets = parameter_sets(compiled, base)
    sets[:, list(base.base).index("collective_latency_s")] *= OTHER["collective_latency_s"]
    assert left_out[:, 0] == pytest.approx(compiled.predict(sets)[:, 0], rel=1e-9)


def test_a_family_whose_models_disagree_is_not_corrected() -> None:
    base = base_calibration()
    agreeing, fast = rows("mi300x", "vllm", 4.0, base), rows("mi300x", "vllm", 0.25, base)
    everything = np.ones(len(agreeing.rows))
    assert calibrator(agreeing, base).scattered(everything) == set()
    # One model four times too slow, one as much too fast.
    mixed = PublishedRows([row for row in agreeing.rows if "70b" in row.model])
    mixed.rows += [row for row in fast.rows if "8b" in row.model]
    fitter = calibrator(mixed, base)
    assert fitter.scattered(np.ones(len(mixed.rows))) == {"cdna3"}
    family = fitter.result(fitter.fit(), {"cdna3": "amd", "cdna4": "amd", "other": "unheard-of"}).deviations["family"]
    # It stays where a vendor starts that nobody measured.
    assert family["cdna3"] == family["other"]
    assert set(family["other"]) == set(OTHER)


def test_unpacking_moves_away_from_its_bound() -> None:
    base = base_calibration()
    registry = default_registry()
    raw = [
        entry(id=f"a-{batch}", gpu="a100-sxm-80", framework="vllm", model="llama-3.1-8b", weight_precision="w4a16",
              concurrency=str(batch)) for batch in (8, 64, 256)
    ]  # fmt: skip
    compiled = compile_published(read_published(raw, registry.accelerators), registry)
    sets = parameter_sets(compiled, base)
    sets[:, list(base.base).index("unpacking_compute_share")] = 0.4
    for line, predicted in zip(raw, compiled.predict(sets), strict=True):
        line["tpot_ms"] = str(predicted[0] * 1e3)
    fitter = calibrator(read_published(raw, registry.accelerators), base)
    fit = fitter.result(fitter.fit(), {"ampere": "nvidia"})
    assert fit.deviations["family"]["ampere"]["unpacking_compute_share"] < 0.9


def test_fitted_chips_are_never_corrected() -> None:
    base = base_calibration()
    fitter = calibrator(rows("h100-sxm", "vllm", 4.0, base), base)
    assert fitter.terms == []


def test_the_file_reads_back(tmp_path: Path) -> None:
    base = base_calibration()
    fitter = calibrator(rows("mi300x", "vllm", 3.0, base), base)
    fit = fitter.result(fitter.fit(), {"cdna3": "amd"})
    fit.deviations["generation"] = {"old": {"step_overhead_s": 0.002}}
    header = {"name": "f", "basis": "calibrated", "as_of": "2026-01-01", "source": "test", "over": base.name}
    path = tmp_path / "families.toml"
    path.write_text(families_toml(fit, header, {"family": ["cdna3"]}, {"cdna3": 0.5}))
    both = with_families(base, load_calibration(path))
    plain = resolve_parameters(base, "vllm", "cdna3", "fp8")
    factor = fit.deviations["family"]["cdna3"]["layer_overhead_s"]
    changed = resolve_parameters(both, "vllm", "cdna3", "fp8", generation="old")
    assert changed["layer_overhead_s"] == pytest.approx(plain["layer_overhead_s"] * factor, rel=1e-4)
    seconds = plain["step_overhead_s"] * factor + 0.002
    assert changed["step_overhead_s"] == pytest.approx(seconds, rel=1e-4)
    assert both.family_spread == {"cdna3": 0.5}
    # The chips of the first file stay as they are.
    assert resolve_parameters(both, "vllm", "hopper", "fp8") == resolve_parameters(base, "vllm", "hopper", "fp8")


def test_other_vendors_have_deviations_that_ship() -> None:
    shipped = default_calibration()
    assert {"cdna3", "cdna4", "neuron", "gaudi", "tpu", "ascend"} <= set(shipped.deviations["family"])
    # NeuronCores wait for each other at every layer; eager launches on Ascend.
    assert shipped.deviations["family"]["neuron"]["collective_latency_s"] > 2.0
    assert shipped.deviations["family"]["ascend"]["layer_overhead_s"] > 5.0
