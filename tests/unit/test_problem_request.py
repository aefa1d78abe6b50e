"""Every input is checked at the border: wrong types, sizes and contradictions are told by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenopt.errors import ExitCode, SpecError
from tokenopt.problem import SearchRequest
from tokenopt.request import checked, target_output_tps, tpot_limit_ms

NUMBERS = ("isl", "osl", "prefix_hit", "utilization", "pue", "kv_overlap")
LIMITS = ("slo_ms", "tpot_ms", "ttft_ms", "e2e_ms", "min_interactivity", "target_tps", "target_rps")
WHOLE = ("top", "threads", "max_batch", "max_chips", "prices_max_age")
LISTS = ("tp", "pp", "ep", "attn_dp", "chunk_tokens")
TEXTS = ("model", "objective", "engine", "term", "precision", "kv_precision", "mode", "draft_model")
TEXT_LISTS = ("hardware", "vendor", "provider", "region", "prefill_hardware", "decode_hardware")


def _refused(**fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        checked(SearchRequest(**fields))
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


def test_the_defaults_pass_unchanged() -> None:
    assert checked(SearchRequest()) == SearchRequest()


@pytest.mark.parametrize("name", [*NUMBERS, *LIMITS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300, 10**400, "50", True, [50]])
def test_numbers(name: str, value: object) -> None:
    assert name in _refused(**{name: value})


@pytest.mark.parametrize("name", [name for name in (*NUMBERS, *LIMITS) if name not in ("prefix_hit", "kv_overlap")])
def test_zero_is_no_size_limit_or_target(name: str) -> None:
    assert f"{name} is 0" in _refused(**{name: 0})


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [-1, 2.5, math.nan, math.inf, 10**20, 10**400, "3", True])
def test_whole_numbers(name: str, value: object) -> None:
    assert name in _refused(**{name: value})


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [0, -2, [4, 0], [math.inf], [1.5], 1 << 40, ["8"], None, {8}])
def test_lists_of_degrees(name: str, value: object) -> None:
    assert name in _refused(**{name: value})


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [3, "", "  ", ["fp8"]])
def test_texts(name: str, value: object) -> None:
    assert name in _refused(**{name: value})


@pytest.mark.parametrize("name", TEXT_LISTS)
@pytest.mark.parametrize("value", [3, "", ["b200-sxm", 4], None])
def test_lists_of_texts(name: str, value: object) -> None:
    assert name in _refused(**{name: value})


@pytest.mark.parametrize("name", ["spot", "announced", "exhaustive"])
def test_switches(name: str) -> None:
    assert f"{name} is 'no'" in _refused(**{name: "no"})


@pytest.mark.parametrize(
    "price", [{"l4": 0}, {"l4": -1}, {"l4": math.nan}, {"l4": math.inf}, {"l4": "2"}, {"l4": 1e9}, {3: 1}, [("l4", 2)]]
)
def test_quotes(price: Any) -> None:
    assert "price" in _refused(price=price)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"objective": "joy"}, "expected cost, energy, throughput"),
        ({"term": "forever"}, "on-demand"),
        ({"kv_precision": "int3"}, "bf16"),
        ({"isl": 0.5}, "at least 1 token"),
        ({"pue": 0.9}, "at least 1"),
        ({"prefix_hit": 1.01}, "from 0 to 1"),
        ({"slo_ms": 50, "tpot_ms": 40}, "both name the same limit"),
        ({"target_tps": 1e6, "target_rps": 1}, "1,024 tokens/s"),
        ({"spot": True, "term": "owned"}, "give one of them"),
    ],
)
def test_ranges_choices_and_contradictions(fields: dict[str, Any], expected: str) -> None:
    assert expected in _refused(**fields)


def test_what_agrees_is_accepted() -> None:
    request = checked(SearchRequest(slo_ms=50, tpot_ms=50, target_tps=1024e3, target_rps=1000, spot=True, term="spot"))
    assert tpot_limit_ms(request) == 50
    assert target_output_tps(request) == 1024e3


def test_a_rate_of_requests_is_a_rate_of_tokens() -> None:
    assert target_output_tps(checked(SearchRequest(target_rps=10, osl=256))) == 2560
    assert target_output_tps(checked(SearchRequest())) is None
    assert tpot_limit_ms(checked(SearchRequest(tpot_ms=30))) == 30


def test_one_stands_for_a_list_of_one() -> None:
    request = checked(SearchRequest(hardware="b200-sxm", vendor="nvidia", tp=4, chunk_tokens=2048.0))  # type: ignore[arg-type]
    assert (request.hardware, request.vendor, request.tp, request.chunk_tokens) == (
        ("b200-sxm",),
        ("nvidia",),
        (4,),
        (2048,),
    )


def test_numbers_of_other_libraries_become_plain() -> None:
    request = checked(SearchRequest(isl=numpy.int64(512), slo_ms=numpy.float32(50), top=numpy.int32(3)))  # type: ignore[arg-type]
    assert json.loads(json.dumps([request.isl, request.slo_ms, request.top])) == [512.0, 50.0, 3]


def test_a_path_and_a_quote_in_capitals(tmp_path: Path) -> None:
    request = checked(SearchRequest(model=tmp_path / "config.json", price={"B200-SXM": 2}))  # type: ignore[arg-type]
    assert request.model == str(tmp_path / "config.json")
    assert request.price == {"b200-sxm": 2.0}


@given(st.dictionaries(st.sampled_from((*NUMBERS, *LIMITS, *WHOLE, *LISTS)), st.floats() | st.integers(), max_size=4))
def test_whatever_number_comes_it_is_refused_or_can_cross_into_the_core(fields: dict[str, Any]) -> None:
    try:
        request = checked(SearchRequest(**fields))
    except SpecError:
        return
    json.dumps({field.name: getattr(request, field.name) for field in dataclasses.fields(request)}, allow_nan=False)
