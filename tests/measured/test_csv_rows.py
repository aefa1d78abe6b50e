"""Tables of measured rows as spreadsheets, databases and people write them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokenopt.cli import run
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import UNUSABLE, day_of, read_rows, spelled

Cli = Callable[..., "Outcome"]

CURVE = {
    "id": "row-1", "source": "lab", "measured_on": "2026-04-02", "model": "llama-3.1-70b", "accelerator": "h200-sxm",
    "engine": "trtllm", "engine_version": "1.0.0", "mode": "agg", "weight_precision": "fp8", "isl": "1024", "osl": "1024",
    "concurrency": "64", "tp": "2", "pp": "1", "attn_dp": "1", "moe_tp": "", "moe_ep": "", "ttft_ms": "200", "tpot_ms": "20",
}  # fmt: skip
PUBLISHED = {
    "id": "row-1", "source": "lab", "date": "2026-04-02", "model": "deepseek-r1", "weight_precision": "fp4", "kv_precision": "",
    "gpu": "gb200-nvl72", "n_gpus": "12", "tp": "8", "pp": "", "ep": "8", "attn_dp": "1", "disagg": "1", "prefill_gpus": "4",
    "decode_gpus": "8", "framework": "dynamo+sglang", "framework_version": "", "isl": "1024", "osl": "1024",
    "concurrency": "256", "scenario": "fixed-concurrency", "output_tps_per_gpu": "1000", "total_tps_per_gpu": "",
    "tps_per_user": "", "ttft_ms": "500", "tpot_ms": "10", "prefill_tp": "4", "prefill_ep": "4", "prefill_attn_dp": "1",
    "prefill_workers": "1", "decode_workers": "1", "notes": "",
}  # fmt: skip
STEP = {
    "id": "row-1", "source": "lab", "date": "2026-04", "task": "pretrain", "model": "llama-3.1-8b", "params_b": "8.03",
    "active_params_b": "8.03", "precision": "bf16", "gpu": "h100-sxm", "n_gpus": "64", "seq_len": "8192",
    "global_batch": "128", "micro_batch": "1", "tp": "1", "pp": "1", "vpp": "", "cp": "1", "ep": "", "dp": "64",
    "framework": "nemo", "framework_version": "25.04", "tokens_per_s_per_gpu": "9000", "step_time_s": "", "notes": "",
}  # fmt: skip


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process."""

    def call(*arguments: str) -> Outcome:
        code = run(arguments)
        return Outcome(code, *capsys.readouterr())

    return call


def write(
    path: Path, rows: list[dict[str, str]], separator: str = ",", encoding: str = "utf-8", end: str = "\n"
) -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    return path


def predictions(cli: Cli, tmp_path: Path, kind: str, *rows: dict[str, str], **form: str) -> list[dict[str, str]]:
    """Predicted columns of rows, through the command."""
    out = tmp_path / "rows.csv"
    result = cli("validate", kind, "--data", str(write(tmp_path / "in.csv", list(rows), **form)), "--rows", str(out))
    assert result.code == 0, result.stderr
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predicted(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name.startswith("pred_")}


@pytest.mark.parametrize(
    ("kind", "plain", "other"),
    [
        ("serving", CURVE, {"model": "meta-llama/Llama-3.1-70B-Instruct", "accelerator": "NVIDIA H200", "engine": "TensorRT-LLM",
                            "mode": "Aggregated", "weight_precision": "FP8", "isl": "1,024", "measured_on": "02.04.2026"}),
        ("serving", PUBLISHED, {"model": "DeepSeek-R1-0528", "gpu": "GB200", "framework": "Dynamo + SGLang", "disagg": "True",
                                "attn_dp": "yes", "weight_precision": "NVFP4", "date": "2026/4/2", "concurrency": "256.0"}),
        ("training", STEP, {"model": "Meta-Llama-3.1-8B", "gpu": "H100 SXM5", "task": "Pre-Training", "precision": "BFloat16",
                            "seq_len": "8,192", "date": "April 2026", "vpp": "N/A"}),
    ],
)  # fmt: skip
def test_spelling_changes_no_prediction(
    kind: str, plain: dict[str, str], other: dict[str, str], cli: Cli, tmp_path: Path
) -> None:
    first = predicted(predictions(cli, tmp_path, kind, plain)[0])
    assert any(first.values())
    shuffled = {"comment": "x", **dict(reversed(list({**plain, **other}.items())))}
    for form in (
        {},
        {"separator": ";", "encoding": "utf-8-sig", "end": "\r\n"},
        {"separator": "\t", "encoding": "utf-16"},
    ):
        assert predicted(predictions(cli, tmp_path, kind, shuffled, **form)[0]) == first


def test_one_bad_row_does_not_take_the_others_down(cli: Cli, tmp_path: Path) -> None:
    bad: dict[str, Any] = {
        "tp": "1e30", "pp": "0.5", "attn_dp": "-1", "isl": "abc", "concurrency": "", "model": "unheard-of",
        "accelerator": "toaster", "weight_precision": "fp3", "mode": "sideways",
    }  # fmt: skip
    rows = [CURVE, *({**CURVE, "id": name, name: value} for name, value in bad.items())]
    found = {row["id"]: row for row in predictions(cli, tmp_path, "serving", *rows)}
    assert found["row-1"]["pred_tpot_ms"]
    for name, value in bad.items():
        assert not found[name]["pred_tpot_ms"]
        assert (value or "concurrency") in found[name]["reason"]


def test_an_unreadable_result_leaves_the_operating_point(cli: Cli, tmp_path: Path) -> None:
    first = predicted(predictions(cli, tmp_path, "serving", CURVE)[0])
    assert predicted(predictions(cli, tmp_path, "serving", {**CURVE, "ttft_ms": "fast", "tpot_ms": "nan"})[0]) == first


def test_a_dense_model_that_the_catalogue_lacks_is_predicted_by_its_size(cli: Cli, tmp_path: Path) -> None:
    row = predictions(
        cli, tmp_path, "training", {**STEP, "model": "smollm3-3b", "params_b": "3", "active_params_b": "3"}
    )[0]
    known = predictions(cli, tmp_path, "training", {**STEP, "model": "llama-3.2-3b"})[0]
    assert "plain dense one of 3 billion" in row["assumed"]
    assert row["unscored"]
    assert float(row["pred_tokens_per_s_per_chip"]) == pytest.approx(
        float(known["pred_tokens_per_s_per_chip"]), rel=0.2
    )


def test_a_worker_fills_its_chips_where_printed_degrees_do_not(cli: Cli, tmp_path: Path) -> None:
    whole = {**PUBLISHED, "tp": "8", "ep": "8", "prefill_tp": "4", "prefill_ep": "4"}
    partly = {**PUBLISHED, "tp": "1", "ep": "1", "prefill_tp": "1", "prefill_ep": "1"}
    one, other = predictions(cli, tmp_path, "serving", whole, {**partly, "id": "row-2"})
    assert predicted(one) == predicted(other)


def test_a_file_without_a_predictable_row_says_why_and_still_writes_its_rows(cli: Cli, tmp_path: Path) -> None:
    data = write(tmp_path / "in.csv", [{**CURVE, "model": "unheard-of"}])
    result = cli("validate", "serving", "--data", str(data), "--rows", str(tmp_path / "out.csv"))
    assert result.code == 2
    assert "no row of" in result.stderr
    assert "1 row: model 'unheard-of' is not in the catalogue" in result.stderr
    assert "unheard-of" in (tmp_path / "out.csv").read_text()


def test_json_of_few_rows_is_json(cli: Cli, tmp_path: Path) -> None:
    data = write(tmp_path / "in.csv", [{**CURVE, "tpot_ms": ""}])
    result = cli("validate", "serving", "--data", str(data), "--format", "json")
    assert json.loads(result.stdout, parse_constant=pytest.fail)["overall"]["tpot_ms"]["n"] == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"), (b"\x00\x01\x02", "not text"), (b"\xff\xd8\xff\xe0 JFIF", "neither UTF-8"),
        (b'{"rows": []}', "is JSON"), (b"id,model\n", "no column"), (b"a\nb\n", "no column"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_one_sentence(content: bytes, sentence: str, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(content)
    for kind in ("serving", "training"):
        result = cli("validate", kind, "--data", str(file))
        assert result.code == 2
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gone\.csv does not exist"):
        read_rows(tmp_path / "gone.csv", ("id",), "a table")


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-04-02", "2026-04-02"), ("2026-04", "2026-04"), ("2025", "2025"), ("2026/4/2", "2026-04-02"),
        ("20260402", "2026-04-02"), ("2026-04-02T10:00:00Z", "2026-04-02"), ("04/22/2026", "2026-04-22"),
        ("22/04/2026", "2026-04-22"), ("02.04.2026", "2026-04-02"), ("Apr 22, 2026", "2026-04-22"),
        ("22 April 2026", "2026-04-22"), ("April 2026", "2026-04"), ("Q3 2025", "2025-Q3"), ("2025 Q3", "2025-Q3"),
        ("1767225600", "2026-01-01"), ("yesterday", ""), ("99/99/2026", "2026"),
    ],
)  # fmt: skip
def test_a_day_in_many_forms(text: str, day: str) -> None:
    assert day_of(text) == day


def test_zero_and_words_for_nothing_are_blank() -> None:
    row = spelled({"id": "x", "tp": "0", "pp": "auto", "ep": "None", "isl": "NaN"})
    assert row[UNUSABLE] == ""
    assert row["ep"] == row["isl"] == ""
