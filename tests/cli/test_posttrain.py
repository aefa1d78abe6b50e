"""The search for a post-training plan as users call it: the stage table, placements, laws, bad input."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tokenopt as api
from tests.conftest import answer_of
from tokenopt.catalog.posttraining import FOLDER

Run = Callable[..., subprocess.CompletedProcess[str]]

CHIPS = ("h100-sxm", "h200-sxm", "b200-sxm", "gb200-nvl72", "mi300x", "mi355x", "tpu-v6e")
SCOPE = tuple(flag for chip in CHIPS for flag in ("--hardware", chip))
ONE = ("--hardware", "h100-sxm", "--price", "h100-sxm=2")
PLAN_FIELDS = {
    "placement", "is_overlapped", "pools", "step_time_s", "usd_per_step", "usd_per_m_tokens", "usd_per_run", "days",
    "chips", "gpu_hours", "goodput", "generation_share", "weight_sync_s", "switch_s", "interval", "basis",
}  # fmt: skip


def _answer(tokenopt: Run, *flags: str) -> dict[str, Any]:
    answer: dict[str, Any] = answer_of(tokenopt("posttrain", *flags, "--format", "json"))
    return answer


@pytest.mark.parametrize("policy", ["llama-3.1-8b", "llama-3.1-70b"])
def test_every_stage_on_every_accelerator_with_and_without_sharing(tokenopt: Run, policy: str) -> None:
    answer = _answer(tokenopt, "--policy", policy, *SCOPE, "--asynchronous")
    stages = {stage["stage"] for stage in answer["by_stage"]}
    assert stages == {"generation", "reference log-probs", "policy log-probs", "policy update"}
    for name in stages:
        of_stage = [stage for stage in answer["by_stage"] if stage["stage"] == name]
        assert len({stage["accelerator"] for stage in of_stage}) >= 6
        costs = [stage["usd_per_step"] for stage in of_stage]
        assert costs == sorted(costs)
    kinds = {(plan["placement"], plan["is_overlapped"]) for plan in answer["by_placement"]}
    assert kinds == {("colocated", False), ("split", False), ("split", True), ("separate", False), ("separate", True)}
    for plan in (*answer["best"], *answer["by_accelerator"]):
        assert set(plan) >= PLAN_FIELDS
        assert plan["usd_per_run"] == pytest.approx(500 * plan["usd_per_step"])
        assert plan["usd_per_m_tokens"] == pytest.approx(plan["usd_per_step"] / (4096 * 2560) * 1e6)
        assert plan["interval"]["p10"] < plan["usd_per_m_tokens"] < plan["interval"]["p90"]
        assert plan["chips"] <= 256


def test_sharing_pays_for_switching_and_overlap_for_waiting(tokenopt: Run) -> None:
    answer = _answer(tokenopt, *ONE, "--asynchronous")
    plans = {(plan["placement"], plan["is_overlapped"]): plan for plan in answer["by_placement"]}
    shared = plans["colocated", False]
    seconds = sum(stage["seconds"] for stage in shared["pools"][0]["stages"])
    assert shared["switch_s"] > 0
    assert shared["step_time_s"] > seconds + shared["switch_s"]
    assert shared["weight_sync_s"] > 0
    # Overlapped pools wait for the slower one only, so that at least one of them always works.
    overlapped = plans["split", True]
    assert max(pool["busy"] for pool in overlapped["pools"]) > 0.95
    assert overlapped["usd_per_run"] < plans["split", False]["usd_per_run"]


def test_longer_answers_and_longer_tails_cost_more(tokenopt: Run) -> None:
    def generation(*flags: str) -> float:
        answer = _answer(tokenopt, *ONE, "--max-chips", "64", "--placement", "colocated", *flags)
        return float(answer["by_accelerator"][0]["pools"][0]["stages"][0]["seconds"])

    base = generation()
    assert generation("--response-spread", "0") < base
    assert generation("--response-len", "4096") > base


def test_what_an_algorithm_leaves_out_is_not_paid_for(tokenopt: Run) -> None:
    def stages(*flags: str) -> list[str]:
        answer = _answer(tokenopt, *ONE, "--placement", "colocated", *flags)
        return [stage["stage"] for stage in answer["best"][0]["pools"][0]["stages"]]

    assert stages("--algorithm", "ppo") == [
        "generation", "reward", "reference log-probs", "policy log-probs", "critic values", "critic update",
        "policy update",
    ]  # fmt: skip
    assert stages("--algorithm", "dapo", "--no-old-logprobs") == ["generation", "policy update"]
    assert stages("--algorithm", "dpo") == ["policy update"]
    assert stages("--algorithm", "reward-model") == ["reward-model update"]


def test_the_tables_fit(tokenopt: Run) -> None:
    process = tokenopt("posttrain", *SCOPE, width=100)
    assert process.returncode == 0, process.stderr
    for words in ("Cheapest plan of each placement", "Each stage alone", "All stages on the same chips", "assumed:"):
        assert words in process.stdout


def test_the_api_gives_what_serving_has_to_earn_back() -> None:
    result = api.posttrain(policy="llama-3.1-8b", hardware="h100-sxm", price={"h100-sxm": 2.0}, tokens=1e9)
    half = api.posttrain(
        api.PosttrainRequest(policy="llama-3.1-8b", hardware="h100-sxm", price={"h100-sxm": 1.0}, tokens=1e9)
    )
    assert result.usd_per_run == pytest.approx(2 * half.usd_per_run)
    assert result.usd_per_run == pytest.approx(result.best[0].usd_per_m_tokens * 1e3)


STEPS = Path(__file__).parent / "data" / "rl_steps.csv"
"""Published steps: NVIDIA NeMo-RL performance summary v0.5 and v0.6, verl fully_async.md."""


def test_measured_steps_are_predicted_scored_and_fitted(tokenopt: Run, tmp_path: Path) -> None:
    process = tokenopt("validate", "posttraining", "--data", str(STEPS), "--rows", "out.csv", "--format", "json")
    answer = answer_of(process)
    assert answer["scores"]["all"]["rows"] == 5
    assert answer["scores"]["nemo-rl"]["median"] < 30
    assert set(answer["refused"]) == {"f", "g"}
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "out.csv").read_text().splitlines())}
    assert float(rows["b"]["pred_step_time_s"]) < float(rows["a"]["pred_step_time_s"])
    assert float(rows["a"]["tokens_per_s_per_chip"]) == pytest.approx(2048 * 1019 / 92.8 / 16, rel=1e-3)
    assert rows["g"]["reason"] == "no gpu is printed"
    assert tokenopt("calibrate", "posttraining", "--data", str(STEPS), "--out", "new.toml").returncode == 0
    assert "[stack.nemo-rl]" in (tmp_path / "new.toml").read_text()
    broken = tokenopt("validate", "posttraining", "--data", str(STEPS), "--leave-out", "moon")
    assert broken.returncode == 2
    assert "expected model, stack, group, row" in broken.stderr


def test_the_shipped_calibration_is_the_fit_of_the_bundled_steps(tokenopt: Run, tmp_path: Path) -> None:
    assert tokenopt("calibrate", "posttraining", "--out", "again.toml").returncode == 0
    shipped = max(FOLDER.glob("posttraining-*.toml"))
    assert (tmp_path / "again.toml").read_bytes() == shipped.read_bytes()
    scores = answer_of(tokenopt("validate", "posttraining", "--format", "json"))["scores"]
    assert scores["nemo-rl"]["median"] < 15
    assert scores["all"]["median"] < 20


USAGE = {
    "unknown software": (("--software", "nemo"), "nemo-rl"),
    "unknown policy": (("--policy", "llama-3.1-9b"), "llama-3.1-8b"),
    "unknown algorithm": (("--algorithm", "rlhf"), "grpo"),
    "unknown placement": (("--placement", "together"), "colocated"),
    "a critic for grpo": (("--critic", "llama-3.1-8b"), "only ppo"),
    "answers for dpo": (("--algorithm", "dpo", "--samples", "4"), "generates none"),
    "a reference for dapo": (("--algorithm", "dapo", "--reference", "llama-3.1-8b"), "no KL term"),
    "a reference without kl": (("--no-kl", "--reference", "llama-3.1-8b"), "nothing would use it"),
    "overlap on shared chips": (("--asynchronous", "--placement", "colocated"), "at the same time"),
    "a cut below the mean": (("--max-response-len", "100"), "shorter than the mean"),
    "more minibatches than answers": (("--prompts", "1", "--samples", "2", "--minibatches", "4"), "minibatches is 4"),
    "no prompts": (("--prompts", "0"), "prompts is 0"),
    "a spread that is no number": (("--response-spread", "nan"), "response_spread is nan"),
    "no chips": (("--max-chips", "0"), "max_chips is 0"),
    "beyond the context": (("--response-len", "200000"), "131,072"),
    "an unknown flag": (("--sample", "4"), "--sample"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, tokenopt: Run) -> None:
    flags, expected = USAGE[name]
    process = tokenopt("posttrain", "--hardware", "h100-sxm", *flags)
    assert process.returncode == 2, process.stderr
    assert expected in process.stderr
    assert "Traceback" not in process.stderr
    assert sum(line.startswith("error: ") for line in process.stderr.splitlines()) == 1


INFEASIBLE = {
    "a deadline nothing meets": (("--deadline-days", "0.01"), "relax --deadline-days to"),
    "a policy that fits nowhere": (("--policy", "llama-3.1-70b", "--max-chips", "1"), "fit on no plan"),
}


@pytest.mark.parametrize("name", INFEASIBLE)
def test_infeasible(name: str, tokenopt: Run) -> None:
    flags, expected = INFEASIBLE[name]
    process = tokenopt("posttrain", *ONE, *flags)
    assert process.returncode == 3, process.stderr
    assert expected in process.stderr
    assert process.stdout == ""
