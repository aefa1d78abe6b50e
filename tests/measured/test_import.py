"""Benchmark files of every kind are read with the right units; anything else is refused and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenopt.errors import SpecError
from tokenopt.measured.importer import FileResult, import_files
from tokenopt.measured.store import imports, read_points, remove_points, summary

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "measured.sqlite"


def _read(store: Path, *names: str, **options: Any) -> tuple[list[FileResult], list[dict[str, Any]]]:
    results = import_files([FIXTURES / name for name in names], store=store, **options)
    return results, read_points(path=store)


def _only(store: Path, name: str, **options: Any) -> dict[str, Any]:
    results, points = _read(store, name, **options)
    assert [result.message for result in results] == [""]
    assert len(points) == 1
    return points[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # InferenceX: seconds become ms, chips are all GPUs once, output per chip counts every pool.
        ("inferencex_agg.json", {"model": "deepseek-r1", "accelerator": "h200-sxm", "engine": "sglang", "chips": 8.0,
                                 "ttft_ms": 300.0, "tpot_ms": 20.0, "output_tps_per_chip": 200.0, "concurrency": 32.0}),
        ("inferencex_overview.json", {"tps_per_user": 1 / 0.009, "total_tps_per_chip": 200.0, "attn_dp": 1.0}),
        # Its export says ms over seconds; interactivity tells.
        ("inferencex_export.csv", {"ttft_ms": 80.0, "tpot_ms": 10.0, "chips": 8.0, "output_tps": 400.0}),
        ("vllm_run.json", {"model": "llama-3.1-8b", "engine": "vllm", "concurrency": 16.0, "isl": 1000.0, "osl": 200.0,
                           "output_tps": 400.0, "ttft_ms": 50.0, "tpot_ms": 20.0, "measured_on": "2026-05-01"}),
        ("sglang.jsonl", {"engine": "sglang", "request_rate": None, "concurrency": 32.0, "isl": 1024.0, "osl": 512.0,
                          "tpot_ms": 19.0, "e2e_ms": 10000.0}),
        ("aiperf.json", {"model": "gpt-oss-120b", "concurrency": 16.0, "ttft_ms": 180.0, "tpot_ms": 11.5, "isl": 2000.0}),
        ("genai_perf.json", {"model": "llama-3.1-8b", "concurrency": 10.0, "ttft_ms": 150.0, "tpot_ms": 10.0,
                             "tpot_p99_ms": 20.0, "e2e_ms": 990.0}),
        ("aiperf_c8.csv", {"concurrency": 8.0, "output_tps": 1000.0, "isl": 2000.0, "tpot_ms": 11.5, "completed": 96.0}),
        ("guidellm.json", {"model": "llama-3.1-8b", "concurrency": 8.0, "output_tps": 640.0, "e2e_ms": 1500.0,
                           "ttft_ms": 40.0, "tpot_ms": 11.9}),
        ("inference_perf.json", {"request_rate": 20.0, "tpot_ms": 7.4, "ttft_ms": 44.0, "output_tps": 1200.0,
                                 "scenario": "rate"}),
        ("llmperf_summary.json", {"model": "llama-2-70b", "ttft_ms": 210.0, "tpot_ms": 14.5, "concurrency": 5.0,
                                  "requests_per_s": 1.4, "measured_on": "2023-12-21"}),
        ("llmperf_individual.json", {"ttft_ms": 400.0, "tpot_ms": 20.0, "completed": 3.0, "failed": 1.0}),
        ("multi_turn.json", {"concurrency": 16.0, "tpot_ms": 24.0, "prefix_hit": 0.25, "output_tps": 600.0}),
        ("trtllm_console.txt", {"model": "llama-3.1-70b", "chips": 8.0, "output_tps_per_chip": 1000.0,
                                "weight_precision": "fp8", "osl": 512.0, "scenario": "offline"}),
        ("trtllm_summary.csv", {"engine": "trtllm", "isl": 1024.0, "osl": 128.0, "output_tps": 3500.0}),
        ("llm_inference_bench.csv", {"accelerator": "h100-sxm", "chips": 2.0, "model": "llama-3-8b", "concurrency": 16.0,
                                     "total_tps_per_chip": 2048.0, "output_tps_per_chip": 1024.0, "e2e_ms": 8000.0}),
        ("qps.csv", {"accelerator": "h100-sxm", "chips": 8.0, "model": "llama-3.1-405b", "weight_precision": "fp8",
                     "request_rate": 16.0, "scenario": "rate", "ttft_ms": 400.0, "output_tps_per_chip": 125.0}),
        ("tgi.csv", {"isl": 900.0, "osl": 150.0, "tpot_ms": 157.0, "ttft_ms": 3200.0}),
        ("neuron.csv", {"accelerator": "inf2", "chips": 12.0, "tpot_ms": 15.0, "output_tps_per_chip": 50.0,
                        "concurrency": 8.0, "osl": 8064.0}),
        ("neuron_training.csv", {"kind": "training", "accelerator": "trn1", "chips": 64.0, "train_tps": 6.0 * 8192}),
        ("training_v5.1_llama31_8b_result_0.txt", {"kind": "training", "model": "llama-3.1-8b", "time_to_train_min": 60.0,
                                                   "samples_per_s": 50.0, "train_tps": 50.0 * 8192,
                                                   "accelerator": "b200-sxm"}),
        ("mlperf_table_utf16.csv", {"model": "gpt-oss-120b", "accelerator": "mi355x", "chips": 16.0,
                                    "output_tps_per_chip": 10000.0, "source": "MLPerf Inference v6.0"}),
    ],
)  # fmt: skip
def test_figures_and_units(store: Path, name: str, expected: dict[str, Any]) -> None:
    point = _only(store, name)
    for column, value in expected.items():
        assert point[column] == (pytest.approx(value) if isinstance(value, float) else value), column


def test_a_disaggregated_run_counts_both_pools(store: Path) -> None:
    _, points = _read(store, "inferencex_benchmarks.json")
    assert len(points) == 4
    (point,) = [point for point in points if point["mode"] == "disagg"]
    assert (point["chips"], point["prefill_chips"], point["decode_chips"]) == (20.0, 4.0, 16.0)
    assert point["output_tps"] == pytest.approx(310.0 * 16)
    assert point["output_tps_per_chip"] == pytest.approx(310.0 * 16 / 20)
    assert (point["speculative"], point["engine"]) == ("mtp", "dynamo-trtllm")
    assert (point["tp"], point["attn_dp"]) == (1.0, 8.0)


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("vllm_lines.json", 2), ("tgi_llama-3.1-8b_tp_2_summary.json", 2), ("accelmark.json", 2),
        ("system_load_test.json", 2), ("system_load_test.csv", 2), ("sweep.csv", 2), ("training_summary.csv", 2),
        ("mlperf_table_wide.csv", 2), ("mlperf_summary.json", 3),
    ],
)  # fmt: skip
def test_every_point_is_read(store: Path, name: str, points: int) -> None:
    results, found = _read(store, name)
    assert (results[0].message, results[0].points, len(found)) == ("", points, points)


def test_phases_of_a_system_load_test(store: Path) -> None:
    _, points = _read(
        store, "system_load_test.json", given={"accelerator": "B200", "chips": 8, "model": "gpt-oss-120b"}
    )
    last = max(points, key=lambda point: point["concurrency"])
    assert last["output_tps_per_chip"] == pytest.approx(600.0)
    assert (last["accelerator"], last["model"], last["tpot_ms"]) == ("b200-sxm", "gpt-oss-120b", 12.5)
    assert last["e2e_ms"] == pytest.approx(12900.0)


def test_mlperf_rows_that_are_no_answer_are_counted(store: Path) -> None:
    results, points = _read(store, "mlperf_summary.json")
    skipped = results[0].skipped
    assert skipped["no accelerator (processors alone)"] == 1
    assert skipped["mixed accelerators in one system"] == 1
    assert skipped["not a language model of the catalogue: resnet50"] == 1
    by_scenario = {point["scenario"]: point for point in points}
    # Accelerators are per node; a language model's Queries/s are tokens/s.
    assert by_scenario["server"]["output_tps_per_chip"] == pytest.approx(3000.0)
    assert by_scenario["interactive"]["output_tps"] == 64000.0
    assert by_scenario["offline"]["power_w_per_chip"] == pytest.approx(1000.0)


def test_a_log_is_read_with_its_system_and_once(store: Path) -> None:
    results, points = _read(store, "mlperf_run")
    assert [result.message for result in results] == ["", "", ""]
    (point,) = points
    assert (point["accelerator"], point["chips"], point["model"]) == ("b200-sxm", 8.0, "llama-3.1-405b")
    assert (point["scenario"], point["output_tps_per_chip"]) == ("interactive", 100.0)
    assert (point["tpot_p99_ms"], point["ttft_p99_ms"], point["osl"]) == (78.0, 2500.0, 640.0)


def test_flags_fill_what_the_file_does_not_say(store: Path) -> None:
    point = _only(store, "vllm_run.json", given={"accelerator": "mi300x", "chips": 2, "tp": 2, "model": "gpt-oss-120b"})
    assert (point["accelerator"], point["chips"], point["output_tps_per_chip"]) == ("mi300x", 2.0, 200.0)
    assert point["model"] == "llama-3.1-8b", "the file's own word stands"


def test_the_same_file_twice_is_there_once(store: Path) -> None:
    _read(store, "inferencex_benchmarks.json")
    results, points = _read(store, "inferencex_benchmarks.json")
    assert (results[0].points, results[0].new, len(points)) == (4, 0, 4)
    assert [record.new for record in imports(store)] == [4, 0]


def test_removing_an_import(store: Path) -> None:
    _read(store, "inferencex_benchmarks.json")
    _read(store, "sweep.csv")
    number = imports(store)[-1].id
    assert remove_points(import_id=number, path=store) == 2
    assert {line["model"] for line in summary(path=store)} == {"deepseek-r1"}
    assert remove_points(where={"model": "deepseek*"}, path=store) == 4
    assert read_points(path=store) == []


_RUN = (FIXTURES / "vllm_run.json").read_text()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.json", _RUN[: len(_RUN) // 2].encode(), "not whole JSON"),
        ("cut_list.json", b'[{"hardware": "b200", "framework": "trt"', "not whole JSON"),
        ("broken_line.jsonl", b'{"output_throughput": 1.0}\n{"output_thr', "line 2"),
        ("latin.csv", "Concurrency,Größe\n1,2\n".encode("latin-1"), "neither UTF-8 nor UTF-16"),
        ("zeros.bin.txt", b"abc\x00\x00\x00", "not text"),
        ("empty.json", b"", "is empty"),
        ("empty_list.json", b"[]", "not a benchmark result"),
        ("other.json", b'{"name": "x", "dependencies": {}}', "not a benchmark result"),
        ("number.json", b"[1, 2]", "not a benchmark result"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("prose.txt", b"Dear all,\nplease find the results attached.\n", "not a benchmark result"),
        ("people.csv", b"name,age\nAda,36\n", "not a benchmark result"),
        ("nan.json", _RUN.replace('"output_throughput": 400.0', '"output_throughput": NaN').encode(), "output_tps"),
        ("negative.json", _RUN.replace('"median_tpot_ms": 20.0', '"median_tpot_ms": -20.0').encode(), "tpot_ms"),
        ("infinite.json", _RUN.replace('"output_throughput": 400.0', '"output_throughput": Infinity').encode(), "inf"),
        ("huge.json", _RUN.replace('"median_tpot_ms": 20.0', '"median_tpot_ms": 2e9').encode(), "expected 0 to"),
        ("list_in_field.json", _RUN.replace('"completed": 100', '"completed": [1]').encode(), ""),
        ("failed.json", (FIXTURES / "vllm_all_failed.json").read_bytes(), "every request failed (100)"),
        ("availability.json", (FIXTURES / "inferencex_availability.json").read_bytes(), "availability only"),
        ("aborted.txt", (FIXTURES / "training_aborted_result_1.txt").read_bytes(), "run is aborted"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_and_changes_nothing(
    store: Path, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    _read(store, "sweep.csv")
    before = store.read_bytes()
    file = tmp_path / name
    file.write_bytes(content)
    (result,) = import_files([file], store=store)
    if says:
        assert says in result.message, result.message
        assert "\n" not in result.message
        assert store.read_bytes() == before
    else:
        assert not result.message


def test_a_refused_file_does_not_keep_the_others_out(store: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    results = import_files([bad, FIXTURES / "sweep.csv"], store=store)
    assert [bool(result.message) for result in results] == [True, False]
    assert len(read_points(path=store)) == 2


def test_invalid_rows_may_be_left_out(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.csv"
    file.write_text((FIXTURES / "sweep.csv").read_text().replace(",150,14,", ",150,-14,"))
    (result,) = import_files([file], store=store)
    assert "tpot_ms of point 2 is -14" in result.message
    (result,) = import_files([file], skip_invalid=True, store=store)
    assert (result.points, result.skipped["tpot_ms is impossible"]) == (1, 1)


def test_a_wrong_format_is_named(store: Path) -> None:
    results, _ = _read(store, "vllm_run.json", file_format="mlperf-inference")
    assert "does not have the shape of mlperf-inference" in results[0].message
    with pytest.raises(SpecError, match="expected auto, inferencex"):
        import_files([FIXTURES / "vllm_run.json"], file_format="excel", store=store)


def test_order_and_absence_of_fields_do_not_matter(store: Path, tmp_path: Path) -> None:
    run = json.loads(_RUN)
    shuffled = dict(sorted(run.items(), reverse=True))
    for name in ("burstiness", "tokenizer_id", "mean_itl_ms", "median_itl_ms", "p99_ttft_ms", "date"):
        shuffled.pop(name)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(shuffled))
    (result,) = import_files([file], store=store)
    assert (result.message, result.points) == ("", 1)


def test_every_fixture_is_read_or_refused_in_one_sentence(store: Path) -> None:
    results = import_files([FIXTURES], store=store)
    refused = {Path(result.file).name for result in results if result.message}
    assert refused == {"inferencex_availability.json", "vllm_all_failed.json", "training_aborted_result_1.txt"}
    assert sum(result.new for result in results) == len(read_points(path=store))


def test_a_table_with_an_open_quote_is_refused(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "open.csv"
    header, row = (FIXTURES / "sweep.csv").read_text().splitlines()[:2]
    file.write_text(f'{header}\n{row}\n"' + row.replace(",", '",x"', 3) + "\n")
    (result,) = import_files([file], store=store)
    assert result.message or result.points <= 2
    assert "Traceback" not in result.message


def test_a_log_behind_megabytes_of_noise_is_read(store: Path, tmp_path: Path) -> None:
    log = (FIXTURES / "training_v5.1_llama31_8b_result_0.txt").read_text()
    file = tmp_path / "training_v5.1_llama31_8b_result_0.txt"
    file.write_text("[05/01/2026-08:10:00] starting, please wait\n" * 40_000 + log)
    (result,) = import_files([file], store=store)
    assert (result.message, result.points) == ("", 1)


def test_series_over_time_are_no_points(store: Path, tmp_path: Path) -> None:
    value = json.loads((FIXTURES / "accelmark.json").read_text())
    value["metrics"] = {"sustained": {"throughput_tokens_per_sec": 900.0, "samples": [{"tokens_per_sec": 1.0}] * 50}}
    file = tmp_path / "accelmark.json"
    file.write_text(json.dumps(value))
    (result,) = import_files([file], store=store)
    assert (result.message, result.points) == ("", 1)


SERVED = {
    "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B-Instruct", "num_prompts": 200, "request_rate": "inf",
    "max_concurrency": 32, "duration": 40.0, "completed": 200, "total_input_tokens": 204800, "total_output_tokens": 25600,
    "request_throughput": 5.0, "output_throughput": 640.0, "total_token_throughput": 5760.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Only percentiles; accelerator and count in one text.
        ({**SERVED, "p50_ttft_ms": 110.0, "p50_tpot_ms": 11.0, "p99_ttft_ms": 300.0, "gpu": "2xH100"},
         {"ttft_ms": 110.0, "tpot_ms": 11.0, "accelerator": "h100-sxm", "chips": 2.0, "output_tps_per_chip": 320.0}),
        ({"backend": "engine", "successful_requests": 100, "total_latency": 10.0, "total_input_tokens": 100000,
          "total_output_tokens": 20000, "request_throughput": 10.0, "output_throughput": 2000.0, "total_throughput": 12000.0},
         {"engine": "sglang", "scenario": "offline", "isl": 1000.0, "osl": 200.0, "output_tps": 2000.0}),
        ({"run_name": "default", "batch_size": 16, "input_len": 1024, "output_len": 128, "prefill_latency": 0.2,
          "prefill_throughput": 81920.0, "median_decode_latency": 0.01, "median_decode_throughput": 1600.0,
          "total_latency": 1.6, "overall_throughput": 11520.0},
         {"scenario": "batch", "concurrency": 16.0, "ttft_ms": 200.0, "tpot_ms": 10.0, "output_tps": 1280.0}),
        ({"elapsed_time": 20.0, "num_requests": 1000, "total_num_tokens": 512000, "requests_per_second": 50.0,
          "tokens_per_second": 25600.0}, {"engine": "vllm", "scenario": "offline", "total_tps": 25600.0}),
        ({"benchmark": "System Load Test", "hardware": "8xH200", "phases": [
            {"concurrency": 64, "system_output_throughput": 5000.0, "median_output_speed_per_query": 80.0}]},
         {"concurrency": 64.0, "tpot_ms": 12.5, "accelerator": "h200-sxm", "chips": 8.0, "output_tps_per_chip": 625.0}),
    ],
)  # fmt: skip
def test_shapes_of_other_versions(store: Path, tmp_path: Path, content: Any, expected: dict[str, Any]) -> None:
    import gzip

    file = tmp_path / "run.json.gz"
    file.write_bytes(gzip.compress(json.dumps(content).encode("utf-8-sig")))
    results = import_files([file], store=store)
    assert [result.message for result in results] == [""]
    (point,) = read_points(path=store)
    for column, value in expected.items():
        assert point[column] == (pytest.approx(value) if isinstance(value, float) else value), column


def test_a_broken_gzip_file_is_refused_in_one_sentence(store: Path, tmp_path: Path) -> None:
    import gzip

    file = tmp_path / "run.json.gz"
    file.write_bytes(gzip.compress(json.dumps(SERVED).encode())[:-12])
    (result,) = import_files([file], store=store)
    assert "not a whole gzip file" in result.message
