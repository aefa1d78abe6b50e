"""What a user asks of a search, and the checks that every input passes before anything is computed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tokenopt.errors import SpecError
from tokenopt.fields import items as _items
from tokenopt.fields import number as _number
from tokenopt.fields import owners_inputs as _owners_inputs
from tokenopt.fields import positive as _positive
from tokenopt.fields import quotes as _quotes
from tokenopt.fields import text as _text
from tokenopt.fields import whole as _whole
from tokenopt.records import KV_FORMATS, Term

Objective = Literal["cost", "energy", "throughput"]
Mode = Literal["auto", "agg", "disagg"]
Arrival = Literal["closed", "poisson"]

DEFAULT_MODEL = "gpt-oss-120b"
DEFAULT_ISL = 1024
DEFAULT_OSL = 1024
DEFAULT_PUE = 1.25

BASES = ("both", "calibrated", "measured")
"""What an answer may rest on."""

SURE_TERMS: tuple[Term, ...] = ("on-demand", "reserved-1y", "reserved-3y", "rental")
"""Prices a buyer can rent for sure; ranked by default."""
UNSURE_TERMS: tuple[Term, ...] = ("spot", "marketplace")
"""Prices that may be withdrawn; ranked with `spot`."""

_MAX_TOKENS = 1e8
_MAX_MS = 1e7
_MAX_TPS = 1e12
_MAX_CHIPS = 10**9
_MAX_DEGREE = 1 << 20
MOST_DRAFTED = 16
"""Longest draft that is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What a user asks of a search. Field names are those of the flags.

    Attributes:
        model: Catalogue key, Hugging Face id, or path of a config.json.
        isl: Prompt length, tokens.
        osl: Output length, tokens.
        prefix_hit: Share of the prompt found in the prefix cache.
        slo_ms: Limit on time per output token, ms (`tpot_ms` is the same).
        ttft_ms: Limit on time to first token, ms.
        e2e_ms: Limit on the whole request, ms.
        min_interactivity: Least output tokens/s a user sees.
        target_tps: Output tokens/s of the whole fleet.
        target_rps: Requests/s of the whole fleet.
        hardware: Globs on accelerator keys.
        vendor: Vendors.
        engine: `NAME` or `NAME@DATE`.
        anchor: File of one or two measured points of a stack, which shift its prediction.
        provider: Globs on providers.
        region: Globs on regions.
        term: Only offers of this term.
        spot: Rank spot and marketplace offers too.
        announced: Include accelerators that are announced but not shipping.
        price: The user's own quotes, USD per chip-hour by accelerator key.
        prices_max_age: Leave out offers older than this, days.
        tco: Inputs of the owner's cost by name (`usd_per_kwh`, `years`, ...), `KEY:NAME` for one accelerator; with
            `term="owned"`.
        max_chips: Most chips the fleet may pay for.
        precision: Weight precision, or `native`.
        kv_precision: KV-cache precision.
        utilization: Share of the sized throughput that is used on average.
        arrival: How requests arrive: `closed` (a fixed number of clients, the default) or `poisson` (independent users; the
            default with a trace that has arrivals).
        percentile: Share of requests that latencies and their limits hold for, `p50` to `p99.9`; None = the mean.
        trace: File of real requests (see :mod:`tokenopt.traces`) whose lengths, spread and bursts are served.
        verify: Number of the best solutions that are simulated request by request.
        objective: What is minimised (maximised for throughput).
        top: Solutions in `best`.
        exhaustive: Evaluate everything.
        pue: Facility power over IT power.
        threads: Threads of the core; 0 = all.
        max_batch: Largest running batch of an attention rank; None = what the engine allows by default.
        mode: `agg` (prefill and decode on the same chips), `disagg` (in pools of their own) or `auto` (both).
        prefill_hardware, decode_hardware: Globs on accelerator keys that may prefill and decode; they allow pools on
            different accelerators.
        mixed_hardware: Let the pools of a fleet sit on different accelerators.
        kv_overlap: Share of the cache transfer that hides behind the prefill.
        spec: Speculative decoding: `off`, `auto`, or the number of tokens drafted per step.
        acceptance: Chance that a drafted token is accepted when those before it were.
        accepted_tokens: Mean output tokens of a request in a step of `spec` drafted tokens; instead of `acceptance`.
        draft_model: Draft model; the model's own multi-token-prediction head by default.
        tp, pp, ep, attn_dp, chunk_tokens: Restrict the layout space.
        basis: What the answer rests on: the model (`calibrated`), measured points (`measured`), or the model with what was
            measured beside it (`both`).
        calibration: A calibration file, or `shipped` for the one of tokenopt alone; by default the shipped one with the
            user's own on top, where `calibrate serving --mine` has written it.
    """

    model: str = DEFAULT_MODEL
    isl: float = DEFAULT_ISL
    osl: float = DEFAULT_OSL
    prefix_hit: float = 0.0
    slo_ms: float | None = None
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    min_interactivity: float | None = None
    target_tps: float | None = None
    target_rps: float | None = None
    hardware: Sequence[str] = ()
    vendor: Sequence[str] = ()
    engine: str | None = None
    anchor: str | Path | None = None
    provider: Sequence[str] = ()
    region: Sequence[str] = ()
    term: str | None = None
    spot: bool = False
    announced: bool = False
    price: Mapping[str, float] = field(default_factory=dict)
    prices_max_age: int | None = None
    tco: Mapping[str, float | str] = field(default_factory=dict)
    max_chips: int | None = None
    precision: str | None = None
    kv_precision: str | None = None
    utilization: float = 1.0
    arrival: str | None = None
    percentile: str | float | None = None
    trace: str | None = None
    verify: int = 0
    objective: str = "cost"
    top: int = 10
    exhaustive: bool = False
    pue: float = DEFAULT_PUE
    threads: int = 0
    max_batch: int | None = None
    mode: str = "auto"
    prefill_hardware: Sequence[str] = ()
    decode_hardware: Sequence[str] = ()
    mixed_hardware: bool = False
    kv_overlap: float = 0.0
    spec: str | int = "auto"
    acceptance: float | None = None
    accepted_tokens: float | None = None
    draft_model: str | None = None
    tp: Sequence[int] = ()
    pp: Sequence[int] = ()
    ep: Sequence[int] = ()
    attn_dp: Sequence[int] = ()
    chunk_tokens: Sequence[int] = ()
    basis: str = "both"
    calibration: str | None = None


def checked(request: SearchRequest) -> SearchRequest:
    """Checks every field of a request by itself and against the others.

    Args:
        request: As a user gave it: a single text or number may stand for a list of one.

    Returns:
        The same request with plain Python numbers and tuples in its fields.

    Raises:
        SpecError: Names the field, its value and what is legal.
    """
    request = replace(request, **_typed(request))
    _check_ranges(request)
    _check_choices(request)
    _check_agreement(request)
    return request


def _typed(request: SearchRequest) -> dict[str, Any]:
    """Every field in its proper type."""
    fields: dict[str, Any] = {"model": _text("model", request.model), "price": _quotes(request.price)}
    fields["tco"] = _owners_inputs(request.tco)
    fields["objective"] = _text("objective", request.objective)
    fields["basis"] = _text("basis", request.basis)
    fields["mode"] = _text("mode", request.mode)
    fields["spec"] = _spec(request.spec)
    for name in ("calibration", "engine", "term", "precision", "kv_precision", "draft_model"):
        value = getattr(request, name)
        fields[name] = None if value is None else _text(name, value)
    for name in ("hardware", "vendor", "provider", "region", "prefill_hardware", "decode_hardware"):
        value = getattr(request, name)
        fields[name] = tuple(_text(name, item) for item in ([value] if isinstance(value, str) else _items(name, value)))
    for name in ("isl", "osl", "prefix_hit", "utilization", "pue", "kv_overlap"):
        fields[name] = _number(name, getattr(request, name))
    for name in (
        "slo_ms", "tpot_ms", "ttft_ms", "e2e_ms", "min_interactivity", "target_tps", "target_rps", "acceptance",
        "accepted_tokens",
    ):  # fmt: skip
        value = getattr(request, name)
        fields[name] = None if value is None else _number(name, value)
    fields["percentile"] = None if request.percentile is None else percentile_share(request.percentile)
    fields["verify"] = _whole("verify", request.verify)
    for name in ("arrival", "trace"):
        value = getattr(request, name)
        fields[name] = None if value is None else _text(name, value)
    for name in ("top", "threads"):
        fields[name] = _whole(name, getattr(request, name))
    for name in ("max_batch", "max_chips", "prices_max_age"):
        value = getattr(request, name)
        fields[name] = None if value is None else _whole(name, value)
    for name in ("tp", "pp", "ep", "attn_dp", "chunk_tokens"):
        value = getattr(request, name)
        items = [value] if isinstance(value, numbers.Real) else _items(name, value)
        fields[name] = tuple(_whole(name, item) for item in items)
    for name in ("spot", "announced", "exhaustive", "mixed_hardware"):
        if not isinstance(getattr(request, name), bool):
            raise SpecError(f"{name} is {getattr(request, name)!r}, expected True or False")
    return fields


def _spec(value: object) -> str | int:
    text = value.strip() if isinstance(value, str) else value
    if text in ("off", "auto"):
        return str(text)
    if isinstance(text, str) and text.isascii() and text.isdigit():
        text = int(text)
    if isinstance(text, numbers.Integral) and not isinstance(text, bool) and 0 <= int(text) <= MOST_DRAFTED:
        return int(text)
    raise SpecError(f"spec is {value!r}, expected off, auto or the tokens drafted per step, 1 to {MOST_DRAFTED}")


def _check_ranges(request: SearchRequest) -> None:
    for name in ("isl", "osl"):
        value = getattr(request, name)
        _positive(name, value, _MAX_TOKENS)
        if value < 1:
            raise SpecError(f"{name} is {value:g}, expected at least 1 token")
    for name, most in (
        ("slo_ms", _MAX_MS), ("tpot_ms", _MAX_MS), ("ttft_ms", _MAX_MS), ("e2e_ms", _MAX_MS),
        ("min_interactivity", 1e6), ("target_tps", _MAX_TPS), ("target_rps", _MAX_TPS),
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None:
            _positive(name, value, most)
    _positive("utilization", request.utilization, 1.0)
    _positive("pue", request.pue, 5.0)
    if request.pue < 1.0:
        raise SpecError(f"pue is {request.pue:g}, expected at least 1 (facility power over IT power)")
    if not 0.0 <= request.prefix_hit <= 1.0:
        raise SpecError(f"prefix_hit is {request.prefix_hit:g}, expected a share from 0 to 1")
    for name in ("kv_overlap", "acceptance"):
        value = getattr(request, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise SpecError(f"{name} is {value:g}, expected a share from 0 to 1")
    for name, least, limit in (
        ("top", 1, 1000), ("threads", 0, 4096), ("max_batch", 1, 1 << 20), ("max_chips", 1, _MAX_CHIPS),
        ("prices_max_age", 0, 100_000), ("verify", 0, 1000),
    ):  # fmt: skip
        value = getattr(request, name)
        if value is not None and not least <= value <= limit:
            raise SpecError(f"{name} is {value}, expected {least} to {limit}")
    for name in ("tp", "pp", "ep", "attn_dp", "chunk_tokens"):
        for value in getattr(request, name):
            if not 1 <= value <= _MAX_DEGREE:
                raise SpecError(f"{name} holds {value}, expected 1 to {_MAX_DEGREE}")


def _check_choices(request: SearchRequest) -> None:
    for name, legal in (
        ("objective", get_args(Objective)),
        ("basis", BASES),
        ("term", (None, *get_args(Term))),
        ("mode", get_args(Mode)),
        ("arrival", (None, *get_args(Arrival))),
        ("kv_precision", (None, *KV_FORMATS, "nvfp4")),
    ):
        value = getattr(request, name)
        if value not in legal:
            raise SpecError(f"{name} is {value!r}, expected {', '.join(filter(None, legal))}")


def percentile_share(percentile: object) -> float:
    """`p99`, `99` or 99 as the share 0.99.

    Raises:
        SpecError: It is no percentile from 50 to 99.9.
    """
    text = percentile.strip().lower().removeprefix("p") if isinstance(percentile, str) else percentile
    try:
        value = float(text) if isinstance(text, str) else _number("percentile", text)
    except ValueError:
        value = math.nan
    # A checked request holds the share already.
    share = value if 0.5 <= value < 1.0 else value / 100.0
    if not 0.5 <= share <= 0.999:
        raise SpecError(f"percentile is {percentile!r}, expected p50 to p99.9")
    return share


def _check_agreement(request: SearchRequest) -> None:
    if request.slo_ms is not None and request.tpot_ms is not None and request.slo_ms != request.tpot_ms:
        raise SpecError(f"slo_ms is {request.slo_ms:g} and tpot_ms {request.tpot_ms:g}: both name the same limit")
    if request.target_tps is not None and request.target_rps is not None:
        implied = request.target_rps * request.osl
        if not math.isclose(implied, request.target_tps, rel_tol=0.01):
            raise SpecError(
                f"target_rps {request.target_rps:g} x osl {request.osl:g} is {implied:,.0f} tokens/s, "
                f"but target_tps is {request.target_tps:,.0f}: give one of them"
            )
    if request.tco and request.term != "owned":
        raise SpecError("tco sets the owner's cost, which is ranked with term owned alone: add --term owned")
    pools = [name for name in ("prefill_hardware", "decode_hardware") if getattr(request, name)]
    pools += ["mixed_hardware"] if request.mixed_hardware else []
    if request.mode == "agg" and pools:
        raise SpecError(f"mode agg has no pools, but {pools[0]} describes one: use mode auto or disagg")
    if request.mode == "disagg" and request.osl < 2:
        raise SpecError(f"osl is {request.osl:g}: a disaggregated fleet needs at least 2 output tokens to decode any")
    _check_speculation(request)
    if request.spot and request.term is not None and request.term not in UNSURE_TERMS:
        raise SpecError(
            f"spot adds spot and marketplace prices, but term asks for {request.term} alone: give one of them"
        )


def _check_speculation(request: SearchRequest) -> None:
    given = [name for name in ("acceptance", "accepted_tokens", "draft_model") if getattr(request, name) is not None]
    if request.spec in ("off", 0) and given:
        raise SpecError(f"spec is off, but {given[0]} describes speculative decoding: give one of them")
    if request.accepted_tokens is None:
        return
    if request.acceptance is not None:
        raise SpecError("acceptance and accepted_tokens both say how much is accepted: give one of them")
    if not isinstance(request.spec, int):
        raise SpecError("accepted_tokens needs the number of drafted tokens: give spec as a number")
    if not 1.0 <= request.accepted_tokens <= request.spec + 1:
        raise SpecError(
            f"accepted_tokens is {request.accepted_tokens:g}, expected 1 to {request.spec + 1} "
            f"with {request.spec} drafted tokens"
        )


def tpot_limit_ms(request: SearchRequest) -> float | None:
    """The limit on time per output token, under either of its two names."""
    return request.slo_ms if request.slo_ms is not None else request.tpot_ms


def target_output_tps(request: SearchRequest) -> float | None:
    """The fleet's target in output tokens/s, under either of its two names."""
    if request.target_tps is not None:
        return request.target_tps
    return request.target_rps * request.osl if request.target_rps is not None else None
