"""Scoring, calibrating and anchoring on measured rows, as users do it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tokenopt.catalog.engines import default_calibration, novelty
from tokenopt.cli import cli
from tokenopt.measured.decisions import Ranking
from tokenopt.measured.fit import Calibrator
from tokenopt.measured.rows import CompiledRows, compile_rows
from tokenopt.measured.serving_data import clean, read_serving_curves
from tokenopt.measured.validate import BUNDLED_ROWS, calibrated_sets, leave_out_keys
from tokenopt.plugins import default_registry

COLUMNS = (
    "id", "source", "measured_on", "model", "accelerator", "engine", "engine_version", "mode", "weight_precision", "isl", "osl",
    "concurrency", "tp", "pp", "attn_dp", "moe_tp", "moe_ep", "prefill_workers", "prefill_tp", "decode_workers", "decode_tp",
    "ttft_ms", "tpot_ms",
)  # fmt: skip


def entry(**changes: object) -> dict[str, str]:
    known = {
        "id": "a", "source": "mine", "model": "llama-3.1-70b", "accelerator": "h100-sxm", "engine": "vllm", "mode": "agg",
        "weight_precision": "fp8", "isl": 1000, "osl": 1000, "concurrency": 16, "tp": 4, "ttft_ms": 150, "tpot_ms": 15,
        **changes,
    }  # fmt: skip
    return {name: str(known.get(name, "")) for name in COLUMNS}


def write(path: Path, entries: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*reversed(COLUMNS), "further"])
        writer.writeheader()
        writer.writerows(entries)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def llama() -> CompiledRows:
    """Rows of one model on three accelerators: enough to fit, quick to fit."""
    entries = [row for row in read_serving_curves(BUNDLED_ROWS) if row["model"] == "llama-3.1-70b"]
    return compile_rows(clean(entries[::2]).rows, default_registry())


def test_every_row_is_predicted_or_says_why_not(tmp_path: Path) -> None:
    entries = [
        entry(id="plain"),
        entry(id="repeat"),
        entry(id="unheard engine", engine="unheard", concurrency=8),
        entry(id="unseen model", model="mixtral-8x7b", weight_precision="bf16", concurrency=4),
        entry(id="queued", ttft_ms=20_000, concurrency=64),
        entry(id="no chip", accelerator="abacus"),
        entry(id="no tpot", tpot_ms=""),
        entry(id="pools", mode="disagg", tp="", prefill_workers=1, prefill_tp=4, decode_workers=2, decode_tp=4),
        entry(id="unknown pools", mode="disagg", tp="", decode_tp=4),
    ]
    out = tmp_path / "rows.csv"
    answer = invoke(
        "validate", "serving", "--data", write(tmp_path / "in.csv", entries), "--rows", out, "--format", "json"
    )
    assert answer.exit_code == 0, answer.output
    rows = {row["id"]: row for row in csv.DictReader(out.read_text().splitlines())}
    assert list(rows) == [line["id"] for line in entries]
    blank = {name for name, row in rows.items() if not row["pred_tpot_ms"]}
    assert blank == {"no chip", "unknown pools"}
    assert {name for name, row in rows.items() if row["reason"]} == blank | {"repeat", "queued", "no tpot"}
    # Six scored rows less repeat, queue and missing measurement; the pools are one of them.
    scores = json.loads(answer.stdout[answer.stdout.index("{") :])
    assert scores["overall"]["tpot_ms"]["n"] == 4
    assert scores["by"]["mode"]["disagg"]["tpot_ms"]["n"] == 1


def test_requests_of_a_wave_wait_for_each_others_prompts() -> None:
    # Sixteen prompts of one chunk each: half of the wave's prefill and half a chunk more come before the first token.
    entries = [
        entry(id=str(clients), concurrency=clients, isl=8192, osl=128, ttft_ms=100 * clients, tpot_ms=20)
        for clients in (16, 32)
    ]
    waves = clean(entries)
    assert all(row.is_in_waves for row in waves.rows)
    steady = clean([{**row, "ttft_ms": "150"} for row in entries])
    assert not any(row.is_in_waves for row in steady.rows)
    drawn = clean([{**row, "source": "InferenceX"} for row in entries])
    assert not any(row.is_in_waves for row in drawn.rows), "lengths that differ do not stay in step"
    first, token = 1, 0
    in_waves, apart = (
        compiled.predict_each(calibrated_sets(compiled))
        for compiled in (compile_rows(found.rows, default_registry()) for found in (waves, steady))
    )
    assert (in_waves[:, first] > 3 * apart[:, first]).all()
    assert (in_waves[:, token] < apart[:, token]).all()


def test_the_interval_is_wider_where_nobody_measured_the_layout_or_the_batch() -> None:
    calibration = default_calibration()
    chip = default_registry().accelerators["b200-sxm"]

    def width(kind: str, batch: float) -> float:
        low, high = novelty(calibration, chip, "llama-3.1-70b", kind, batch).factors
        return high / low

    seen = width("tp", 64)
    assert seen < width("tp", 2048) == width("dp", 64) == width("pools", 64)


def test_a_file_without_rows_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(",".join(COLUMNS) + "\n")
    answer = CliRunner().invoke(cli, ["validate", "serving", "--data", str(path)])
    assert answer.exit_code != 0


def test_the_fit_gets_closer_and_is_the_same_twice(llama: CompiledRows) -> None:
    calibrator = Calibrator(llama)
    measured = np.array([row.tpot_s for row in llama.rows])

    def error(exponents: np.ndarray) -> float:
        return float(np.median(np.abs(calibrator.predict(exponents)[:, 0] / measured - 1.0)))

    optimum = calibrator.fit()
    assert error(optimum) < 0.06 < error(np.zeros(len(optimum)))
    assert np.array_equal(optimum, Calibrator(llama).fit())


def test_an_exponent_moves_only_the_rows_of_its_level(llama: CompiledRows) -> None:
    calibrator = Calibrator(llama)
    jacobian = calibrator._jacobian(np.zeros(len(calibrator.fit())))
    moved = np.abs(jacobian[: len(llama.rows)]) > 0
    engines = np.array([row.engine for row in llama.rows])
    for column, item in enumerate(calibrator._deviations, start=len(calibrator._free)):
        if item.level == "engine":
            assert not moved[engines != item.name, column].any()


@pytest.mark.slow
def test_intervals_cover_what_was_left_out() -> None:
    """80% intervals hold 70 to 90% of the measurements of models on accelerators that the fit never saw."""
    from tokenopt.catalog.engines import base_calibration

    compiled = compile_rows(clean(read_serving_curves(BUNDLED_ROWS)).rows, default_registry())
    calibrator = Calibrator(compiled)
    predicted = compiled.predict_each(calibrator.leave_out(leave_out_keys(compiled, "group"), calibrator.fit()))[:, 2]
    measured = np.array([row.output_tps_per_chip for row in compiled.rows])
    scored = np.array([row.is_scored for row in compiled.rows])
    spread = base_calibration().spread["new_pair"]
    covered = np.abs(np.log(predicted / measured))[scored] <= 1.2816 * spread
    assert 0.70 <= covered.mean() <= 0.90


@pytest.mark.slow
def test_a_refit_reproduces_the_shipped_file(tmp_path: Path) -> None:
    from tokenopt.catalog import engines

    out = tmp_path / "serving.toml"
    assert invoke("calibrate", "serving", "--out", out).exit_code == 0
    shipped = sorted(engines._CALIBRATIONS.glob("serving-*.toml"))[-1]
    assert out.read_text() == shipped.read_text()


def test_an_anchor_draws_its_own_stack_towards_the_measurement(tmp_path: Path) -> None:
    def tpot(*arguments: object) -> float:
        found = invoke("explain", "--model", "qwen2.5-72b", "--hardware", "h100-sxm", "--engine", "vllm", "--precision", "fp8",
                       "--isl", 1000, "--osl", 1000, "--tp", 4, "--pp", 1, "--attn-dp", 1, "--batch", 16, "--price",
                       "h100-sxm=2", "--format", "json", *arguments)  # fmt: skip
        assert found.exit_code == 0, found.output
        return float(json.loads(found.stdout)["solution"]["tpot_ms"])

    plain = tpot()
    points = write(
        tmp_path / "points.csv",
        [
            entry(id="1", model="qwen2.5-72b", tpot_ms=30),
            entry(id="2", model="qwen2.5-72b", tpot_ms=40, concurrency=64),
        ],
    )
    assert 1.3 < tpot("--anchor", points) / plain < 2.6


@pytest.mark.slow
def test_two_points_a_stack_halve_the_error_on_what_was_left_out() -> None:
    plain, anchored = (
        json.loads(
            invoke("validate", "serving", "--leave-out", "group", "--anchors", points, "--format", "json").stdout
        )
        for points in (0, 2)
    )
    medians = [answer["by"]["mode"]["agg"]["tpot_ms"]["median"] for answer in (plain, anchored)]
    assert medians[1] < 0.65 * medians[0]
    assert medians[1] < 8.0


def test_an_anchor_of_another_stack_is_refused(tmp_path: Path) -> None:
    points = write(tmp_path / "points.csv", [entry(engine="sglang")])
    answer = CliRunner().invoke(
        cli,
        [
            "search",
            "--model",
            "llama-3.1-70b",
            "--hardware",
            "h200-sxm",
            "--anchor",
            str(points),
            "--price",
            "h200-sxm=2",
        ],
    )
    assert answer.exit_code != 0


def test_a_ranking_is_right_up_to_ten_percent() -> None:
    case = Ranking("m", 1.0, 1.0, 10.0, 3, "a", "b", 1.1)
    assert case.is_right
    assert not Ranking("m", 1.0, 1.0, 10.0, 3, "a", "b", 1.11).is_right
    assert not Ranking("m", 1.0, 1.0, 10.0, 3, "a", "b", None).is_right


def test_rankings_and_regrets_of_the_shipped_calibration() -> None:
    ranking = json.loads(invoke("validate", "ranking", "--format", "json").stdout)
    assert ranking["cases"] >= 20
    assert ranking["share"] >= 0.85
    regret = json.loads(invoke("validate", "regret", "--format", "json").stdout)
    assert regret["median_percent"] <= 3.0
    assert regret["p90_percent"] <= 15.0


def test_shipped_sets_are_one_a_row(llama: CompiledRows) -> None:
    assert len(calibrated_sets(llama)) == len(llama.rows)
