"""What the remarks of a published measurement say about its operating point, as columns.

Published tables print the load of a run (requests, rate, limits, prefill pool) in prose. Here it becomes columns, which the
bundled rows carry instead of the prose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_SECONDS = {"ms": 1e-3, "s": 1.0}


def _first(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def read(notes: str) -> str:
        match = compiled.search(notes)
        return match.group(1) if match else ""

    return read


def _limit(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def read(notes: str) -> str:
        match = compiled.search(notes)
        return f"{float(match.group(1)) * _SECONDS[match.group(2)]:g}" if match else ""

    return read


def _flag(*texts: str) -> Callable[[str], str]:
    return lambda notes: "1" if any(text in notes for text in texts) else ""


COLUMNS: Mapping[str, Callable[[str], str]] = {
    "requests_per_s": _first(r"(?:offered QPS=|target QPS )([\d.]+)"),
    "requests": _first(r"(\d+) requests(?:;| given| at|,|$)"),
    "longest_osl": _first(r"max output (\d+)"),
    "dataset": _first(r"dataset ([\w.-]+?)[;,]"),
    "max_batch": _first(r"max-num-seqs[ =]+(\d+)"),
    "chunk_tokens": _first(r"max-num-batched-tokens[ =]+(\d+)"),
    "prefill_tp": _first(r"prefill (?:tp|\d+ GPU, TP=)(\d+)"),
    "prefill_ep": _first(r"prefill tp\d+/ep(\d+)/"),
    "prefill_attn_dp": _first(r"prefill tp\d+/ep\d+/dpattn=(\d)"),
    "prefill_workers": _first(r"prefill tp\d+/ep\d+/dpattn=\d x(\d+) workers"),
    "decode_tp": _first(r"decode tp(\d+)/"),
    "decode_workers": _first(r"decode tp\d+/ep\d+/dpattn=\d x(\d+) workers"),
    "data_parallel": _first(r"\bdp=(\d+)"),
    "ttft_limit_s": _limit(r"TTFT p99 ?<= ?([\d.]+) ?(ms|s)\b"),
    "tpot_limit_s": _limit(r"TPOT p99 ?<= ?([\d.]+) ?(ms|s)\b"),
    "speculated_tokens": _first(r"(?:MTP-|, )(\d+)(?:,| tokens\))"),
    "is_queue_limited": _flag("QUEUE-LIMITED"),
    "is_all_at_once": _flag("all requests sent at once"),
    "has_failed_accuracy": _flag("accuracy check FAILED"),
    "is_mean_ttft": _flag("mean TTFT", "default mean"),
}
"""How each column is read from the remarks."""


def operating_point(entry: Mapping[str, str]) -> dict[str, str]:
    """The columns of a row, taken from the row where it has them, else from its remarks.

    Args:
        entry: A row as text.

    Returns:
        Text by column; empty where nothing is said.
    """
    notes = entry.get("notes") or ""
    return {name: entry[name] if name in entry else read(notes) for name, read in COLUMNS.items()}
