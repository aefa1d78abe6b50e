"""From what a user asks to the flat, validated problem that crosses into the core.

Names are looked up in the catalogue here; numbers are checked in :mod:`tokenopt.request`. Every default that was
assumed is collected and shown with the answer.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from tokenopt.catalog.engines import (
    Calibration,
    default_calibration,
    engines_for,
    parameter_refusal,
    resolve_parameters,
    with_own,
)
from tokenopt.catalog.models import (
    dequantised_formats,
    native_precision,
    offered_weight_precisions,
    precision_label,
    resolve_model,
    weight_formats,
)
from tokenopt.errors import MissingDataError, SpecError
from tokenopt.plugins import PluginRegistry
from tokenopt.prices.store import own_calibration_path
from tokenopt.prices.tco import SYSTEM_OVER_TDP, owned_offer
from tokenopt.records import Accelerator, Engine, Model, Offer, Source
from tokenopt.request import (
    DEFAULT_ISL,
    DEFAULT_MODEL,
    DEFAULT_OSL,
    DEFAULT_PUE,
    SURE_TERMS,
    UNSURE_TERMS,
    Objective,
    SearchRequest,
    checked,
    target_output_tps,
    tpot_limit_ms,
)
from tokenopt.traces import TraceSummary, load_trace
from tokenopt.units import ms_to_s

__all__ = [
    "DEFAULT_ISL", "DEFAULT_MODEL", "DEFAULT_OSL", "DEFAULT_PUE", "SURE_TERMS", "UNSURE_TERMS", "Assumption",
    "CompiledProblem", "Objective", "SearchRequest", "StackInfo", "build_problem", "core_accelerator",
    "select_accelerators", "some_keys", "target_output_tps", "tpot_limit_ms",
]  # fmt: skip


class Scope(Protocol):
    """The fields of a request that say which accelerators and prices compete, as in :class:`SearchRequest`."""

    @property
    def hardware(self) -> Sequence[str]: ...
    @property
    def vendor(self) -> Sequence[str]: ...
    @property
    def announced(self) -> bool: ...
    @property
    def provider(self) -> Sequence[str]: ...
    @property
    def region(self) -> Sequence[str]: ...
    @property
    def term(self) -> str | None: ...
    @property
    def spot(self) -> bool: ...
    @property
    def price(self) -> Mapping[str, float]: ...
    @property
    def prices_max_age(self) -> int | None: ...
    @property
    def tco(self) -> Mapping[str, float | str]: ...


POWER_LIMITED_VENDORS = ("nvidia", "amd")
"""Vendors of GPUs, whose clock under sustained matrix products follows the power limit; systolic arrays keep theirs."""


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
    """The core's problem, and the names to read its answer with.

    Attributes:
        core: The problem as it crosses into the core.
        request: What the user asked, checked.
        model: The model.
        stacks: Names behind the core's stacks, by index.
        offers: Prices behind the core's offer numbers.
        ranked_terms: Kinds of price that compete.
        assumptions: Defaults the user did not state.
        without_price: Accelerators left out for want of a price.
        doubtful_prices: Offers that fit but are marked suspect, and so are not ranked.
        cannot_run: Accelerators on which no engine serves the model in the wanted formats.
        calibration: Parameter set of the efficiencies.
        notes: Data that could not be used.
    """

    core: dict[str, Any]
    request: SearchRequest
    model: Model
    stacks: list[StackInfo]
    offers: list[Offer]
    ranked_terms: tuple[str, ...]
    assumptions: list[Assumption]
    without_price: list[str]
    doubtful_prices: int
    cannot_run: list[str]
    calibration: Calibration
    notes: list[str]


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
    request, trace = _with_trace(checked(request))
    model = resolve_model(request.model, registry.models)
    context = int(model.architecture["max_context"])
    if request.isl + request.osl > context:
        raise SpecError(
            f"isl + osl is {request.isl + request.osl:,.0f} tokens, beyond the {context:,} that {model.key} supports"
        )
    accelerators = select_accelerators(request, registry)
    ranked_terms = ranked_terms_of(request)
    selection = select_offers(request, registry, accelerators, ranked_terms, today or date.today())
    by_accelerator = selection.by_accelerator
    without_price = [chip.key for chip in accelerators if not by_accelerator.get(chip.key)] if need_prices else []
    priced = [chip for chip in accelerators if chip.key not in without_price]
    if not priced:
        raise no_price(selection, accelerators, ranked_terms)
    calibration, doubt = _calibration(request.calibration)
    engines, notes = _usable_engines(registry.engines)
    notes += [doubt] if doubt else []
    stacks, core_stacks, cannot_run, dequantised = _stacks(request, engines, priced, model, calibration)
    if not core_stacks:
        raise SpecError(
            f"no engine on {some_keys(chip.key for chip in priced)} serves {model.key} "
            f"with precision {request.precision or 'native'} and KV precision {request.kv_precision or 'any'}"
            + (f" under {request.engine}" if request.engine else ""),
            ["`tokenopt hardware KEY` lists the engines of an accelerator and their formats"],
        )
    speculation = _speculation(request, model, registry)
    sites: dict[tuple[str, str], int] = {}
    core = {
        "model": dict(model.architecture),
        "workload": {"isl": request.isl, "osl": request.osl, "prefix_hit": request.prefix_hit},
        "traffic": _traffic(request, trace),
        "limits": {
            "tpot_s": ms_to_s(tpot_limit_ms(request)),
            "ttft_s": ms_to_s(request.ttft_ms),
            "e2e_s": ms_to_s(request.e2e_ms),
            "min_tps_per_user": request.min_interactivity,
            "max_chips": request.max_chips,
        },
        "disagg": _disagg(request, priced),
        "speculation": speculation,
        "demand": {"output_tps": target_output_tps(request), "utilization": request.utilization},
        "accelerators": [
            core_accelerator(chip, request.pue, by_accelerator.get(chip.key, []), sites) for chip in priced
        ],
        "stacks": core_stacks,
        "space": {
            "max_batch": request.max_batch or DEFAULT_MAX_BATCH,
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
        offers=selection.offers,
        ranked_terms=ranked_terms,
        assumptions=_assumptions(request, model, priced, calibration, dequantised, speculation, core_stacks),
        without_price=without_price,
        doubtful_prices=selection.doubtful,
        cannot_run=cannot_run,
        calibration=calibration,
        notes=notes,
    )


def _calibration(wanted: str | None) -> tuple[Calibration, str]:
    """The calibration to search with, and what to distrust about it."""
    shipped = default_calibration()
    if wanted == "shipped":
        return shipped, ""
    if wanted is not None:
        return with_own(shipped, Path(wanted).expanduser())
    own = own_calibration_path()
    return with_own(shipped, own) if own.exists() else (shipped, "")


def _with_trace(request: SearchRequest) -> tuple[SearchRequest, TraceSummary | None]:
    """The request with the lengths, cache hits and rate of its trace, and what the trace looks like."""
    if request.trace is None:
        return request, None
    trace = load_trace(Path(request.trace))
    if (request.isl, request.osl) != (DEFAULT_ISL, DEFAULT_OSL):
        raise SpecError("the trace gives the lengths: leave isl and osl out")
    summary = trace.summary()
    found: dict[str, Any] = {"isl": summary.isl, "osl": summary.osl}
    if trace.cached and request.prefix_hit == 0.0:
        found["prefix_hit"] = summary.prefix_hit
    if request.arrival == "poisson" and summary.requests_per_s is None and target_output_tps(request) is None:
        raise SpecError(f"trace {request.trace} has no arrivals, so it gives no rate: give target_rps or target_tps")
    if request.arrival != "closed" and target_output_tps(request) is None:
        found["target_rps"] = summary.requests_per_s
    return replace(request, **found), summary


def _traffic(request: SearchRequest, trace: TraceSummary | None) -> dict[str, Any]:
    """How requests arrive, in the core's shape."""
    has_arrivals = trace is not None and trace.requests_per_s is not None
    traffic: dict[str, Any] = {
        "arrival": request.arrival or ("poisson" if has_arrivals else "closed"),
        "percentile": request.percentile,
    }
    if trace is not None:
        # Bursts matter over about the life of a request.
        tpot_s = ms_to_s(tpot_limit_ms(request)) or TYPICAL_TPOT_S
        traffic |= {
            "isl_cv": trace.isl_cv,
            "osl_cv": trace.osl_cv,
            "burstiness": trace.burstiness_over(trace.osl * tpot_s),
        }
    return traffic


TYPICAL_TPOT_S = 0.02
"""Time per output token that the life of a request is guessed from where no limit says how long it may be."""


def core_accelerator(
    chip: Accelerator,
    pue: float,
    offers: Sequence[tuple[int, Offer]] = (),
    sites: dict[tuple[str, str], int] | None = None,
) -> dict[str, Any]:
    """An accelerator in the core's shape.

    Args:
        chip: The accelerator.
        pue: Facility power over IT power.
        offers: Pairs of index and offer.
        sites: Numbers of providers and regions, shared by all accelerators of a problem; extended here.
    """
    sites = {} if sites is None else sites
    return {
        "key": chip.key,
        "hbm_bytes": chip.hbm_bytes,
        "hbm_bytes_per_s": chip.hbm_bytes_per_s,
        "peak_flops": dict(chip.peak_flops),
        **({"matmul_flops": chip.matmul_flops} if chip.matmul_flops else {}),
        "scale_up": {
            "bytes_per_s": chip.scale_up_bytes_per_s,
            "domain_chips": chip.scale_up_domain_chips,
            "topology": chip.scale_up_topology,
        },
        "scale_out_bytes_per_s": chip.scale_out_bytes_per_s,
        "chips_per_node": chip.chips_per_node,
        "power_w": (chip.system_w or chip.tdp_w * SYSTEM_OVER_TDP) * pue,
        **({"clock_power_w": chip.tdp_w} if chip.vendor in POWER_LIMITED_VENDORS else {}),
        "offers": [
            {
                "id": index,
                "usd_per_chip_hr": offer.usd_per_chip_hr,
                "chips_per_instance": offer.chips_per_instance,
                "minimum_instances": offer.minimum_instances,
                **({"fabric_chips": offer.fabric_chips} if offer.fabric_chips else {}),
                **({"may_be_withdrawn": True} if offer.term in UNSURE_TERMS else {}),
                **({"site": sites.setdefault(place, len(sites))} if (place := _place(offer)) else {}),
            }
            for index, offer in offers
        ],
    }


def _place(offer: Offer) -> tuple[str, str] | None:
    """Where an offer's chips stand; None = anywhere, as for a quote of the user's own."""
    if offer.source.reference == "--price" or offer.term == "owned":
        return None
    return (offer.provider, "" if offer.region in _ANYWHERE else offer.region)


def _disagg(request: SearchRequest, chips: Sequence[Accelerator]) -> dict[str, Any]:
    """Modes and pools in the core's shape."""
    keys = [chip.key for chip in chips]
    pools = {}
    for name in ("prefill", "decode"):
        patterns = getattr(request, f"{name}_hardware")
        if patterns:
            wanted = {key for pattern in patterns for key in fnmatch.filter(keys, pattern.lower())}
            if not wanted:
                raise MissingDataError(
                    f"no price is known for {name} hardware {', '.join(patterns)}",
                    [f"--price {patterns[0]}=USD ranks your own quote"],
                )
            pools[f"{name}_accelerators"] = [index for index, key in enumerate(keys) if key in wanted]
    return {
        "mode": request.mode,
        "is_mixed": request.mixed_hardware or bool(pools),
        "transfer_overlap": request.kv_overlap,
        **pools,
    }


def _speculation(request: SearchRequest, model: Model, registry: PluginRegistry) -> dict[str, Any] | None:
    """Speculative decoding in the core's shape; None where there is none to try."""
    has_head = bool(model.architecture.get("mtp_layers"))
    if request.spec in ("off", 0) or (request.spec == "auto" and not has_head and request.draft_model is None):
        if request.acceptance is not None:
            raise SpecError(
                f"acceptance is {request.acceptance:g}, but {model.key} has no multi-token-prediction head to draft with",
                ["--draft-model names a model to draft with"],
            )
        return None
    if request.draft_model is None and not has_head:
        raise SpecError(
            f"spec is {request.spec}, but {model.key} has no multi-token-prediction head to draft with",
            ["--draft-model names a model to draft with"],
        )
    speculation: dict[str, Any] = {
        "depths": list(AUTO_DEPTHS) if request.spec == "auto" else [request.spec],
        "acceptance": DEFAULT_ACCEPTANCE if request.acceptance is None else request.acceptance,
    }
    if request.accepted_tokens is not None:
        speculation["accepted_tokens"] = request.accepted_tokens
    if request.draft_model is not None:
        draft = resolve_model(request.draft_model, registry.models)
        if draft.architecture["vocab"] != model.architecture["vocab"]:
            raise SpecError(
                f"draft model {draft.key} has {draft.architecture['vocab']:,} vocabulary entries and {model.key} "
                f"{model.architecture['vocab']:,}: a draft must use the same tokens"
            )
        speculation["draft"] = {
            "model": dict(draft.architecture),
            "weights": weight_formats(draft.architecture, native_precision(draft.architecture)),
        }
    return speculation


DEFAULT_MAX_BATCH = 4096
"""Most requests that are tried on an attention rank where the engine states no limit of its own."""
AUTO_DEPTHS = (0, 1, 2, 3)
"""Tokens drafted per step that are tried."""
DEFAULT_ACCEPTANCE = 0.62
"""Chance that a drafted token is accepted: 2.24 output tokens a step with three drafted ones. Serving runs of
DeepSeek-R1 with its multi-token-prediction head and three drafted tokens gain 2.1 to 2.4."""


def select_accelerators(request: Scope, registry: PluginRegistry) -> list[Accelerator]:
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
                f"vendor {vendor!r} is not known", near_keys(vendor, vendors) or [f"known: {', '.join(vendors)}"]
            )
    patterns = tuple(request.hardware)
    # Only serving has pools.
    pools = (tuple(getattr(request, "prefill_hardware", ())), tuple(getattr(request, "decode_hardware", ())))
    if patterns or all(pools):
        # A pool's accelerators are in scope beside those named for all; alone when both pools are named.
        patterns = (*patterns, *pools[0], *pools[1])
    for what, pool in zip(("prefill hardware", "decode hardware"), pools, strict=True):
        _match(pool, sorted(known), what)
    chosen = _match(patterns, sorted(known), "hardware")
    wanted_vendors = {vendor.lower() for vendor in request.vendor} or set(vendors)
    named = {pattern.lower() for pattern in (*request.hardware, *pools[0], *pools[1])}
    accelerators = [
        known[key]
        for key in chosen
        if known[key].vendor in wanted_vendors
        and (request.announced or key in named or known[key].status == "shipping")
    ]
    if not accelerators:
        only_announced = [key for key in chosen if known[key].status == "announced"]
        raise SpecError(
            f"no accelerator is left by {_scope_text(request)}",
            ["--announced includes parts that do not ship yet"] if only_announced else [],
        )
    return accelerators


def _scope_text(request: Scope) -> str:
    flags = [f"--hardware {pattern}" for pattern in request.hardware]
    flags += [f"--vendor {vendor}" for vendor in request.vendor]
    return " ".join(flags) or "the default scope"


def _match(patterns: Iterable[str], keys: Sequence[str], what: str) -> list[str]:
    patterns = list(patterns)
    if not patterns:
        return list(keys)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(keys, pattern.lower())
        if not matched:
            raise SpecError(f"{what} {pattern!r} matches nothing", near_keys(pattern, keys))
        chosen.update(matched)
    return [key for key in keys if key in chosen]


def near_keys(name: str, known: Sequence[str]) -> list[str]:
    """A hint with the known keys that look like `name`; empty when none does."""
    near = difflib.get_close_matches(name.lower().strip("*"), known, n=3, cutoff=0.4)
    near += [key for key in known if name.lower().strip("*?") in key and key not in near][:3]
    return [f"did you mean {' or '.join(near[:4])}?"] if near else []


def ranked_terms_of(request: Scope) -> tuple[str, ...]:
    """Kinds of price that compete."""
    if request.term is not None:
        return (request.term,)
    return SURE_TERMS + UNSURE_TERMS if request.spot else SURE_TERMS


@dataclass(frozen=True, slots=True)
class Selection:
    """Offers that may be ranked.

    Attributes:
        offers: The offers; their place is their number in the core's problem.
        by_accelerator: Pairs of number and offer by accelerator key.
        doubtful: Offers that pass every filter but are marked suspect.
        emptied_by: The filter that left nothing, as a flag with its value; empty where some offer is left or no filter
            is to blame.
    """

    offers: list[Offer]
    by_accelerator: dict[str, list[tuple[int, Offer]]]
    doubtful: int
    emptied_by: str


def select_offers(
    request: Scope,
    registry: PluginRegistry,
    accelerators: Sequence[Accelerator],
    terms: Sequence[str],
    today: date,
) -> Selection:
    """Offers that the filters leave for `accelerators`; the user's own quotes take the place of all others."""
    keys = {chip.key for chip in accelerators}
    quotes = _own_quotes(request, registry, keys, today)
    _match(request.provider, sorted({offer.provider.lower() for offer in registry.offers}), "provider")
    _match(request.region, sorted({offer.region.lower() for offer in registry.offers} - _ANYWHERE), "region")
    known = registry.offers
    if request.term == "owned":
        known = _with_owners_cost(request, registry, accelerators, today)
    left = [
        offer
        for offer in known
        if offer.accelerator in keys and offer.accelerator not in quotes and offer.term in terms
    ]
    emptied_by = ""
    for flag, passes in _offer_filters(request, today):
        remaining = [offer for offer in left if passes(offer)]
        if left and not remaining:
            emptied_by = flag
        left = remaining
    sure = [offer for offer in left if not offer.suspect]
    chosen = [*quotes.values(), *sure]
    by_accelerator: dict[str, list[tuple[int, Offer]]] = {}
    for index, offer in enumerate(chosen):
        by_accelerator.setdefault(offer.accelerator, []).append((index, offer))
    return Selection(chosen, by_accelerator, len(left) - len(sure), emptied_by)


def _with_owners_cost(
    request: Scope, registry: PluginRegistry, accelerators: Sequence[Accelerator], today: date
) -> list[Offer]:
    """Owners' rates: worked out from the user's inputs, or as published with what the catalogue gives for the rest.

    The user's inputs hold for every chip, so that published rates, whose parts are not public, do not compete with them.
    """
    for name in request.tco:
        key = name.partition(":")[0] if ":" in name else ""
        if key and key not in registry.accelerators:
            raise SpecError(f"tco for unknown accelerator {key!r}", near_keys(key, sorted(registry.accelerators)))
    published = [offer for offer in registry.offers if offer.term == "owned" and not request.tco]
    priced = {offer.accelerator for offer in published}
    modelled = (owned_offer(chip, request.tco, today) for chip in accelerators if chip.key not in priced)
    return [*published, *(offer for offer in modelled if offer is not None)]


_ANYWHERE = {"", "-"}
"""How price lists write that a price is not bound to a region."""


def _offer_filters(request: Scope, today: date) -> list[tuple[str, Callable[[Offer], bool]]]:
    """The filters in use: the flag as a user writes it, and whether an offer passes."""
    filters: list[tuple[str, Callable[[Offer], bool]]] = []
    if request.provider:
        filters.append((f"--provider {' '.join(request.provider)}", lambda o: _fits(o.provider, request.provider)))
    if request.region:
        filters.append(
            (
                f"--region {' '.join(request.region)}",
                lambda o: o.region in _ANYWHERE or _fits(o.region, request.region),
            )
        )
    most = request.prices_max_age
    if most is not None:

        def is_fresh(offer: Offer) -> bool:
            age = offer.age_days(today)
            return age is not None and age <= most

        filters.append((f"--prices-max-age {most}", is_fresh))
    return filters


def no_price(
    selection: Selection, accelerators: Sequence[Accelerator], terms: Sequence[str]
) -> MissingDataError | SpecError:
    """Why nothing can be priced: a filter of the user's, doubt, or no such price."""
    kind = f"{', '.join(terms)} price"
    where = some_keys(chip.key for chip in accelerators)
    if selection.emptied_by:
        return SpecError(
            f"{selection.emptied_by} leaves no {kind} for {where}", ["`tokenopt prices` lists what is known"]
        )
    if selection.doubtful:
        return MissingDataError(
            f"every {kind} for {where} is doubtful and not ranked",
            ["`tokenopt prices` shows them; --price KEY=USD ranks your own quote"],
        )
    return MissingDataError(
        f"no {kind} for {where} is known",
        [
            "--spot ranks spot and marketplace offers, --term owned the owner's cost, "
            f"--price {accelerators[0].key}=USD your own quote"
        ],
    )


def _own_quotes(request: Scope, registry: PluginRegistry, keys: set[str], today: date) -> dict[str, Offer]:
    quotes: dict[str, Offer] = {}
    for key, usd in request.price.items():
        if key not in registry.accelerators:
            raise SpecError(f"price for unknown accelerator {key!r}", near_keys(key, sorted(registry.accelerators)))
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
            as_of=today.isoformat(),
            source=Source("--price", "assumed"),
        )
    return quotes


def _fits(value: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(value.lower(), pattern.lower()) for pattern in patterns)


def _usable_engines(engines: Iterable[Engine]) -> tuple[list[Engine], list[str]]:
    """Engines whose own parameters can be used, and a note for each of the others."""
    usable, notes = [], []
    for engine in engines:
        reason = parameter_refusal(engine)
        if reason:
            notes.append(f"{reason}; skipped")
        else:
            usable.append(engine)
    return usable, notes


def _stacks(
    request: SearchRequest,
    engines: Sequence[Engine],
    accelerators: Sequence[Accelerator],
    model: Model,
    calibration: Calibration,
) -> tuple[list[StackInfo], list[dict[str, Any]], list[str], list[str]]:
    """Stacks with their names, accelerators without one, and those on which weights are expanded when loaded."""
    infos: list[StackInfo] = []
    stacks: list[dict[str, Any]] = []
    cannot_run: list[str] = []
    dequantised: list[str] = []
    groups: dict[tuple[str, str], int] = {}
    wanted = [request.precision] if request.precision else offered_weight_precisions(model.architecture)
    published = [
        (precision_label(model.architecture, precision), weight_formats(model.architecture, precision))
        for precision in wanted
    ]
    expanded = list(dequantised_formats(model.architecture).items()) if not request.precision else []
    known_engines = sorted({engine.name for engine in engines})
    as_of = (request.engine or "").partition("@")[2]
    if request.engine and request.engine.partition("@")[0] not in known_engines:
        raise SpecError(
            f"engine {request.engine!r} is not known",
            near_keys(request.engine, known_engines) or [f"known: {', '.join(known_engines)}"],
        )
    for index, chip in enumerate(accelerators):
        before = len(stacks)
        here = engines_for(chip, engines, request.engine)
        offered = published
        if expanded and not any(_stores(engine, published[0][1]) for engine in here):
            # Nobody stores the published weights on this chip: they are expanded when they are loaded.
            offered = [*published[1:], *expanded]
            dequantised.append(chip.key)
        for engine in here:
            for label, formats in offered:
                if not _stores(engine, formats):
                    continue
                if not request.precision and not _pays_off(label, model, chip):
                    continue
                for kv_precision in _kv_precisions(request, engine, chip):
                    parameters = resolve_parameters(
                        calibration, engine.name, chip.family, label, engine.parameters, as_of=as_of
                    )
                    infos.append(StackInfo(chip, engine, label, kv_precision, calibration.basis))
                    stacks.append(
                        {
                            "accelerator": index,
                            "label": f"{engine.name}@{engine.as_of}",
                            "weight_precision": label,
                            "weights": formats,
                            "kv_precision": "nvfp4" if kv_precision == "fp4" else kv_precision,
                            "parameters": parameters,
                            "max_batch": None if request.max_batch else engine.max_batch,
                            "cache_group": groups.setdefault((engine.vendor, engine.name), len(groups)),
                        }
                    )
        if len(stacks) == before:
            cannot_run.append(chip.key)
    return infos, stacks, cannot_run, dequantised


def _stores(engine: Engine, formats: Mapping[str, str]) -> bool:
    """Whether an engine can keep weights in these formats; every engine can in 16 bits."""
    return set(formats.values()) <= set(engine.weight_formats) | {"bf16"}


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


def _assumptions(
    request: SearchRequest,
    model: Model,
    accelerators: Sequence[Accelerator],
    calibration: Calibration,
    dequantised: Sequence[str],
    speculation: Mapping[str, Any] | None,
    stacks: Sequence[Mapping[str, Any]],
) -> list[Assumption]:
    defaults = SearchRequest()
    found: list[Assumption] = []

    def assume(name: str, value: object, why: str) -> None:
        found.append(Assumption(name, str(value), why))

    if request.model == defaults.model:
        assume("model", model.key, "default of --model")
    if request.trace is not None:
        assume("isl/osl", f"{request.isl:,.0f}/{request.osl:,.0f}", f"means of {request.trace}, with its spread")
    elif request.isl == defaults.isl and request.osl == defaults.osl:
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
        assume("system power", f"{SYSTEM_OVER_TDP:g} x TDP", f"not published for {some_keys(estimated)}")
    quoted = [chip for chip in accelerators if chip.key in request.price]
    if quoted:
        units = ", ".join(f"{chip.chips_per_node} x {chip.key}" for chip in quoted)
        assume("unit of your quote", units, "--price gives no unit: whole nodes")
    if request.max_batch is None:
        own = sorted({(stack["label"].partition("@")[0], stack["max_batch"]) for stack in stacks if stack["max_batch"]})
        limits = [f"{name} {most:,}" for name, most in own]
        if any(not stack["max_batch"] for stack in stacks):
            limits.append(f"{DEFAULT_MAX_BATCH:,} where the engine states none")
        assume("max-batch", ", ".join(limits), "most requests at once on an attention rank (--max-batch)")
    if speculation and request.acceptance is None and request.accepted_tokens is None:
        assume("acceptance", speculation["acceptance"], "of drafted tokens; depends on your prompts (--acceptance)")
    if request.mode != "agg" and not request.kv_overlap:
        assume("kv-overlap", 0, "caches are sent after the prefill of the last layer (--kv-overlap)")
    if request.precision is None and len(offered_weight_precisions(model.architecture)) > 1:
        others = ", ".join(offered_weight_precisions(model.architecture)[1:])
        assume(
            "precision",
            f"{native_precision(model.architecture)} or {others}",
            "quantising below the published format changes answers; --precision native forbids it",
        )
    if dequantised:
        assume(
            "dequantised",
            f"{native_precision(model.architecture)} kept as fp8 or bf16",
            f"an engine of {some_keys(dequantised)} cannot store the published weights: they are expanded when loaded",
        )
    if request.kv_precision is None:
        assume("kv-precision", "bf16 or fp8", "an 8-bit cache is accepted where engine and chip have it")
    if calibration.basis == "uncalibrated":
        assume("efficiencies", calibration.name, calibration.source)
    return found


def some_keys(keys: Iterable[str], most: int = 4) -> str:
    """The first few keys, and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
