"""The search for a training run as users call it: the contract, published runs, laws, bad input."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenopt as api
from tests.conftest import answer_of

Run = Callable[..., subprocess.CompletedProcess[str]]

FIELDS = {
    "usd_per_m_tokens", "usd_per_run", "days", "chips", "gpu_hours", "mfu", "hfu", "goodput", "tokens_per_s_per_chip",
    "step_time_s", "layout", "memory_gb", "kwh_per_m_tokens", "interval", "basis", "why", "accelerator", "offer",
}  # fmt: skip
LLAMA = (
    "train", "--model", "llama-3.1-405b", "--tokens", "15.6e12", "--seq-len", "8192", "--global-batch", "16e6",
    "--hardware", "h100-sxm", "--max-chips", "16384",
)  # fmt: skip
SMALL = ("train", "--model", "llama-3.1-8b", "--tokens", "1e11", "--hardware", "h100-sxm", "--max-chips", "64")


def test_a_published_run_is_reproduced(tokenopt: Run) -> None:
    """Llama 3 405B on 16,384 H100: 38 to 43% of peak in the paper, more than 90% of the time effective."""
    answer = answer_of(tokenopt(*LLAMA, "--format", "json"))
    assert answer["schema"] == 1
    best = answer["best"][0]
    assert set(best) >= FIELDS
    assert 0.36 <= best["mfu"] <= 0.46
    assert 0.88 <= best["goodput"] <= 0.97
    layout = best["layout"]
    assert layout["tp"] * layout["pp"] * layout["cp"] * layout["dp"] == best["chips_used"] <= best["chips"] <= 16384
    assert layout["tp"] in (2, 4, 8)
    assert layout["pp"] > 1
    assert best["days"] <= 90
    assert best["interval"]["p10"] < best["usd_per_m_tokens"] < best["interval"]["p90"]
    assert best["usd_per_run"] == pytest.approx(best["usd_per_m_tokens"] * 15.6e6)
    assert best["usd_per_run"] == pytest.approx(best["gpu_hours"] * best["offer"]["usd_per_chip_hr"])


def test_the_lists_keep_the_contract(tokenopt: Run) -> None:
    answer = answer_of(tokenopt(*SMALL, "--hardware", "b200-sxm", "--format", "json"))
    assert {"problem", "evaluated", "pruned", "feasible", "rejected", "best", "by_accelerator", "frontier"} <= set(
        answer
    )
    assert [entry["accelerator"] for entry in answer["by_accelerator"]].count("h100-sxm") == 1
    costs = [entry["usd_per_m_tokens"] for entry in answer["best"]]
    assert costs == sorted(costs)
    days = [entry["days"] for entry in answer["frontier"]]
    money = [entry["usd_per_run"] for entry in answer["frontier"]]
    assert days == sorted(days)
    assert money == sorted(money, reverse=True)
    kinds = [(e["accelerator"], *(e["layout"][k] for k in ("tp", "pp", "cp", "ep"))) for e in answer["best"]]
    assert len(set(kinds)) == len(kinds)


def test_exhaustive_finds_the_same(tokenopt: Run) -> None:
    flags = (*SMALL[:-1], "32", "--cp", "1", "--micro-batch", "1", "--format", "json")
    pruned = answer_of(tokenopt(*flags))
    exhaustive = answer_of(tokenopt(*flags, "--exhaustive"))
    for table in ("best", "by_accelerator", "frontier"):
        assert pruned[table] == exhaustive[table]
    assert pruned["evaluated"] < exhaustive["evaluated"]


def test_spot_is_cheaper_per_hour_and_loses_more(tokenopt: Run) -> None:
    flags = (*SMALL, "--price", "h100-sxm=2", "--format", "json", "--mtbf-hours")
    calm, rough = (answer_of(tokenopt(*flags, hours))["best"][0] for hours in ("1e6", "2000"))
    assert rough["goodput"] < calm["goodput"]
    assert rough["usd_per_run"] > calm["usd_per_run"]


def test_batch_units_follow_the_rule(tokenopt: Run) -> None:
    def batch(*flags: str) -> int:
        return int(answer_of(tokenopt(*SMALL, *flags, "--format", "json"))["best"][0]["global_batch"])

    assert batch("--global-batch", "512") == 512
    assert abs(batch("--global-batch", "4e6") - 488) <= 0.05 * 489
    assert batch("--global-batch", "524288", "--seq-len", "4096", "--global-batch-unit", "tokens") in range(122, 135)


def test_the_table_fits_and_names_the_answer(tokenopt: Run) -> None:
    process = tokenopt(*SMALL, width=80)
    assert process.returncode == 0
    assert max(map(len, process.stdout.splitlines()[:20])) <= 80
    for words in ("Cost, USD", "Layout and step", "Days against money", "Goodput", "assumed:"):
        assert words in process.stdout


def test_files_are_written(tokenopt: Run, tmp_path: Path) -> None:
    out = tmp_path / "run.csv"
    assert tokenopt(*SMALL, "--format", "csv", "--out", str(out)).returncode == 0
    header = out.read_text().splitlines()[0]
    assert "usd_per_run" in header
    assert "layout_tp" in header


def test_the_api_and_what_serving_needs() -> None:
    result = api.train(model="llama-3.1-8b", tokens=1e11, hardware="h100-sxm", max_chips=64, recipe="lora")
    again = api.train(
        api.TrainRequest(model="llama-3.1-8b", tokens=1e11, hardware="h100-sxm", max_chips=64, recipe="sft")
    )
    assert 0 < result.usd_per_run < again.usd_per_run
    assert json.loads(result.to_json())["problem"]["job"]["recipe"] == {"lora": {"rank": 16}}


USAGE = {
    "unknown model": (("--model", "llama-3.1-404b"), "llama-3.1-405b"),
    "unknown recipe": (("--recipe", "pretrian"), "pretrain"),
    "unknown format": (("--precision", "fp7"), "bf16"),
    "unknown unit": (("--global-batch-unit", "rows"), "sequences"),
    "no tokens": (("--tokens", "0"), "tokens is 0"),
    "tokens not a number": (("--tokens", "nan"), "tokens is nan"),
    "negative deadline": (("--deadline-days", "-3"), "deadline_days is -3"),
    "half a sequence": (("--global-batch", "0.5"), "sequence"),
    "less than a sequence": (("--global-batch", "4000", "--global-batch-unit", "tokens"), "less than one sequence"),
    "a batch no dp divides": (("--global-batch", "96", "--dp", "7"), "does not divide"),
    "a batch no micro-batch divides": (("--global-batch", "97", "--micro-batch", "2"), "do not divide"),
    "a batch beyond the run": (("--tokens", "1e6"), "more than"),
    "a sequence that cp cannot cut": (("--seq-len", "8190", "--cp", "4"), "8,190"),
    "chips the wrong way round": (("--max-chips", "8", "--min-chips", "16"), "nothing lies between"),
    "half an evaluation": (("--eval-every", "100"), "go together"),
    "documents longer than sequences": (("--document-tokens", "9000"), "longer than a sequence"),
    "spot and owned": (("--spot", "--term", "owned"), "give one of them"),
    "an unknown flag": (("--tokns", "1"), "--tokens"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, tokenopt: Run) -> None:
    flags, expected = USAGE[name]
    process = tokenopt("train", "--hardware", "h100-sxm", *flags)
    assert process.returncode == 2, process.stderr
    assert expected in process.stderr
    assert "Traceback" not in process.stderr
    assert sum(line.startswith("error: ") for line in process.stderr.splitlines()) == 1


INFEASIBLE = {
    "a deadline nothing meets": (("--deadline-days", "0.1"), "relax --deadline-days to"),
    "a budget nothing meets": (("--max-usd", "10"), "relax --max-usd to"),
    "a model that fits nowhere": (("--max-chips", "1"), "GB per chip"),
    "a batch between two sequences": (("--global-batch", "30000"), "divides the global batch of 3.66211 sequences"),
    "a degree nothing allows": (("--global-batch", "1", "--micro-batch", "1", "--dp", "1", "--pp", "64"), "legal"),
}


@pytest.mark.parametrize("name", INFEASIBLE)
def test_infeasible(name: str, tokenopt: Run) -> None:
    flags, expected = INFEASIBLE[name]
    process = tokenopt(*SMALL, *flags)
    assert process.returncode == 3, process.stderr
    assert expected in process.stderr
    assert process.stdout == ""


def test_an_assumed_deadline_gives_way(tokenopt: Run) -> None:
    answer = answer_of(tokenopt(*SMALL[:-2], "--tokens", "1e13", "--max-chips", "16", "--format", "json"))
    assert answer["best"][0]["days"] > 90
    assert any(item["name"] == "deadline" and item["value"] == "none" for item in answer["assumptions"])
