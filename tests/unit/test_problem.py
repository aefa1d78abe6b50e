"""From a request to the core's problem, on a small catalogue of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from tokenopt.errors import ExitCode, MissingDataError, SpecError
from tokenopt.problem import CompiledProblem, SearchRequest, build_problem
from tokenopt.records import Accelerator, Engine, Offer, Source

TODAY = date(2026, 6, 30)
SOURCE = Source("test", "assumed")

CHIP = Accelerator(
    key="alpha", vendor="acme", name="Acme Alpha", family="greek", launch_year=2025, hbm_bytes=192e9,
    hbm_bytes_per_s=8e12, peak_flops={"bf16": 2e15, "fp8": 4e15, "fp4": 8e15}, scale_up_bytes_per_s=900e9,
    scale_up_domain_chips=8, scale_up_topology="switched", scale_out_bytes_per_s=50e9, chips_per_node=8, tdp_w=700.0,
    sources={"*": SOURCE}, system_w=1000.0,
)  # fmt: skip
OLD = replace(CHIP, key="beta", name="Acme Beta", family="latin", peak_flops={"bf16": 3e14}, system_w=None)
OTHER = replace(CHIP, key="gamma", vendor="zeta", name="Zeta Gamma")
COMING = replace(CHIP, key="delta", name="Acme Delta", status="announced")

ENGINE = Engine(
    name="serve", version="1.0", as_of="2026-01-10", vendor="acme", families=(),
    weight_formats=("bf16", "fp8", "mxfp4", "nvfp4"), kv_formats=("bf16", "fp8", "fp4"), source=SOURCE,
)  # fmt: skip
NEWER = replace(ENGINE, version="1.1", as_of="2026-05-02")
ELSEWHERE = replace(ENGINE, name="other", vendor="zeta", kv_formats=("bf16",))


def _offer(key: str = "alpha", usd: float = 2.0, **fields: Any) -> Offer:
    values: dict[str, Any] = {
        "provider": "north", "instance_type": "a8", "region": "", "term": "on-demand", "chips_per_instance": 8,
        "as_of": "2026-06-20", "source": SOURCE,
    }  # fmt: skip
    return Offer(accelerator=key, usd_per_chip_hr=usd, **{**values, **fields})


OFFERS = [
    _offer(),
    _offer(usd=1.5, term="reserved-1y", provider="south", region="eu-1", as_of="2026-01-01"),
    _offer(usd=1.2, term="spot", provider="south", region="eu-1"),
    _offer(usd=0.9, term="marketplace", provider="bazaar", region="us-1"),
    _offer(usd=1.1, term="owned", provider="own"),
    _offer(usd=0.1, suspect="a tenth of every other price"),
    _offer("beta", 1.0, term="rental", provider="south", region="us-1", as_of="2025-undated"),
    _offer("gamma", 3.0, provider="west", region="us-1"),
]


def _build(*, offers: list[Offer] | None = None, engines: list[Engine] | None = None, **fields: Any) -> CompiledProblem:
    registry: Any = SimpleNamespace(
        accelerators={chip.key: chip for chip in (CHIP, OLD, OTHER, COMING)},
        engines=[ENGINE, NEWER, ELSEWHERE] if engines is None else engines,
        offers=OFFERS if offers is None else offers,
        models={},
        problems=[],
    )
    return build_problem(SearchRequest(**fields), registry, today=TODAY)


def _ranked(problem: CompiledProblem, key: str = "alpha") -> set[float]:
    (chip,) = (chip for chip in problem.core["accelerators"] if chip["key"] == key)
    return {offer["usd_per_chip_hr"] for offer in chip["offers"]}


def _keys(problem: CompiledProblem) -> list[str]:
    return [chip["key"] for chip in problem.core["accelerators"]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {2.0, 1.5}),
        ({"spot": True}, {2.0, 1.5, 1.2, 0.9}),
        ({"term": "spot"}, {1.2}),
        ({"term": "owned"}, {1.1}),
        ({"provider": ["sou*"]}, {1.5}),
        ({"provider": "NORTH"}, {2.0}),
        ({"region": "eu-*"}, {2.0, 1.5}),
        ({"region": "us-1"}, {2.0}),
        ({"prices_max_age": 30}, {2.0}),
        ({"price": {"alpha": 2.1}}, {2.1}),
    ],
)
def test_which_prices_compete(fields: dict[str, Any], expected: set[float]) -> None:
    assert _ranked(_build(hardware="alpha", **fields)) == expected


def test_the_answer_says_what_was_ranked_and_what_was_doubtful() -> None:
    problem = _build()
    assert problem.ranked_terms == ("on-demand", "reserved-1y", "reserved-3y", "rental")
    assert problem.doubtful_prices == 1
    assert _build(term="owned").ranked_terms == ("owned",)


def test_an_offer_number_leads_to_its_offer() -> None:
    problem = _build(spot=True)
    for chip in problem.core["accelerators"]:
        for offer in chip["offers"]:
            known = problem.offers[offer["id"]]
            assert (known.accelerator, known.usd_per_chip_hr) == (chip["key"], offer["usd_per_chip_hr"])


def test_a_quote_stands_for_whole_nodes_and_says_so() -> None:
    problem = _build(hardware="alpha", price={"alpha": 2.1})
    (offer,) = problem.offers
    assert (offer.provider, offer.source.reference, offer.as_of) == ("your quote", "--price", "2026-06-30")
    assert offer.chips_per_instance == 8
    assert [item.value for item in problem.assumptions if item.name == "unit of your quote"] == ["8 x alpha"]


def test_a_chip_without_a_price_is_named_and_left_out() -> None:
    problem = _build(term="rental")
    assert _keys(problem) == ["beta"]
    assert problem.without_price == ["alpha", "gamma"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"provider": "west", "hardware": "alpha"}, "--provider west leaves no"),
        ({"region": "us-1", "hardware": "alpha", "term": "spot"}, "--region us-1 leaves no spot price for alpha"),
        ({"prices_max_age": 3}, "--prices-max-age 3 leaves no"),
        ({"prices_max_age": 10_000, "hardware": "beta"}, "--prices-max-age 10000 leaves no"),
        ({"provider": "nort"}, "provider 'nort' matches nothing"),
        ({"region": "eu-11"}, "region 'eu-11' matches nothing"),
        ({"hardware": "alpha", "vendor": "zeta"}, "no accelerator is left by --hardware alpha --vendor zeta"),
        ({"hardware": "del*"}, "no accelerator is left by --hardware del*"),
        ({"hardware": "alhpa"}, "hardware 'alhpa' matches nothing"),
        ({"vendor": "acne"}, "vendor 'acne' is not known"),
        ({"price": {"omega": 1}}, "unknown accelerator 'omega'"),
        ({"engine": "serv"}, "engine 'serv' is not known"),
        ({"engine": "serve@2025"}, "under serve@2025"),
        ({"engine": "other", "hardware": "alpha"}, "no engine on alpha"),
        ({"precision": "int4"}, "no engine on alpha"),
    ],
)
def test_the_filter_that_leaves_nothing_is_named(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        _build(**fields)
    assert expected in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"hardware": "alhpa"}, "alpha"),
        ({"vendor": "acne"}, "acme"),
        ({"engine": "serv"}, "serve"),
        ({"provider": "nort"}, "north"),
        ({"region": "eu-11"}, "eu-1"),
        ({"price": {"gama": 1}}, "gamma"),
        ({"hardware": "del*"}, "--announced"),
    ],
)
def test_near_names_are_suggested(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        _build(**fields)
    assert any(hint in line for line in caught.value.hints)


def test_no_price_at_all_is_missing_data() -> None:
    with pytest.raises(MissingDataError, match=r"no on-demand.* for alpha is known") as caught:
        _build(hardware="alpha", offers=[])
    assert any("--price alpha=USD" in hint for hint in caught.value.hints)
    with pytest.raises(MissingDataError, match="doubtful"):
        _build(hardware="alpha", offers=[_offer(suspect="odd")])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["alpha", "beta", "gamma"]),
        ({"vendor": ["ACME"]}, ["alpha", "beta"]),
        ({"hardware": ["*a", "beta"], "vendor": "zeta"}, ["gamma"]),
        ({"announced": True, "price": {"delta": 4}}, ["alpha", "beta", "delta", "gamma"]),
        ({"hardware": "delta", "price": {"delta": 4}}, ["delta"]),
        ({"hardware": "*", "price": {"delta": 4}}, ["alpha", "beta", "gamma"]),
    ],
)
def test_scope(fields: dict[str, Any], expected: list[str]) -> None:
    assert _keys(_build(**fields)) == expected


def test_power_is_the_system_s_or_an_assumed_share_more_than_the_chip_s() -> None:
    problem = _build(pue=1.2)
    power = {chip["key"]: chip["power_w"] for chip in problem.core["accelerators"]}
    assert power["alpha"] == pytest.approx(1000 * 1.2)
    assert power["beta"] == pytest.approx(700 * 1.5 * 1.2)
    assert any(item.name == "system power" and "beta" in item.why for item in problem.assumptions)
    assert not any(item.name == "system power" for item in _build(hardware="alpha").assumptions)


def test_the_newest_engine_or_the_one_of_a_date() -> None:
    def labels(**fields: Any) -> set[str]:
        return {stack["label"] for stack in _build(hardware="alpha", **fields).core["stacks"]}

    assert labels() == {"serve@2026-05-02"}
    assert labels(engine="serve") == {"serve@2026-05-02"}
    assert labels(engine="serve@2026-03") == {"serve@2026-01-10"}


def test_formats_follow_chip_and_engine() -> None:
    problem = _build()
    found = {(info.accelerator.key, info.weight_precision, info.kv_precision) for info in problem.stacks}
    assert {kv for key, _, kv in found if key == "alpha"} == {"bf16", "fp8"}
    assert {kv for key, _, kv in found if key == "beta"} == {"bf16"}
    assert {kv for key, _, kv in found if key == "gamma"} == {"bf16"}
    assert {weight for _, weight, _ in found} == {"mxfp4"}
    assert {info.kv_precision for info in _build(hardware="alpha", kv_precision="nvfp4").stacks} == {"fp4"}
    assert _build(hardware="alpha", kv_precision="fp4").core["stacks"][0]["kv_precision"] == "nvfp4"


def test_every_stack_has_every_parameter_and_a_chip() -> None:
    problem = _build()
    names = {frozenset(stack["parameters"]) for stack in problem.core["stacks"]}
    assert len(names) == 1
    for stack, info in zip(problem.core["stacks"], problem.stacks, strict=True):
        assert problem.core["accelerators"][stack["accelerator"]]["key"] == info.accelerator.key


def test_an_engine_with_parameters_that_do_not_exist_is_skipped_and_named() -> None:
    broken = replace(NEWER, parameters={"layer_overhed_s": 1e-5})
    problem = _build(hardware="alpha", engines=[ENGINE, broken])
    assert {stack["label"] for stack in problem.core["stacks"]} == {"serve@2026-01-10"}
    assert len(problem.notes) == 1
    assert "'layer_overhed_s', did you mean layer_overhead_s?" in problem.notes[0]
    assert _build(hardware="alpha").notes == []


def test_an_engine_s_own_parameters_are_used() -> None:
    problem = _build(hardware="alpha", engines=[replace(ENGINE, parameters={"layer_overhead_s": 1.25e-5})])
    assert {stack["parameters"]["layer_overhead_s"] for stack in problem.core["stacks"]} == {1.25e-5}


def test_a_chip_that_no_engine_serves_is_named() -> None:
    problem = _build(engine="serve")
    assert problem.cannot_run == ["gamma"]


def test_the_context_of_the_model_is_the_limit() -> None:
    assert _build(isl=131_072 - 1024).core["workload"]["isl"] == 130_048
    with pytest.raises(SpecError, match="131,073 tokens, beyond the 131,072"):
        _build(isl=131_073 - 1024)


def test_limits_cross_in_si_units() -> None:
    core = _build(slo_ms=50, ttft_ms=1500, e2e_ms=2e4, max_chips=64, min_interactivity=25, target_rps=10, osl=512).core
    assert core["limits"] == {
        "tpot_s": 0.05, "ttft_s": 1.5, "e2e_s": 20.0, "min_tps_per_user": 25.0, "max_chips": 64,
    }  # fmt: skip
    assert core["demand"] == {"output_tps": 5120.0, "utilization": 1.0}


def test_what_was_not_stated_is_an_assumption() -> None:
    # Whether efficiencies are assumed depends on the calibration that is installed, not on the request.
    bare = {item.name for item in _build().assumptions} - {"efficiencies"}
    assert {"model", "isl/osl", "slo", "target", "utilization", "prefix-hit", "pue", "max-batch"} <= bare
    stated = _build(
        model="llama-3.1-8b", isl=512, osl=128, slo_ms=50, target_tps=1e4, utilization=0.7, prefix_hit=0.2, pue=1.1,
        max_batch=256, precision="native", kv_precision="bf16", hardware="alpha", mode="agg",
    )  # fmt: skip
    assert not bare & {item.name for item in stated.assumptions}
    assert all(item.value and item.why for item in stated.assumptions)
