"""From what a user asks to the flat, validated problem that crosses into the core.

Every input is checked here, once; every default that was assumed is collected and shown with the answer.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, get_args

from tokenopt.catalog.engines import Calibration, default_calibration, engines_for, resolve_parameters
from tokenopt.catalog.models import (
    native_precision,
    offered_weight_precisions,
    precision_label,
    resolve_model,
    weight_formats,
)
from tokenopt.errors import MissingDataError, SpecError
from tokenopt.plugins import PluginRegistry
from tokenopt.records import KV_FORMATS, Accelerator, Engine, Model, Offer, Source, Term
from tokenopt.units import ms_to_s

Objective = Literal["cost", "energy", "throughput"]

DEFAULT_MODEL = "gpt-oss-120b"
DEFAULT_ISL = 1024
DEFAULT_OSL = 1024
DEFAULT_PUE = 1.25
SYSTEM_OVER_TDP = 1.5
"""All-in power of a chip with its share of host and network over the chip alone, where nobody publishes it. Published
pairs (1,370 W for a 700 W chip, 1,710 W for 1,000 W, 2,120 W for 1,400 W) lie between 1.5 and 2."""

SURE_TERMS: tuple[Term, ...] = ("on-demand", "reserved-1y", "reserved-3y", "rental")
"""Prices a buyer can rent for sure; ranked by default."""
UNSURE_TERMS: tuple[Term, ...] = ("spot", "marketplace")
"""Prices that may be withdrawn; ranked with `spot`."""

_MAX_TOKENS = 1e8
_MAX_MS = 1e7
_MAX_TPS = 1e12


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


@dataclass(frozen=True, slots=True)
class StackInfo:
    """Names behind one stack of the core's problem."""

    accelerator: Accelerator
    engine: Engine
    weight_precision: str
    kv_precision: str
    basis: str


@dataclass(frozen=True, slots=True)
class Assumption:
    """A default that the user did not state."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class CompiledProblem:
    """The core's problem, and the names to read its answer with."""

    core: dict[str, Any]
    request: SearchRequest
    model: Model
    stacks: list[StackInfo]
    offers: list[Offer]
    ranked_terms: tuple[str, ...]
    assumptions: list[Assumption]
    without_price: list[str]
    cannot_run: list[str]
    calibration: Calibration


def build_problem(
    request: SearchRequest, registry: PluginRegistry, *, need_prices: bool = True, today: date | None = None
) -> CompiledProblem:
    """Checks a request and compiles it.

    Args:
        request: What the user asks.
        registry: The loaded plugins.
        need_prices: Leave out accelerators without an offer.
        today: Day that ages of prices are counted from.

    Returns:
        The problem for the core with the names behind its indices.

    Raises:
        SpecError: A field cannot be used; the sentence names it, its value and what is legal.
        MissingDataError: Nothing is left to search.
    """
    _check_numbers(request)
    model = resolve_model(request.model, registry.models)
    context = int(model.architecture["max_context"])
    if request.isl + request.osl > context:
        raise SpecError(
            f"isl + osl is {request.isl + request.osl:,.0f} tokens, beyond the {context:,} that {model.key} supports"
        )
    accelerators = select_accelerators(request, registry)
    ranked_terms = _ranked_terms(request)
    offers, by_accelerator = _select_offers(request, registry, accelerators, ranked_terms, today or date.today())
    without_price = [chip.key for chip in accelerators if not by_accelerator.get(chip.key)] if need_prices else []
    priced = [chip for chip in accelerators if chip.key not in without_price]
    if not priced:
        raise MissingDataError(
            f"no {' or '.join(ranked_terms)} price for {_some(chip.key for chip in accelerators)}",
            ["--spot ranks spot and marketplace offers, --term owned the owner's cost, --price KEY=USD your own quote"],
        )
    calibration = default_calibration()
    stacks, core_stacks, cannot_run = _stacks(request, registry, priced, model, calibration)
    if not core_stacks:
        raise SpecError(
            f"no engine on {_some(chip.key for chip in priced)} serves {model.key} "
            f"with precision {request.precision or 'native'} and KV precision {request.kv_precision or 'any'}"
            + (f" under {request.engine}" if request.engine else ""),
            ["`tokenopt hardware KEY` lists the engines of an accelerator and their formats"],
        )
    core = {
        "model": dict(model.architecture),
        "workload": {"isl": request.isl, "osl": request.osl, "prefix_hit": request.prefix_hit},
        "limits": {
            "tpot_s": ms_to_s(tpot_limit_ms(request)),
            "ttft_s": ms_to_s(request.ttft_ms),
            "e2e_s": ms_to_s(request.e2e_ms),
            "min_tps_per_user": request.min_interactivity,
            "max_chips": request.max_chips,
        },
        "demand": {"output_tps": target_output_tps(request), "utilization": request.utilization},
        "accelerators": [core_accelerator(chip, request.pue, by_accelerator.get(chip.key, [])) for chip in priced],
        "stacks": core_stacks,
        "space": {
            "max_batch": request.max_batch,
            **{
                name: list(values)
                for name in ("tp", "pp", "ep", "attn_dp", "chunk_tokens")
                if (values := getattr(request, name))
            },
        },
        "objective": request.objective,
        "top": request.top,
        "exhaustive": request.exhaustive,
        "threads": request.threads,
    }
    return CompiledProblem(
        core=core,
        request=request,
        model=model,
        stacks=stacks,
        offers=offers,
        ranked_terms=ranked_terms,
        assumptions=_assumptions(request, model, priced, calibration),
        without_price=without_price,
        cannot_run=cannot_run,
        calibration=calibration,
    )


def tpot_limit_ms(request: SearchRequest) -> float | None:
    """The limit on time per output token, under either of its two names."""
    return request.slo_ms if request.slo_ms is not None else request.tpot_ms


def target_output_tps(request: SearchRequest) -> float | None:
    """The fleet's target in output tokens/s, under either of its two names."""
    if request.target_tps is not None:
        return request.target_tps
    return request.target_rps * request.osl if request.target_rps is not None else None


def core_accelerator(chip: Accelerator, pue: float, offers: Sequence[tuple[int, Offer]] = ()) -> dict[str, Any]:
    """An accelerator in the core's shape; `offers` are pairs of index and offer."""
    return {
        "key": chip.key,
        "hbm_bytes": chip.hbm_bytes,
        "hbm_bytes_per_s": chip.hbm_bytes_per_s,
        "peak_flops": dict(chip.peak_flops),
        "scale_up": {
            "bytes_per_s": chip.scale_up_bytes_per_s,
            "domain_chips": chip.scale_up_domain_chips,
            "topology": chip.scale_up_topology,
        },
        "scale_out_bytes_per_s": chip.scale_out_bytes_per_s,
        "chips_per_node": chip.chips_per_node,
        "power_w": (chip.system_w or chip.tdp_w * SYSTEM_OVER_TDP) * pue,
        "offers": [
            {
                "id": index,
                "usd_per_chip_hr": offer.usd_per_chip_hr,
                "chips_per_instance": offer.chips_per_instance,
                "minimum_instances": offer.minimum_instances,
                **({"fabric_chips": offer.fabric_chips} if offer.fabric_chips else {}),
            }
            for index, offer in offers
        ],
    }


def select_accelerators(request: SearchRequest, registry: PluginRegistry) -> list[Accelerator]:
    """Accelerators that the filters leave, sorted by key.

    Raises:
        SpecError: A pattern or vendor matches nothing.
    """
    known = registry.accelerators
    if not known:
        raise MissingDataError("no accelerator is known", ["install a hardware plugin, for instance tokenopt-nvidia"])
    vendors = sorted({chip.vendor for chip in known.values()})
    for vendor in request.vendor:
        if vendor.lower() not in vendors:
            raise SpecError(
                f"vendor {vendor!r} is not known", _near(vendor, vendors) or [f"known: {', '.join(vendors)}"]
            )
    chosen = _match(request.hardware, sorted(known), "hardware")
    wanted_vendors = {vendor.lower() for vendor in request.vendor} or set(vendors)
    named = {pattern.lower() for pattern in request.hardware}
    accelerators = [
        known[key]
        for key in chosen
        if known[key].vendor in wanted_vendors
        and (request.announced or key in named or known[key].status == "shipping")
    ]
    if not accelerators:
        only_announced = [key for key in chosen if known[key].status == "announced"]
        raise SpecError(
            f"no accelerator is left by --hardware {' '.join(request.hardware) or '*'} "
            f"and --vendor {' '.join(request.vendor) or '*'}",
            ["--announced includes parts that do not ship yet"] if only_announced else [],
        )
    return accelerators


def _match(patterns: Iterable[str], keys: Sequence[str], what: str) -> list[str]:
    patterns = list(patterns)
    if not patterns:
        return list(keys)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(keys, pattern.lower())
        if not matched:
            raise SpecError(f"{what} {pattern!r} matches nothing", _near(pattern, keys))
        chosen.update(matched)
    return [key for key in keys if key in chosen]


def _near(name: str, known: Sequence[str]) -> list[str]:
    near = difflib.get_close_matches(name.lower().strip("*"), known, n=3, cutoff=0.4)
    near += [key for key in known if name.lower().strip("*?") in key and key not in near][:3]
    return [f"did you mean {' or '.join(near[:4])}?"] if near else []


def _ranked_terms(request: SearchRequest) -> tuple[str, ...]:
    if request.term is not None:
        return (request.term,)
    return SURE_TERMS + UNSURE_TERMS if request.spot else SURE_TERMS


def _select_offers(
    request: SearchRequest,
    registry: PluginRegistry,
    accelerators: Sequence[Accelerator],
    terms: Sequence[str],
    today: date,
) -> tuple[list[Offer], dict[str, list[tuple[int, Offer]]]]:
    keys = {chip.key for chip in accelerators}
    quotes = _own_quotes(request, registry, keys)
    providers = sorted({offer.provider for offer in registry.offers})
    if request.provider:
        _match(request.provider, providers, "provider")
    chosen: list[Offer] = list(quotes.values())
    for offer in registry.offers:
        age = offer.age_days(today)
        is_wanted = (
            offer.accelerator in keys
            and offer.accelerator not in quotes
            and offer.term in terms
            and not offer.suspect
            and _fits(offer.provider, request.provider)
            and _fits(offer.region, request.region)
            and (request.prices_max_age is None or (age is not None and age <= request.prices_max_age))
        )
        if is_wanted:
            chosen.append(offer)
    by_accelerator: dict[str, list[tuple[int, Offer]]] = {}
    for index, offer in enumerate(chosen):
        by_accelerator.setdefault(offer.accelerator, []).append((index, offer))
    return chosen, by_accelerator


def _own_quotes(request: SearchRequest, registry: PluginRegistry, keys: set[str]) -> dict[str, Offer]:
    quotes: dict[str, Offer] = {}
    for key, usd in request.price.items():
        if key not in registry.accelerators:
            raise SpecError(f"price for unknown accelerator {key!r}", _near(key, sorted(registry.accelerators)))
        _positive("price", usd, 1e6)
        if key not in keys:
            continue
        quotes[key] = Offer(
            accelerator=key,
            provider="your quote",
            instance_type="",
            region="",
            term="rental",
            usd_per_chip_hr=usd,
            chips_per_instance=registry.accelerators[key].chips_per_node,
            as_of=date.today().isoformat(),
            source=Source("--price", "assumed"),
        )
    return quotes


def _fits(value: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(value.lower(), pattern.lower()) for pattern in patterns)


def _stacks(
    request: SearchRequest,
    registry: PluginRegistry,
    accelerators: Sequence[Accelerator],
    model: Model,
    calibration: Calibration,
) -> tuple[list[StackInfo], list[dict[str, Any]], list[str]]:
    infos: list[StackInfo] = []
    stacks: list[dict[str, Any]] = []
    cannot_run: list[str] = []
    wanted = [request.precision] if request.precision else offered_weight_precisions(model.architecture)
    known_engines = sorted({engine.name for engine in registry.engines})
    if request.engine and request.engine.partition("@")[0] not in known_engines:
        raise SpecError(
            f"engine {request.engine!r} is not known",
            _near(request.engine, known_engines) or [f"known: {', '.join(known_engines)}"],
        )
    for index, chip in enumerate(accelerators):
        before = len(stacks)
        for engine in engines_for(chip, registry.engines, request.engine):
            for precision in wanted:
                formats = weight_formats(model.architecture, precision)
                label = precision_label(model.architecture, precision)
                if not set(formats.values()) <= set(engine.weight_formats) | {"bf16"}:
                    continue
                if not request.precision and not _pays_off(label, model, chip):
                    continue
                for kv_precision in _kv_precisions(request, engine, chip):
                    parameters = resolve_parameters(calibration, engine.name, chip.family, label, engine.parameters)
                    infos.append(StackInfo(chip, engine, label, kv_precision, calibration.basis))
                    stacks.append(
                        {
                            "accelerator": index,
                            "label": f"{engine.name}@{engine.as_of}",
                            "weight_precision": label,
                            "weights": formats,
                            "kv_precision": "nvfp4" if kv_precision == "fp4" else kv_precision,
                            "parameters": parameters,
                        }
                    )
        if len(stacks) == before:
            cannot_run.append(chip.key)
    return infos, stacks, cannot_run


def _pays_off(label: str, model: Model, chip: Accelerator) -> bool:
    """Whether a quantisation below the published format has a fast path on the chip."""
    if label == native_precision(model.architecture):
        return True
    needed = {"fp8": "fp8", "nvfp4": "fp4", "mxfp4": "fp4", "int8": "int8"}.get(label)
    return needed is None or needed in chip.peak_flops


def _kv_precisions(request: SearchRequest, engine: Engine, chip: Accelerator) -> list[str]:
    if request.kv_precision:
        wanted = "fp4" if request.kv_precision == "nvfp4" else request.kv_precision
        return [wanted] if wanted in engine.kv_formats else []
    return [
        kv_format
        for kv_format in engine.kv_formats
        if kv_format == "bf16" or (kv_format == "fp8" and "fp8" in chip.peak_flops)
    ]


def _check_numbers(request: SearchRequest) -> None:
    _positive("isl", request.isl, _MAX_TOKENS)
    _positive("osl", request.osl, _MAX_TOKENS)
    for name in ("isl", "osl"):
        if getattr(request, name) < 1:
            raise SpecError(f"{name} is {getattr(request, name):g}, expected at least 1 token")
    for name in ("slo_ms", "tpot_ms", "ttft_ms", "e2e_ms"):
        _optional(name, getattr(request, name), _MAX_MS)
    _optional("min_interactivity", request.min_interactivity, 1e6)
    _optional("target_tps", request.target_tps, _MAX_TPS)
    _optional("target_rps", request.target_rps, _MAX_TPS)
    _positive("utilization", request.utilization, 1.0)
    _positive("pue", request.pue, 5.0)
    if request.pue < 1.0:
        raise SpecError(f"pue is {request.pue:g}, expected at least 1 (facility power over IT power)")
    if not 0.0 <= request.prefix_hit <= 1.0:
        raise SpecError(f"prefix_hit is {request.prefix_hit:g}, expected a share from 0 to 1")
    for name, least, most in (("top", 1, 1000), ("threads", 0, 4096), ("max_batch", 1, 1 << 20)):
        value = getattr(request, name)
        if not least <= value <= most:
            raise SpecError(f"{name} is {value}, expected {least} to {most}")
    if request.max_chips is not None and request.max_chips < 1:
        raise SpecError(f"max_chips is {request.max_chips}, expected at least 1")
    if request.prices_max_age is not None and request.prices_max_age < 0:
        raise SpecError(f"prices_max_age is {request.prices_max_age}, expected at least 0 days")
    for name in ("tp", "pp", "ep", "attn_dp", "chunk_tokens"):
        if any(value < 1 for value in getattr(request, name)):
            raise SpecError(f"{name} holds {min(getattr(request, name))}, expected at least 1")
    if request.slo_ms is not None and request.tpot_ms is not None and request.slo_ms != request.tpot_ms:
        raise SpecError(f"slo_ms is {request.slo_ms:g} and tpot_ms {request.tpot_ms:g}: both name the same limit")
    if request.target_tps is not None and request.target_rps is not None:
        implied = request.target_rps * request.osl
        if not math.isclose(implied, request.target_tps, rel_tol=0.01):
            raise SpecError(
                f"target_rps {request.target_rps:g} x osl {request.osl:g} is {implied:,.0f} tokens/s, "
                f"but target_tps is {request.target_tps:,.0f}: give one of them"
            )
    if request.objective not in get_args(Objective):
        raise SpecError(f"objective is {request.objective!r}, expected {', '.join(get_args(Objective))}")
    if request.term is not None and request.term not in get_args(Term):
        raise SpecError(f"term is {request.term!r}, expected {', '.join(get_args(Term))}")
    if request.kv_precision is not None and request.kv_precision not in (*KV_FORMATS, "nvfp4"):
        raise SpecError(f"kv_precision is {request.kv_precision!r}, expected {', '.join(KV_FORMATS)}")


def _positive(name: str, value: float, most: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 < value <= most):
        raise SpecError(f"{name} is {value}, expected a number above 0 and at most {most:g}")


def _optional(name: str, value: float | None, most: float) -> None:
    if value is not None:
        _positive(name, value, most)


def _assumptions(
    request: SearchRequest, model: Model, accelerators: Sequence[Accelerator], calibration: Calibration
) -> list[Assumption]:
    defaults = SearchRequest()
    found: list[Assumption] = []

    def assume(name: str, value: object, why: str) -> None:
        found.append(Assumption(name, str(value), why))

    if request.model == defaults.model:
        assume("model", model.key, "default of --model")
    if request.isl == defaults.isl and request.osl == defaults.osl:
        assume("isl/osl", f"{request.isl:g}/{request.osl:g}", "default of --isl and --osl, every request alike")
    if tpot_limit_ms(request) is None and request.min_interactivity is None:
        assume("slo", "none", "no latency limit per token was given (--slo-ms)")
    if target_output_tps(request) is None:
        assume("target", "one unit", "no --target-tps: the smallest unit that is sold, at full load")
    if request.utilization == 1.0:
        assume("utilization", 1.0, "the fleet runs at its target all the time (--utilization)")
    if request.prefix_hit == 0.0:
        assume("prefix-hit", 0.0, "no prompt is found in the cache (--prefix-hit)")
    if request.pue == DEFAULT_PUE:
        assume("pue", DEFAULT_PUE, "facility power over IT power (--pue)")
    estimated = [chip.key for chip in accelerators if chip.system_w is None]
    if estimated:
        assume("system power", f"{SYSTEM_OVER_TDP:g} x TDP", f"not published for {_some(estimated)}")
    if request.precision is None and len(offered_weight_precisions(model.architecture)) > 1:
        others = ", ".join(offered_weight_precisions(model.architecture)[1:])
        assume(
            "precision",
            f"{native_precision(model.architecture)} or {others}",
            "quantising below the published format changes answers; --precision native forbids it",
        )
    if request.kv_precision is None:
        assume("kv-precision", "bf16 or fp8", "an 8-bit cache is accepted where engine and chip have it")
    if calibration.basis == "uncalibrated":
        assume("efficiencies", calibration.name, calibration.source)
    return found


def _some(keys: Iterable[str], most: int = 4) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
