"""Calibration and validation of the training model, as users call them."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokenopt.catalog.training_calibration import (
    default_training_calibration,
    load_training_calibration,
    resolve_training_parameters,
    training_novelty,
    training_parameter_priors,
)
from tokenopt.errors import SpecError
from tokenopt.measured import training_validate as validate
from tokenopt.measured.training_data import TrainingRow, clean, parse_row, source_of, stack_of
from tokenopt.measured.training_fit import TrainingCalibrator
from tokenopt.measured.training_rows import CompiledTraining
from tokenopt.plugins import default_registry

Run = Callable[..., subprocess.CompletedProcess[str]]

ROW = {
    "id": "a", "source": "NVIDIA Megatron-Bridge performance summary", "task": "pretrain", "model": "llama-3.1-8b",
    "precision": "bf16", "gpu": "h100-sxm", "n_gpus": "8", "seq_len": "8192", "global_batch": "128", "micro_batch": "1",
    "tp": "1", "pp": "1", "cp": "2", "framework": "megatron-bridge", "date": "2025-09", "tokens_per_s_per_gpu": "9960",
}  # fmt: skip


def parsed(**changes: str) -> TrainingRow:
    row = parse_row({**ROW, **changes})
    assert isinstance(row, TrainingRow)
    return row


@pytest.fixture(scope="module")
def bundled() -> CompiledTraining:
    return validate.load([], default_registry())


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_layout_is_read_and_completed() -> None:
    row = parsed()
    assert row.layout is not None
    assert (row.layout["dp"], row.layout["cp"], row.layout["micro_batch"]) == (4, 2, 1)
    assert row.is_recompute_open
    assert row.stack == "megatron"
    assert row.unscored == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"notes": "CPU offload"}, "offload to the host"),
        ({"notes": "untuned functional test"}, "untuned functional test"),
        ({"notes": "up to 147 TFLOP/s"}, "a best value, not a mean"),
        ({"tp": "", "pp": "", "cp": ""}, "no layout printed"),
        ({"tp": "3"}, "the printed layout does not divide the chips"),
        (
            {"notes": "config config_DGXH100_1x8x36xtp4pp8cp2.sh"},
            "layout of another benchmark's configuration: micro-batches x dp is not the batch",
        ),
    ],
)
def test_rules_leave_rows_out_of_scores_and_say_why(changes: dict[str, str], reason: str) -> None:
    assert parsed(**changes).unscored == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "grpo"}, "a step of several stages"),
        ({"gpu": ""}, "does not name the accelerator"),
        ({"model": ""}, "does not name the model"),
        ({"n_gpus": ""}, "no number of chips"),
        ({"precision": "int3"}, "int3 is not known"),
    ],
)
def test_rows_that_cannot_be_predicted_say_why(changes: dict[str, str], reason: str) -> None:
    refusal = parse_row({**ROW, **changes})
    assert isinstance(refusal, str)
    assert reason in refusal


def test_traps_of_published_tables() -> None:
    local_batch = parsed(pp="8", micro_batch="32", n_gpus="64", global_batch="256", cp="1")
    assert local_batch.layout is not None
    # 32 sequences over 8 stages: 4 each.
    assert local_batch.layout["micro_batch"] == 4
    assert parsed(framework="automodel").recomputes_all_or_nothing
    assert not parsed().recomputes_all_or_nothing
    assert parsed(task="lora", framework="megatron-bridge").job["recipe"] == {"lora_attention": {"rank": 16}}
    assert parsed(notes="H100 at 500W with 2.4TB/s").chip["clock_power_w"] == 500.0
    assert parsed(notes="MoE: token-drop").job["capacity_factor"] == 1.0
    assert parsed(task="lora").job["document_tokens"] == 300.0
    assert parsed(framework="nemo").counts_full_attention
    assert not parsed(framework="megatron-bridge").counts_full_attention
    assert not parsed(framework="maxtext", date="2025-09").counts_full_attention
    assert source_of("MLPerf Training v5.1") == source_of("MLPerf Training v4.0") == "MLPerf Training"
    assert stack_of("PyTorch NVIDIA Release 25.09") == "megatron"
    assert stack_of("something new") == ""


def test_a_run_published_twice_counts_once() -> None:
    twice = [{**ROW, "step_time_s": "1.2345"}, {**ROW, "id": "b", "step_time_s": "1.23449"}]
    assert [row.unscored for row in clean(twice).rows] == ["", "repeat of a run in another round"]


def test_shipped_calibration_predicts_dense_steps_well(bundled: CompiledTraining) -> None:
    compiled, predictions = validate.calibrated_predictions(bundled)
    result = validate.score("shipped", compiled, predictions)
    dense, moe = result.by["class"]["dense"], result.by["class"]["moe"]
    assert dense.n > 250
    assert dense.median < 5.0
    assert dense.p90 < 14.0
    assert moe.median < 12.0


def test_what_was_never_measured_keeps_the_level_above() -> None:
    calibration = default_training_calibration()
    assert calibration.basis == "calibrated"
    new = resolve_training_parameters(calibration, accelerator="x", family="y", format="bf16z", stack="z")
    assert new == dict(calibration.base)
    known = resolve_training_parameters(
        calibration, accelerator="h100-sxm", family="hopper", format="fp8", stack="megatron"
    )
    assert known["software_factor"] > new["software_factor"]
    assert list(known) == list(training_parameter_priors())


def test_intervals_widen_with_novelty_and_for_mixtures_of_experts() -> None:
    calibration = default_training_calibration()

    def width(model: str, accelerator: str, family: str, is_moe: bool = False, stack: str = "megatron") -> float:
        factors = training_novelty(
            calibration, model=model, accelerator=accelerator, family=family, format="fp8", is_moe=is_moe, stack=stack
        ).factors
        return factors[1] / factors[0]

    seen = width("llama-3.1-8b", "h100-sxm", "hopper")
    assert seen < width("new", "h100-sxm", "hopper") <= width("new", "new", "hopper") < width("new", "new", "new")
    assert seen < width("llama-3.1-8b", "h100-sxm", "hopper", stack="unknown")
    assert seen < width("qwen3-235b-a22b", "h100-sxm", "hopper", is_moe=True)


def test_validate_writes_a_line_for_every_row(tokenopt: Run, tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "id": "searched", "tp": "", "pp": "", "cp": ""},
        {**ROW, "id": "flops", "tokens_per_s_per_gpu": "", "tflops_per_gpu": "500"},
        {**ROW, "id": "run", "tokens_per_s_per_gpu": "", "total_tokens": "1e12", "gpu_hours": "30000"},
        {**ROW, "id": "new software", "framework": "own", "source": "me"},
        {**ROW, "id": "rl", "task": "grpo"},
        {**ROW, "id": "unknown chip", "gpu": "quantum-1"},
        {**ROW, "id": "unknown model", "model": "nobody"},
    ]
    data, out = write(tmp_path / "data.csv", rows), tmp_path / "out.csv"
    result = tokenopt("validate", "training", "--data", str(data), "--rows", str(out), "--format", "json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["schema"] == 1
    assert answer["overall"]["n"] == 3
    lines = {line["id"]: line for line in csv.DictReader(out.read_text(encoding="utf-8").splitlines())}
    assert set(lines) == {row["id"] for row in rows}
    for name in ("a", "searched", "flops", "run", "new software"):
        assert float(lines[name]["pred_tokens_per_s_per_chip"]) == pytest.approx(9960, rel=0.25)
        assert lines[name]["reason"] == ""
    rate = float(lines["a"]["pred_tokens_per_s_per_chip"])
    assert float(lines["a"]["pred_step_time_s"]) == pytest.approx(128 * 8192 / 8 / rate, rel=1e-4)
    assert float(lines["flops"]["tokens_per_s_per_chip"]) == pytest.approx(500e12 / 5.147e10, rel=1e-3)
    assert float(lines["run"]["pred_gpu_hours"]) == pytest.approx(1e12 / 3600 / 9960, rel=0.25)
    # A step of several stages is timed by the model of post-training.
    assert lines["rl"]["reason"] == ""
    assert float(lines["rl"]["pred_step_time_s"]) > 0
    for name in ("unknown chip", "unknown model"):
        assert lines[name]["reason"]
        assert lines[name]["pred_tokens_per_s_per_chip"] == ""


def test_bad_input_is_told_in_one_sentence(tokenopt: Run, tmp_path: Path) -> None:
    lacking = write(tmp_path / "lacking.csv", [{"id": "a", "task": "pretrain"}])
    result = tokenopt("validate", "training", "--data", str(lacking))
    assert result.returncode == 2
    assert "has no column model" in result.stderr
    result = tokenopt("validate", "training", "--leave-out", "moon")
    assert result.returncode == 2
    assert "leave-out is 'moon', expected group, model, accelerator, framework, source" in result.stderr
    result = tokenopt("validate", "training", "--search-layouts", "--leave-out", "model")
    assert result.returncode == 2
    bad = tmp_path / "bad.toml"
    bad.write_text('[calibration]\nname="x"\nbasis="x"\nas_of=""\nsource=""\n[global]\nmagic = 1.0\n', encoding="utf-8")
    with pytest.raises(SpecError, match="unknown parameter magic"):
        load_training_calibration(bad)


def test_layouts_are_searched_within_what_the_software_offers(bundled: CompiledTraining) -> None:
    compiled = validate.without_layouts(bundled, default_registry())
    compiled, predictions = validate.calibrated_predictions(compiled)
    result = validate.score("searched", compiled, predictions)
    assert result.by["class"]["dense"].median < 10.0
    for row, layout in zip(compiled.rows, compiled.layouts(), strict=True):
        if row.stack == "llm-foundry" and layout:
            assert (layout["tp"], layout["pp"], layout["cp"]) == (1, 1, 1)


def test_an_anchor_corrects_the_level(bundled: CompiledTraining) -> None:
    compiled, predictions = validate.calibrated_predictions(bundled)
    shifted = predictions.copy()
    shifted[:, 1] *= 1.3
    shifted[:, 0] /= 1.3
    before = validate.anchored(compiled, predictions)
    after = validate.anchored(compiled, shifted)
    assert np.isfinite(before[:, 1]).sum() > 150
    assert np.allclose(before[:, 1], after[:, 1], equal_nan=True)


@pytest.mark.slow
def test_intervals_hold_left_out_groups_and_a_refit_gives_the_same_file(
    tokenopt: Run, tmp_path: Path, bundled: CompiledTraining
) -> None:
    """80% intervals hold 70% to 90% of what a refit never saw; the shipped file is what the command writes."""
    calibration = default_training_calibration()
    calibrator = TrainingCalibrator(bundled)
    predictions = calibrator.leave_out(validate.leave_out_keys(bundled.rows, "group"), calibrator.fit())
    logs = np.abs(np.log(predictions[:, 1] / calibrator.measured))
    for kind, is_moe in (("dense", False), ("moe", True)):
        of_kind = calibrator.is_scored & (np.array(bundled.is_moe) == is_moe)
        covered = float((logs[of_kind] <= 1.2816 * calibration.spread[f"{kind}_new_group"]).mean())
        assert 0.7 <= covered <= 0.9, (kind, covered)
    out = tmp_path / "training.toml"
    assert tokenopt("calibrate", "training", "--out", str(out)).returncode == 0
    shipped = Path(validate.__file__).parents[1] / "catalog" / "data" / "calibration" / "training.toml"
    assert out.read_bytes() == shipped.read_bytes()
