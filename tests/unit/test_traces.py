"""Traces in the shapes in which they are published, and bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenopt.errors import SpecError
from tokenopt.traces import Trace, load_trace


def read(tmp_path: Path, text: str, name: str = "trace.csv") -> Trace:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_trace(path)


def test_own_columns_in_any_order(tmp_path: Path) -> None:
    trace = read(tmp_path, "osl,arrival,isl\n20,3.5,100\n10,2.5,50\n")
    assert (trace.arrivals_s, trace.isl, trace.osl) == ([0.0, 1.0], [50, 100], [10, 20])
    summary = trace.summary()
    assert (summary.requests, summary.isl, summary.osl, summary.seconds) == (2, 75, 15, 1.0)
    assert summary.isl_cv == pytest.approx(1 / 3)


def test_dates_with_seven_decimals(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n",
    )
    assert trace.arrivals_s == pytest.approx([0.0, 0.052])
    assert list(trace.isl) == [4808, 3180]


def test_prefill_and_decode_tokens_with_and_without_arrival(tmp_path: Path) -> None:
    timed = read(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.3,396,109\n")
    assert timed.arrivals_s == [0.0, 4.3]
    lengths = read(tmp_path, "num_prefill_tokens,num_decode_tokens,pd_ratio\n3772,54,69.9\n2015,156,12.9\n")
    assert lengths.arrivals_s is None
    assert lengths.summary().requests_per_s is None


def test_request_and_response_tokens_without_failed_requests(tmp_path: Path) -> None:
    trace = read(tmp_path, "Timestamp,Model,Request tokens,Response tokens\n5,a,472,18\n45,b,1087,0\n118,a,417,276\n")
    assert trace.arrivals_s == [0.0, 113.0]
    assert trace.skipped == 1


def test_prefix_blocks_that_were_seen_before_are_cached(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1300, "output_length": 6, "hash_ids": [0, 1, 7]},
        {"timestamp": 4000, "input_length": 900, "output_length": 6, "hash_ids": [9, 1]},
        {"timestamp": 5000, "input_length": 1024, "output_length": 6, "hash_ids": [0, 1]},
    ]
    trace = read(tmp_path, "\n".join(map(json.dumps, lines)), "trace.jsonl")
    assert trace.arrivals_s == [0.0, 3.0, 4.0, 5.0]
    # Two blocks of 512; a block in another place is none; one token is always left to compute.
    assert list(trace.cached) == [0, 1024, 0, 1023]
    assert trace.summary().prefix_hit == pytest.approx(2047 / 4424)


def test_a_replay_log_notes_ends(tmp_path: Path) -> None:
    log = {
        "0": {"in_len": 476, "out_len": 409, "out_len_expected": 1024, "record_time": 105.0, "total_chunk_time": 5.0},
        "4": {"in_len": 182, "out_len": 4677, "out_len_expected": 1024, "record_time": 104.0, "total_chunk_time": 1.0},
    }
    trace = read(tmp_path, json.dumps(log), "log.json")
    assert trace.arrivals_s == [0.0, 3.0]
    assert list(trace.osl) == [409, 1024]


def test_bursts_are_seen(tmp_path: Path) -> None:
    even = "".join(f"{second},100,10\n" for second in range(2000))
    bursts = "".join(f"{second // 100 * 100},100,10\n" for second in range(2000))
    header = "arrival,isl,osl\n"
    even_trace, bursty = read(tmp_path, header + even).summary(), read(tmp_path, header + bursts).summary()
    assert even_trace.burstiness_over(50) < 0.2
    assert bursty.burstiness_over(50) > 10
    assert read(tmp_path, "isl,osl\n1,1\n").summary().burstiness_over(50) == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("arrival,isl\n1,2\n", "no column of output lengths"),
        ("arrival,isl,osl\n", "holds no request"),
        ("arrival,isl,osl\n1,2,0\n", "holds no request"),
        ("arrival,isl,osl\n1,2\n", "line 2: 2 cells, expected 3"),
        ("arrival,isl,osl\nsoon,2,3\n", "line 2: arrival 'soon' is neither seconds nor a date"),
        ("arrival,isl,osl\nnan,2,3\n", "line 2: arrival 'nan' is not a finite number"),
        ("arrival,isl,osl\n1,many,3\n", "line 2: prompt length is 'many'"),
        ("arrival,isl,osl\n1,2,-3\n", "line 2: output length is '-3'"),
        ('{"timestamp": 1}\n{"timestamp": 2}\n', "line 1 is no request of a known shape"),
        ('{"timestamp": 1, "input_length": 3, "output_length": 4}\n{"timestamp"\n', "line 2 is not JSON"),
        ('{"timestamp": "x", "input_length": 3, "output_length": 4}\n', "timestamp is 'x', expected a number"),
        (
            '{"timestamp": 1, "input_length": 3, "output_length": 4}\n{"input_length": 3, "output_length": 4}\n',
            "1 requests have no arrival, the others have one",
        ),
        ('{"sessions": [1, 2]}', "is no request of a known shape"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError) as refusal:
        read(tmp_path, text)
    assert said in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SpecError, match="not a text file"):
        load_trace(tmp_path / "binary.csv")
