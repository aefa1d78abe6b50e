"""What a user asks of a search, and the checks that every input passes before anything is computed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        objective: What is minimised (maximised for throughput).
        top: Solutions in `best`.
        exhaustive: Evaluate everything.
        pue: Facility power over IT power.
        threads: Threads of the core; 0 = all.
        max_batch: Largest running batch of an attention rank.
        tp, pp, ep, attn_dp, chunk_tokens: Restrict the layout space.
        basis: What the answer rests on: the model (`calibrated`), measured points (`measured`), or the model with what was
            measured beside it (`both`).
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
    objective: str = "cost"
    top: int = 10
    exhaustive: bool = False
    pue: float = DEFAULT_PUE
    threads: int = 0
    max_batch: int = 4096
    tp: Sequence[int] = ()
    pp: Sequence[int] = ()
    ep: Sequence[int] = ()
    attn_dp: Sequence[int] = ()
    chunk_tokens: Sequence[int] = ()
    basis: str = "both"


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
    for name in ("engine", "term", "precision", "kv_precision"):
        value = getattr(request, name)
        fields[name] = None if value is None else _text(name, value)
    for name in ("hardware", "vendor", "provider", "region"):
        value = getattr(request, name)
        fields[name] = tuple(_text(name, item) for item in ([value] if isinstance(value, str) else _items(name, value)))
    for name in ("isl", "osl", "prefix_hit", "utilization", "pue"):
        fields[name] = _number(name, getattr(request, name))
    for name in ("slo_ms", "tpot_ms", "ttft_ms", "e2e_ms", "min_interactivity", "target_tps", "target_rps"):
        value = getattr(request, name)
        fields[name] = None if value is None else _number(name, value)
    for name in ("top", "threads", "max_batch"):
        fields[name] = _whole(name, getattr(request, name))
    for name in ("max_chips", "prices_max_age"):
        value = getattr(request, name)
        fields[name] = None if value is None else _whole(name, value)
    for name in ("tp", "pp", "ep", "attn_dp", "chunk_tokens"):
        value = getattr(request, name)
        items = [value] if isinstance(value, numbers.Real) else _items(name, value)
        fields[name] = tuple(_whole(name, item) for item in items)
    for name in ("spot", "announced", "exhaustive"):
        if not isinstance(getattr(request, name), bool):
            raise SpecError(f"{name} is {getattr(request, name)!r}, expected True or False")
    return fields


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
    for name, least, limit in (
        ("top", 1, 1000), ("threads", 0, 4096), ("max_batch", 1, 1 << 20), ("max_chips", 1, _MAX_CHIPS),
        ("prices_max_age", 0, 100_000),
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
        ("kv_precision", (None, *KV_FORMATS, "nvfp4")),
    ):
        value = getattr(request, name)
        if value not in legal:
            raise SpecError(f"{name} is {value!r}, expected {', '.join(filter(None, legal))}")


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
    if request.spot and request.term is not None and request.term not in UNSURE_TERMS:
        raise SpecError(
            f"spot adds spot and marketplace prices, but term asks for {request.term} alone: give one of them"
        )


def tpot_limit_ms(request: SearchRequest) -> float | None:
    """The limit on time per output token, under either of its two names."""
    return request.slo_ms if request.slo_ms is not None else request.tpot_ms


def target_output_tps(request: SearchRequest) -> float | None:
    """The fleet's target in output tokens/s, under either of its two names."""
    if request.target_tps is not None:
        return request.target_tps
    return request.target_rps * request.osl if request.target_rps is not None else None
