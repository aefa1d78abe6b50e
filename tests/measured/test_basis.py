"""The measured basis: interpolation between points, never beyond them; money of the core; both bases side by side."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenopt.measured.bundled import bundled_points, published_rows, summary_of_bundled
from tokenopt.measured.curves import (
    Interpolation,
    Limits,
    MeasuredPoint,
    frontier,
    matching_points,
    measured_point,
    operations,
)

Run = Callable[..., subprocess.CompletedProcess[str]]
FIXTURES = Path(__file__).parent / "fixtures"


def _row(concurrency: float, tpot_ms: float, tps: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "serving", "scenario": "concurrency", "accelerator": "h100-sxm", "engine": "vllm", "engine_version": "1",
        "model": "m", "mode": "agg", "source": "s", "chips": 1.0, "tp": 1.0, "isl": 1024.0, "osl": 1024.0,
        "concurrency": concurrency, "tpot_ms": tpot_ms, "output_tps_per_chip": tps, "ttft_ms": 10.0 * concurrency, **more,
    }  # fmt: skip


SWEEP = [_row(1, 5.0, 190.0), _row(16, 10.0, 1500.0), _row(64, 20.0, 2900.0)]


def _points(rows: list[dict[str, Any]]) -> list[MeasuredPoint]:
    return matching_points(rows, 1024, 1024)


def _best(rows: list[dict[str, Any]], limits: Limits) -> Any:
    return max(operations(_points(rows), limits, 1024), key=lambda place: place.output_tps_per_chip, default=None)


def test_without_limits_the_best_point_answers() -> None:
    best = _best(SWEEP, Limits())
    assert (best.output_tps_per_chip, best.is_interpolated, best.concurrency) == (2900.0, False, 64.0)


def test_a_limit_between_points_is_met_exactly_and_both_neighbours_are_named() -> None:
    best = _best(SWEEP, Limits(tpot_s=0.015))
    assert best.tpot_s == pytest.approx(0.015, rel=1e-6)
    assert 1500.0 < best.output_tps_per_chip < 2900.0
    assert 16.0 < best.concurrency < 64.0
    assert [point.concurrency for point in best.between] == [64.0, 16.0]


def test_nothing_is_said_beyond_the_points() -> None:
    assert _best(SWEEP, Limits(tpot_s=0.0049)) is None
    assert _best(SWEEP, Limits(tpot_s=0.1)).output_tps_per_chip == 2900.0
    curve = Interpolation(frontier(_points(SWEEP)))
    assert curve.at_interactivity(201.0) is None
    assert curve.at_interactivity(49.0) is None
    assert curve.at_interactivity(100.0).output_tps_per_chip == pytest.approx(1500.0)  # type: ignore[union-attr]


def test_a_latency_that_is_not_printed_meets_no_limit_on_it() -> None:
    silent = [{**row, "ttft_ms": None} for row in SWEEP]
    assert _best(silent, Limits(ttft_s=10.0)) is None
    assert _best(silent, Limits(tpot_s=0.02)).output_tps_per_chip == 2900.0


def test_stacks_are_not_mixed() -> None:
    other = {**SWEEP[2], "engine_version": "2"}
    best = _best([SWEEP[0], SWEEP[1], other], Limits(tpot_s=0.015))
    assert (best.output_tps_per_chip, best.is_interpolated) == (1500.0, False)


def test_a_place_between_layouts_is_a_mix_without_a_concurrency() -> None:
    best = _best([SWEEP[1], {**SWEEP[2], "tp": 2.0, "chips": 2.0}], Limits(tpot_s=0.015))
    assert (best.is_mix, best.concurrency, best.chips) == (True, None, 2.0)


def test_another_shape_and_a_queue_are_left_out() -> None:
    assert _points([_row(1, 5.0, 190.0, isl=8192.0)]) == []
    assert _points([_row(1, 5.0, 190.0, note="queue in front of the server: ...")]) == []
    assert len(_points([_row(1, 5.0, 190.0, isl=922.0, osl=930.0)])) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(1.05, 3.0), st.floats(1.01, 3.0)), min_size=1, max_size=6), st.floats(0, 1))
def test_interpolation_is_monotone_and_stays_between_its_neighbours(
    steps: list[tuple[float, float]], share: float
) -> None:
    tpot_ms, tps, rows = 2.0, 100.0, []
    for slower, more in [(1.0, 1.0), *steps]:
        tpot_ms, tps = tpot_ms * slower, tps * more
        rows.append(_row(len(rows) + 1.0, tpot_ms, tps))
    points = [point for row in rows if (point := measured_point(row)) is not None]
    curve = Interpolation(points)
    places = [curve.at(index + share) for index in range(len(points) - 1)]
    for place, fast, slow in zip(places, points[:-1], points[1:], strict=True):
        assert (
            fast.output_tps_per_chip * (1 - 1e-9) <= place.output_tps_per_chip <= slow.output_tps_per_chip * (1 + 1e-9)
        )
        assert fast.tpot_s * (1 - 1e-9) <= place.tpot_s <= slow.tpot_s * (1 + 1e-9)


def test_bundled_points_are_read_one_model_at_a_time() -> None:
    rows = bundled_points("gpt-oss-120b")
    assert rows
    assert {row["model"] for row in rows} == {"gpt-oss-120b"}
    assert sum(line["points"] for line in summary_of_bundled({"model": "gpt-oss-120b"})) == len(rows)
    printed = published_rows(["ixblog-0191"])["ixblog-0191"]
    (row,) = [row for row in rows if row["source_ref"] == "ixblog-0191"]
    assert row["total_tps_per_chip"] == float(printed["total_tps_per_gpu"])
    assert row["output_tps_per_chip"] == pytest.approx(row["total_tps_per_chip"] / 2)


def _json(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert process.returncode == 0, process.stderr
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {"TOKENOPT_DATA_DIR": str(tmp_path / "data")}


def test_two_cents_on_the_measured_basis(tokenopt: Run, here: dict[str, str]) -> None:
    answer = _json(
        tokenopt("search", "--basis", "measured", "--hardware", "b200-sxm", "--price", "b200-sxm=1.95", "--format", "json",
                 env=here)
    )  # fmt: skip
    best = answer["best"][0]
    assert best["basis"] == "measured"
    assert best["usd_per_m_tokens"] == pytest.approx(0.02, rel=0.10)
    assert answer["measured"][0]["between"][0]["source_ref"]
    assert best["weight_gb_per_chip"] is None


def test_the_default_shows_the_measured_figure_beside_the_prediction(tokenopt: Run, here: dict[str, str]) -> None:
    flags = ("search", "--slo-ms", "20", "--hardware", "b200-sxm")
    answer = _json(tokenopt(*flags, "--format", "json", env=here))
    (solution,) = answer["by_accelerator"]
    assert solution["basis"] == "calibrated"
    assert solution["measured_usd_per_m_tokens"] == answer["measured"][0]["usd_per_m_tokens"]
    assert solution["measured_ratio"] == pytest.approx(
        solution["usd_per_m_tokens"] / solution["measured_usd_per_m_tokens"]
    )
    table = tokenopt(*flags, env=here, width=160).stdout
    assert "model/meas." in table
    assert "measured b200-sxm: " in table
    alone = _json(tokenopt(*flags, "--basis", "calibrated", "--format", "json", env=here))
    assert alone["measured"] == []
    assert alone["by_accelerator"][0]["measured_ratio"] is None
    assert alone["by_accelerator"][0]["usd_per_m_tokens"] == solution["usd_per_m_tokens"]


def test_the_price_doubles_and_so_does_the_measured_cost(tokenopt: Run, here: dict[str, str]) -> None:
    def cost(usd: float) -> float:
        answer = _json(
            tokenopt("search", "--basis", "measured", "--hardware", "b200-sxm", "--price", f"b200-sxm={usd}", "--slo-ms", "15",
                     "--format", "json", env=here)
        )  # fmt: skip
        value: float = answer["best"][0]["usd_per_m_tokens"]
        return value

    assert cost(4.0) / cost(2.0) == pytest.approx(2.0)


def test_a_users_own_points_answer_too(tokenopt: Run, here: dict[str, str]) -> None:
    assert tokenopt("measured", "import", str(FIXTURES / "sweep.csv"), env=here).returncode == 0
    flags = (
        "search",
        "--model",
        "llama-3.1-8b",
        "--hardware",
        "h100-sxm",
        "--price",
        "h100-sxm=2",
        "--basis",
        "measured",
    )
    answer = _json(tokenopt(*flags, "--slo-ms", "10", "--format", "json", env=here))
    (found,) = [item for item in answer["measured"] if item["between"][0]["source"] == "own sweep"]
    assert found["tpot_ms"] == pytest.approx(10.0, rel=1e-6)
    assert found["is_interpolated"]
    # 8 replicas of one chip on a node of eight, each between 140 and 4,200 tokens/s.
    assert found["usd_per_m_output_tokens"] == pytest.approx(16.0 / (found["output_tps"] * 3600 / 1e6))
    assert 140.0 < found["output_tps_per_chip"] < 4200.0


def test_without_measurements_it_says_which_shapes_there_are(tokenopt: Run, here: dict[str, str]) -> None:
    done = tokenopt("search", "--basis", "measured", "--isl", "3000", "--osl", "300", env=here)
    assert done.returncode == 1
    assert "nothing measured of gpt-oss-120b at 3000/300" in done.stderr
    assert "1024/1024" in done.stderr
    done = tokenopt("search", "--basis", "measured", "--slo-ms", "0.5", env=here)
    assert done.returncode == 3
    assert "no measured point of gpt-oss-120b" in done.stderr
    assert "never extrapolated" in done.stderr
    done = tokenopt("search", "--basis", "guess", env=here)
    assert done.returncode == 2


def test_a_damaged_store_does_not_keep_a_search_from_answering(
    tokenopt: Run, here: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "data" / "measured.sqlite"
    store.parent.mkdir()
    store.write_bytes(b"no database at all " * 50)
    done = tokenopt("search", "--hardware", "b200-sxm", "--format", "json", env=here)
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert not math.isnan(json.loads(done.stdout)["best"][0]["usd_per_m_tokens"])
