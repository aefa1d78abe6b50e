"""Prefill and decode apart, and speculative decoding, as users ask for them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import tokenopt as api
from tests.conftest import answer_of

Run = Callable[..., subprocess.CompletedProcess[str]]

SMALL = ("search", "--hardware", "h200-sxm", "--price", "h200-sxm=2.5", "--slo-ms", "30", "--isl", "4096")
LARGE = (*SMALL, "--model", "deepseek-r1", "--target-tps", "1e5")


def _best(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    best: dict[str, Any] = answer_of(process)["best"][0]
    return best


def test_both_modes_are_searched_and_compared(tokenopt: Run) -> None:
    answer = answer_of(tokenopt(*SMALL, "--target-tps", "1e5", "--format", "json"))
    by_mode = {solution["layout"]["mode"]: solution for solution in answer["by_mode"]}
    assert set(by_mode) == {"agg", "disagg"}
    assert answer["by_mode"][0]["usd_per_m_tokens"] == answer["best"][0]["usd_per_m_tokens"]
    best = answer["by_accelerator"][0]
    other = by_mode[best["other_mode"]["mode"]]
    assert best["other_mode"]["worse_by"] == pytest.approx(other["usd_per_m_tokens"] / best["usd_per_m_tokens"] - 1)
    for mode, solution in by_mode.items():
        alone = _best(tokenopt(*SMALL, "--target-tps", "1e5", "--mode", mode, "--format", "json"))
        assert alone["usd_per_m_tokens"] == solution["usd_per_m_tokens"]
        assert alone["other_mode"] is None
    table = tokenopt(*SMALL, "--target-tps", "1e5").stdout
    assert "Mode: prefill and decode" in table
    # On equal cost the simpler mode wins, and the sentence says so.
    assert "worse" in table or "no better" in table


def test_a_disaggregated_answer_describes_both_pools(tokenopt: Run) -> None:
    best = _best(tokenopt(*SMALL, "--target-tps", "1e5", "--ttft-ms", "900", "--mode", "disagg", "--format", "json"))
    prefill, decode = best["layout"]["prefill"], best["layout"]["decode"]
    assert prefill["accelerator"] == decode["accelerator"] == "h200-sxm"
    assert prefill["engine"] == decode["engine"]
    assert prefill["kv_precision"] == decode["kv_precision"]
    assert best["chips_used"] == sum(pool["workers"] * pool["chips_per_worker"] for pool in (prefill, decode))
    assert best["chips"] >= best["chips_used"]
    assert best["ttft_ms"] <= 900
    handover = best["handover"]
    parts = ("queue_ms", "prefill_ms", "transfer_ms", "first_step_ms")
    assert sum(handover[part] for part in parts) == pytest.approx(best["ttft_ms"])
    for pool in (prefill, decode):
        assert pool["workers"] * pool["requests_per_s"] >= best["requests_per_s"] * (1 - 1e-9)


def test_pools_may_sit_on_different_accelerators() -> None:
    quotes = {"h200-sxm": 2.5, "l40s": 0.4}
    request: dict[str, Any] = {
        "model": "llama-3.1-8b", "isl": 4096, "osl": 512, "slo_ms": 20, "target_tps": 1e5, "price": quotes,
        "mode": "disagg",
    }  # fmt: skip
    result = api.search(prefill_hardware="l40s", decode_hardware="h200-sxm", **request)
    best = result.best[0]
    assert best.layout.prefill is not None
    assert best.layout.decode is not None
    assert (best.layout.prefill.accelerator, best.layout.decode.accelerator) == ("l40s", "h200-sxm")
    assert best.layout.prefill.offer.usd_per_chip_hr == 0.4
    assert best.layout.decode.offer.usd_per_chip_hr == 2.5
    mixed = api.search(hardware=("l40s", "h200-sxm"), mixed_hardware=True, **request).best[0]
    alone = api.search(hardware=("l40s", "h200-sxm"), **request).best[0]
    assert mixed.usd_per_m_tokens <= min(best.usd_per_m_tokens, alone.usd_per_m_tokens)


def test_speculation_is_searched_where_the_model_has_a_head(tokenopt: Run) -> None:
    best = _best(tokenopt(*LARGE, "--mode", "agg", "--format", "json"))
    assert best["speculation"]["depth"] in (1, 2, 3)
    assert best["speculation"]["draft"] is None
    off = _best(tokenopt(*LARGE, "--mode", "agg", "--spec", "off", "--format", "json"))
    assert off["speculation"] is None
    assert best["usd_per_m_tokens"] <= off["usd_per_m_tokens"]
    never = _best(tokenopt(*LARGE, "--mode", "agg", "--acceptance", "0", "--format", "json"))
    assert never["speculation"] is None
    assert never["usd_per_m_tokens"] == off["usd_per_m_tokens"]
    given = _best(tokenopt(*LARGE, "--mode", "agg", "--spec", "3", "--accepted-tokens", "2.176", "--format", "json"))
    # 1 + 0.6 + 0.36 + 0.216
    assert given["speculation"]["acceptance"] == pytest.approx(0.6)


def test_a_draft_model_costs_time_and_memory() -> None:
    request: dict[str, Any] = {
        "model": "llama-3.1-70b", "hardware": "h200-sxm", "price": {"h200-sxm": 2.5}, "slo_ms": 30, "mode": "agg",
    }  # fmt: skip
    sure = api.search(draft_model="llama-3.1-8b", spec=3, acceptance=0.9, **request).best[0]
    assert sure.speculation is not None
    assert sure.speculation.draft == "llama-3.1-8b"
    poor = api.search(draft_model="llama-3.1-8b", spec=3, acceptance=0.0, **request).best[0]
    none = api.search(**request).best[0]
    assert sure.usd_per_m_tokens < poor.usd_per_m_tokens
    assert none.speculation is None
    assert none.usd_per_m_tokens < poor.usd_per_m_tokens


def test_explain_shows_the_pair(tokenopt: Run) -> None:
    flags = (
        "--hardware",
        "h200-sxm",
        "--model",
        "deepseek-r1",
        "--slo-ms",
        "30",
        "--price",
        "h200-sxm=2.5",
        "--spec",
        "2",
    )
    pair = answer_of(tokenopt("explain", *flags, "--format", "json"))["speculation"]
    assert pair["with"]["step_ms"] > pair["without"]["step_ms"]
    assert pair["with"]["tokens_per_step"] > pair["without"]["tokens_per_step"] == 1
    assert pair["speedup"] == pytest.approx(pair["without"]["tpot_ms"] / pair["with"]["tpot_ms"])
    assert "Speculative decoding" in tokenopt("explain", *flags).stdout


def test_engines_limit_the_batch(tokenopt: Run) -> None:
    flags = ("search", "--hardware", "b200-sxm", "--price", "b200-sxm=2", "--engine", "vllm", "--format", "json")
    for solution in answer_of(tokenopt(*flags))["best"]:
        assert solution["batch_per_rank"] * solution["layout"]["pp"] <= 1024
    assert _best(tokenopt(*flags, "--max-batch", "8"))["batch_per_rank"] <= 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--mode", "agg", "--mixed-hardware"), "mode agg has no pools"),
        (("--mode", "disagg", "--osl", "1"), "at least 2 output tokens"),
        (("--kv-overlap", "1.5"), "kv_overlap is 1.5"),
        (("--spec", "many"), "spec is 'many'"),
        (("--spec", "99"), "spec is '99'"),
        (("--spec", "3"), "no multi-token-prediction head"),
        (("--acceptance", "0.5"), "no multi-token-prediction head"),
        (("--model", "deepseek-r1", "--acceptance", "2"), "acceptance is 2"),
        (("--model", "deepseek-r1", "--accepted-tokens", "2"), "needs the number of drafted tokens"),
        (("--model", "deepseek-r1", "--spec", "1", "--accepted-tokens", "3"), "expected 1 to 2"),
        (("--model", "deepseek-r1", "--spec", "off", "--acceptance", "0.5"), "spec is off"),
        (("--draft-model", "llama-3.1-8b"), "must use the same tokens"),
        (("--draft-model", "no-such"), "no-such"),
        (("--prefill-hardware", "no-such"), "prefill hardware 'no-such' matches nothing"),
        (("--max-batch", "0"), "max_batch is 0"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tokenopt: Run, flags: tuple[str, ...], said: str) -> None:
    process = tokenopt("search", *flags)
    assert process.returncode == 2
    assert said in process.stderr
    assert "Traceback" not in process.stderr


def test_a_pool_without_a_price_is_named(tokenopt: Run) -> None:
    process = tokenopt("search", "--prefill-hardware", "rtx-4090", "--decode-hardware", "h200-sxm", "--term", "owned")
    assert process.returncode in (0, 1, 2)
    if process.returncode:
        assert "price" in process.stderr


def test_pools_that_cannot_meet_are_infeasible(tokenopt: Run) -> None:
    process = tokenopt(*SMALL, "--mode", "disagg", "--ttft-ms", "1")
    assert process.returncode == 3
    assert "relax --ttft-ms to" in process.stderr


def test_explain_breaks_both_pools_down(tokenopt: Run) -> None:
    flags = ("--model", "llama-3.1-8b", "--hardware", "h200-sxm", "--price", "h200-sxm=2.5", "--engine", "vllm",
             "--precision", "fp8", "--kv-precision", "fp8", "--isl", "4096", "--osl", "512", "--slo-ms", "20",
             "--ttft-ms", "400", "--target-tps", "1e5", "--mode", "disagg")  # fmt: skip
    best = _best(tokenopt("search", *flags, "--format", "json"))
    answer = answer_of(tokenopt("explain", *flags, "--format", "json"))
    solution = answer["solution"]
    for name in ("usd_per_m_tokens", "ttft_ms", "tpot_ms", "chips", "layout", "handover", "why"):
        assert solution[name] == best[name], name
    prefill, decode = answer["pools"]
    pools = solution["layout"]
    assert (prefill["role"], decode["role"]) == ("prefill", "decode")
    # A worker has pp prompts a rank in the making, each of which keeps its stage for the time of one more prompt.
    prompts_per_s = pools["prefill"]["attn_dp"] * pools["prefill"]["pp"] / answer["prompt"]["marginal_ms"] * 1e3
    assert prompts_per_s * pools["prefill"]["utilization"] * pools["prefill"]["workers"] == pytest.approx(1e5 / 512)
    assert decode["step_ms"] == pytest.approx(solution["tpot_ms"])
    assert sum(operator["total_ms"] for operator in decode["operators"]) == pytest.approx(decode["step_ms"])
    # 32 layers, keys and values of 8 heads of 128 in a byte: 65,536 B a token. 4,096 tokens of prompt cross; a request
    # keeps room for 4,608 tokens, a prompt for 4,097.
    assert solution["handover"]["cache_gb"] == pytest.approx(65_536 * 4_096 / 1e9)
    assert pools["decode"]["tp"] == pools["decode"]["pp"] == 1
    assert decode["kv_gb"] == pytest.approx(decode["held_requests"] * 65_536 * 4_608 / 1e9)
    shards = pools["prefill"]["tp"] * pools["prefill"]["pp"]
    assert prefill["kv_gb"] == pytest.approx(prefill["held_requests"] * 65_536 * 4_097 / 1e9 / shards)
    # Those that run, and those whose cache is on its way (2 x 10^-5 s of latency and the rate of the links).
    assert solution["batch_per_rank"] <= decode["held_requests"] <= solution["batch_per_rank"] * 1.05
    for pool in (prefill, decode):
        assert pool["held_requests"] <= pool["capacity_requests"]
        assert pool["weight_gb"] + pool["kv_gb"] + pool["activation_gb"] <= pool["plannable_gb"]
        assert sum(pool["step_shares"].values()) == pytest.approx(1)
        assert all(parameter["origin"] for parameter in pool["parameters"])
    table = tokenopt("explain", *flags).stdout
    for words in ("Pools: ", "Prefill worker, one chunk", "Decode worker, one step", "waiting for a prefill worker"):
        assert words in table


def test_explain_of_pools_on_different_chips_and_what_it_refuses(tokenopt: Run) -> None:
    flags = ("explain", "--model", "llama-3.1-8b", "--prefill-hardware", "l40s", "--decode-hardware", "h200-sxm", "--price",
             "l40s=0.4", "--price", "h200-sxm=2.5", "--slo-ms", "20", "--target-tps", "1e5", "--mode", "disagg")  # fmt: skip
    answer = answer_of(tokenopt(*flags, "--format", "json"))
    prefill, decode = answer["pools"]
    assert prefill["plannable_gb"] < 48 < decode["plannable_gb"]
    assert "Parameters used, prefill" in tokenopt(*flags).stdout
    refused = tokenopt(*flags, "--batch", "8")
    assert refused.returncode == 2
    assert "batch names the load of a replica" in refused.stderr
