"""Published measurements become operating points by stated rules."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tokenopt.measured.published import Layout, PublishedRow, engine_name, generation_of, read_published, version_of
from tokenopt.measured.published_notes import operating_point
from tokenopt.measured.published_rows import compile_published
from tokenopt.measured.published_validate import load_published, parameter_sets, ratios, score, unscored
from tokenopt.plugins import default_registry

COLUMNS = [
    "id", "source", "date", "model", "weight_precision", "kv_precision", "gpu", "n_gpus", "tp", "pp", "ep", "attn_dp", "disagg",
    "prefill_gpus", "decode_gpus", "framework", "framework_version", "isl", "osl", "concurrency", "scenario",
    "output_tps_per_gpu", "total_tps_per_gpu", "tps_per_user", "ttft_ms", "tpot_ms", "notes",
]  # fmt: skip

BASE = {
    "model": "llama-3.1-8b", "weight_precision": "bf16", "gpu": "a100-sxm-80", "n_gpus": "1", "tp": "1", "disagg": "0",
    "framework": "vllm", "framework_version": "0.11.0", "isl": "1000", "osl": "500", "concurrency": "8",
    "scenario": "fixed-concurrency", "tpot_ms": "12",
}  # fmt: skip


def entry(**changed: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | BASE | {"id": "row-1"} | changed


def read(**changed: str) -> PublishedRow:
    found = read_published([entry(**changed)], default_registry().accelerators)
    assert not found.refused, found.refused
    return found.rows[0]


def refused(**changed: str) -> str:
    return read_published([entry(**changed)], default_registry().accelerators).refused["row-1"]


def test_remarks_become_columns() -> None:
    point = operating_point(
        {
            "notes": "dataset sharegpt_x1, max output 512; open loop, target QPS 2.5 (achieved 2); 9 s for 300 requests; p"
        }
    )
    assert (point["requests_per_s"], point["requests"], point["longest_osl"]) == ("2.5", "300", "512")
    limits = operating_point({"notes": "rule: TTFT p99<=450ms TPOT p99<=40ms; measured p99_ttft_ms=436"})
    assert (limits["ttft_limit_s"], limits["tpot_limit_s"]) == ("0.45", "0.04")
    pools = operating_point({"notes": "prefill tp4/ep2/dpattn=1 x3 workers; decode tp8/ep8/dpattn=0 x6 workers"})
    assert (pools["prefill_tp"], pools["prefill_workers"], pools["decode_workers"]) == ("4", "3", "6")


def test_columns_win_over_remarks() -> None:
    assert operating_point({"notes": "target QPS 5", "requests_per_s": "7"})["requests_per_s"] == "7"


@pytest.mark.parametrize(
    ("framework", "gpu", "engine"),
    [
        ("dynamo+tensorrt-llm", "b200-sxm", "trtllm"),
        ("mori+sglang", "mi355x", "sglang"),
        ("vllm", "tpu-v7", "vllm-tpu"),
        ("nxd-inference+vllm", "trn2", "neuronx"),
        ("", "gaudi3", "optimum-habana"),
    ],
)
def test_engines_have_catalogue_names(framework: str, gpu: str, engine: str) -> None:
    assert engine_name(framework, default_registry().accelerators[gpu]) == engine


def test_versions_and_generations() -> None:
    assert version_of("lmsysorg/sglang:v0.5.12-rocm700") == (0, 5)
    assert version_of("TensorRT 10.8; CUDA 12.8") == (10, 8)
    assert version_of("docs") is None
    assert generation_of("vllm", "0.7.3 (ROCm 6.3.1)", is_server=False) == "vllm-v0 offline"
    assert generation_of("vllm", "v0.11.0", is_server=True) == ""


def test_the_version_of_a_router_is_not_that_of_its_engine() -> None:
    image = "nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1"
    routed = {
        "framework": "dynamo+tensorrt-llm",
        "framework_version": image,
        "disagg": "1",
        "prefill_gpus": "4",
        "decode_gpus": "8",
    }
    assert read(model="deepseek-r1", gpu="b200-sxm", tp="8", n_gpus="12", **routed).generation == ""
    assert read(framework="tensorrt-llm", framework_version="0.14.0").generation == "trtllm-v0 server"


def test_pools_share_the_clients() -> None:
    row = read(
        model="deepseek-r1", gpu="b200-sxm", n_gpus="52", tp="8", ep="8", attn_dp="1", disagg="1", concurrency="256",
        prefill_gpus="4", decode_gpus="48", notes="prefill tp4/ep4/dpattn=1 x1 workers; decode tp8/ep8/dpattn=1 x6 workers",
    )  # fmt: skip
    assert row.pools is not None
    assert (row.layout.attn_dp, row.pools.decode_workers, row.pools.prefill.attn_dp) == (8, 6.0, 4)
    assert (row.concurrency, row.replicas) == (256.0, 1.0)


def test_cores_are_not_chips() -> None:
    row = read(gpu="inf2", n_gpus="12", tp="24", framework="transformers-neuronx", scenario="static-batch")
    assert (row.layout.tp, row.replicas, row.load) == (12, 1.0, "static")


def test_chips_beyond_the_layout_are_replicas() -> None:
    row = read(n_gpus="8", tp="2", concurrency="64")
    assert (row.layout.tp, row.replicas, row.concurrency) == (2, 4.0, 16.0)


def test_attention_ranks_take_the_place_of_tensor_parallelism() -> None:
    row = read(model="deepseek-r1", gpu="b200-sxm", n_gpus="8", tp="8", ep="8", attn_dp="1")
    assert (row.layout.tp, row.layout.attn_dp, row.layout.ep) == (1, 8, 8)


def test_littles_law_gives_chips_that_are_not_printed() -> None:
    # 64 requests of 1,500 tokens, each 500 x 12 ms = 6 s: 16,000 tokens/s, 2,000 a chip.
    row = read(n_gpus="", tp="", concurrency="64", total_tps_per_gpu="2000")
    assert row.layout.tp == 8


def test_mlperf_tries_layouts_under_its_limits() -> None:
    row = read(id="mlp51-0001", model="llama-2-70b", gpu="h100-sxm", n_gpus="8", tp="", isl="", osl="", scenario="server",
               weight_precision="", concurrency="", tpot_ms="", output_tps_per_gpu="3000")  # fmt: skip
    assert {layout.tp for layout in (row.layout, *row.alternatives)} >= {1, 2, 4, 8}
    assert row.load["limited"]["tpot_s"] == 0.2
    assert row.weight_precision == "fp8"


def test_what_cannot_be_known_has_a_reason() -> None:
    assert refused(scenario="iso-interactivity", concurrency="") == "operating point not printed"
    assert refused(gpu="abacus") == "accelerator abacus is not in the catalogue"
    assert refused(isl="", osl="") == "lengths not printed"
    assert refused(scenario="fixed-qps") == "request rate not printed"


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


SCENARIOS = [
    entry(id="closed"),
    entry(id="offline", scenario="offline-max", concurrency="", tpot_ms="", output_tps_per_gpu="2000"),
    entry(id="burst", scenario="offline-burst", concurrency="100", tpot_ms="", output_tps_per_gpu="2000",
          notes="max output 512"),
    entry(id="static", scenario="static-batch", tpot_ms="", output_tps_per_gpu="600"),
    entry(id="open", scenario="fixed-qps", concurrency="", notes="target QPS 2 (achieved 2); 300 requests; x"),
    entry(id="slow", weight_precision="w4a16", tpot_ms="20"),
    entry(id="huge", model="deepseek-r1"),
]  # fmt: skip


def test_every_scenario_is_predicted(tmp_path: Path) -> None:
    registry = default_registry()
    compiled = load_published([write(tmp_path / "p.csv", SCENARIOS)], registry)
    predicted = compiled.predict(parameter_sets(compiled))
    ids = [row.id for row in compiled.rows]
    assert ids == [row["id"] for row in SCENARIOS]
    reasons = dict(zip(ids, unscored(compiled, predicted), strict=True))
    assert reasons["huge"] == "does not fit in memory"
    assert "16-bit" in reasons["slow"]
    of = ratios(compiled, predicted)
    # An 8B model on an A100 is known territory: every scenario is within a factor of two.
    for index, name in enumerate(ids[:5]):
        assert 0.5 < of["primary"][index] < 2.0, name
    result = score("test", compiled, predicted, registry)
    assert result.refused == {"does not fit in memory": 1}
    assert result.by["class"]["offline maximum"]["primary"].n == 1


def test_validate_takes_published_columns(tmp_path: Path) -> None:
    source = write(tmp_path / "p.csv", [*SCENARIOS, entry(id="iso", scenario="iso-interactivity", concurrency="")])
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "tokenopt", "validate", "serving", "--data", str(source), "--rows", str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "class open loop" in answer.stdout
    with out.open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert rows["iso"]["reason"] == "operating point not printed"
    assert not rows["iso"]["pred_tpot_ms"]
    assert float(rows["open"]["pred_tpot_ms"]) > 0
    assert not rows["open"]["reason"]
    assert float(rows["slow"]["pred_output_tps_per_chip"]) > 0


def test_attention_ranks_that_are_not_printed_are_tried() -> None:
    table = {"scenario": "offline-max", "framework": "tensorrt-llm", "gpu": "b200-sxm", "tp": "8", "n_gpus": "8"}
    row = read(model="qwen3-235b-a22b", framework_version="1.0", **table)
    assert row.layout == Layout(tp=8)
    assert row.alternatives == (Layout(attn_dp=8, ep=8),)
    # Printed, dense, or an engine too old to replicate attention: as it stands.
    assert read(model="qwen3-235b-a22b", framework_version="1.0", attn_dp="0", **table).alternatives == ()
    assert read(model="llama-3.1-70b", framework_version="1.0", **table).alternatives == ()
    assert read(model="qwen3-235b-a22b", framework_version="0.17", **table).alternatives == ()


def test_a_decode_pool_does_not_prefill() -> None:
    registry = default_registry()
    pool = {"disagg": "1", "attn_dp": "1", "model": "deepseek-r1", "gpu": "gb200-nvl72", "framework": "sglang"}
    pool |= {"weight_precision": "fp8", "concurrency": ""}
    raw = [
        entry(id="mixed", scenario="offline-max", tp="16", n_gpus="16", **(pool | {"disagg": ""})),
        entry(id="decode", scenario="offline-max-decode", tp="16", decode_gpus="16", **pool),
        entry(id="free", scenario="offline-max-decode", tp="", n_gpus="", **pool),
    ]
    found = read_published(raw, registry.accelerators)
    assert [row.is_decode_pool for row in found.rows] == [False, True, True]
    # A pool whose span nobody printed may be any width of its domain.
    assert {option.chips for option in found.rows[2].alternatives} == {8, 16, 32, 64}
    compiled = compile_published(found, registry)
    mixed, decode, free = compiled.predict(parameter_sets(compiled))[:, 2]
    assert mixed < decode <= free
