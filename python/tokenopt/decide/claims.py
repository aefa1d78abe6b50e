"""Published claims about cost per token, checked: what they say, what was measured, what the model predicts, and why.

The claims stand in a file (`claims.toml`): statement, operating point, prices, sides, each with its source. Verdicts are
computed from it, from the measured points and from the core; nothing here knows a claim.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenopt.errors import InfeasibleError, MissingDataError, SpecError
from tokenopt.measured.curves import Interpolation, MeasuredPoint, Operation, frontier, matching_points
from tokenopt.measured_basis import all_rows
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import DEFAULT_PUE, SearchRequest, build_problem, core_accelerator
from tokenopt.serve import run

BUNDLED = Path(__file__).parent / "data" / "claims.toml"

HOLDS, PART, FAILS, UNKNOWN = "holds", "holds in part", "not confirmed", "not measured"
_PART = 0.5
"""Share of what is claimed from which a claim holds in part."""
_HOURS_PER_YEAR, _SECONDS_PER_HOUR, _MILLION, _KW_PER_MW = 8760.0, 3600.0, 1e6, 1e3


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check: a quantity as claimed, as measured and as predicted; None where there is none.

    Attributes:
        what: The quantity.
        unit: Its unit.
        note: What the measured figure rests on, or what bounds it.
    """

    what: str
    unit: str
    claimed: float | None = None
    measured: float | None = None
    predicted: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim and what became of it.

    Attributes:
        key, title, who, source: The claim and where it was made.
        operating_point: Stated or inferred.
        claimed: What it says.
        measured: The same from measured points, None where they do not cover it.
        predicted: The same from the model, None where the model has no answer.
        verdict: `holds`, `holds in part`, `not confirmed` or `not measured`.
        why: The reason in words.
        findings: The lines behind it.
    """

    key: str
    title: str
    who: str
    source: str
    operating_point: str
    unit: str
    claimed: float
    measured: float | None
    predicted: float | None
    verdict: str
    why: str
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict."""
        return asdict(self)


def load_claims(path: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Claims and price tables of a file.

    Raises:
        SpecError: The file cannot be read, or a claim lacks a field.
    """
    file = path or BUNDLED
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{file} cannot be read: {error}") from error
    claims = data.get("claim", [])
    for claim in claims:
        for name in (
            "key",
            "title",
            "kind",
            "who",
            "source",
            "claimed",
            "model",
            "operating_point",
            "sides",
            "tolerance",
        ):
            if name not in claim:
                raise SpecError(f"{file}: claim {claim.get('key', '?')!r} has no {name}")
        if claim["kind"] not in _CHECKS:
            raise SpecError(f"{file}: claim {claim['key']!r} has kind {claim['kind']!r}, expected {', '.join(_CHECKS)}")
    return claims, data.get("prices", {})


def check_claims(
    registry: PluginRegistry, *, path: Path | None = None, only: Sequence[str] = (), predict: bool = True
) -> list[ClaimResult]:
    """Checks claims.

    Args:
        registry: Plugins that describe the accelerators.
        path: Another file of claims than the bundled one.
        only: Keys; all by default.
        predict: Whether the model is asked too.

    Returns:
        One result a claim, in the order of the file.

    Raises:
        SpecError: The file or a key cannot be used.
    """
    claims, prices = load_claims(path)
    known = [claim["key"] for claim in claims]
    for key in only:
        if key not in known:
            raise SpecError(f"no claim {key!r}", [f"claims: {', '.join(known)}"])
    return [
        _CHECKS[claim["kind"]](_Claim(claim, prices, registry, predict))
        for claim in claims
        if not only or claim["key"] in only
    ]


class _Claim:
    """A claim with the means to check it."""

    def __init__(
        self, data: Mapping[str, Any], prices: Mapping[str, Any], registry: PluginRegistry, predict: bool
    ) -> None:
        self.data = data
        self._prices = prices.get(data.get("prices", ""), {})
        self._registry = registry
        self._predict = predict
        self._rows = all_rows(data["model"], registry)
        self.sides: list[Mapping[str, Any]] = list(data["sides"])

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def lengths(self) -> tuple[float, float]:
        """Prompt and output length, tokens."""
        return float(self["isl"]), float(self["osl"])

    def usd_per_chip_hr(self, side: Mapping[str, Any]) -> float:
        """Price of a side."""
        own = side.get("usd_per_chip_hr", self.data.get("usd_per_chip_hr"))
        price = own if own is not None else self._prices.get("usd_per_chip_hr", {}).get(side["accelerator"])
        if price is None:
            raise SpecError(f"claim {self['key']!r} gives no price of {side['accelerator']}")
        return float(price)

    def kw_per_chip(self, side: Mapping[str, Any]) -> float:
        """All-in power of a side's chip, kW."""
        return float(self._prices["kw_per_chip"][side["accelerator"]])

    def points(self, side: Mapping[str, Any]) -> list[MeasuredPoint]:
        """Measured points of a side: bundled, of plugins, of the user's store, and the claim's own."""
        isl, osl = self.lengths()
        rows = [row for row in self._rows if _is_side(row, side)]
        rows += [self._own_row(point) for point in self.data.get("points", []) if _is_side(point, side)]
        return matching_points(rows, isl, osl)

    def _own_row(self, point: Mapping[str, Any]) -> dict[str, Any]:
        isl, osl = self.lengths()
        total = point.get("total_tps_per_chip")
        if total is None:
            # A printed price says a rate: money over money per token.
            total = point["usd_per_chip_hr"] / (point["usd_per_m_tokens"] * _SECONDS_PER_HOUR / _MILLION)
        return {
            **point, "kind": "serving", "scenario": "concurrency", "isl": isl, "osl": osl, "model": self["model"],
            "total_tps_per_chip": total, "output_tps_per_chip": total * osl / (isl + osl),
            "tpot_ms": 1e3 / point["tps_per_user"], "source_ref": self["key"],
        }  # fmt: skip

    def measured(self, side: Mapping[str, Any], interactivity: float | None) -> tuple[Operation | None, str]:
        """Best measured operation of a side at an interactivity (None = whatever), and what it rests on."""
        return _best(self.points(side), interactivity)

    def total_tps(self, place: Operation | None) -> float | None:
        """Input and output tokens/s per chip of an operation."""
        isl, osl = self.lengths()
        return place.output_tps_per_chip * (isl + osl) / osl if place is not None else None

    def usd(self, side: Mapping[str, Any], total_tps: float | None) -> float | None:
        """USD per 1M tokens, in and out, of a chip at a rate: the core's money for one chip at full load."""
        if total_tps is None:
            return None
        isl, osl = self.lengths()
        fleet = self.priced(side, total_tps * osl / (isl + osl), isl, osl)
        return float(fleet["usd_per_m_tokens"])

    def priced(
        self, side: Mapping[str, Any], output_tps: float, isl: float, osl: float, chips: int = 1
    ) -> dict[str, Any]:
        """The core's money for chips that deliver output tokens at a rate."""
        from tokenopt import _core

        chip = self._registry.accelerators.get(side["accelerator"])
        if chip is None:
            raise MissingDataError(f"claim {self['key']!r}: no plugin describes {side['accelerator']}")
        offer = {
            "id": 0,
            "usd_per_chip_hr": self.usd_per_chip_hr(side),
            "chips_per_instance": 1,
            "minimum_instances": 1,
        }
        question = {
            "workload": {"isl": isl, "osl": osl, "prefix_hit": 0.0},
            "demand": {"output_tps": output_tps * chips},
            "accelerators": [{**core_accelerator(chip, DEFAULT_PUE), "offers": [offer]}],
            "replicas": [{"accelerator": 0, "chips": 1, "output_tps": output_tps}],
        }
        fleet: dict[str, Any] = json.loads(_core.price(json.dumps(question)))[0]
        return fleet

    def predicted(self, side: Mapping[str, Any], interactivity: float | None, **more: Any) -> tuple[float | None, str]:
        """Total tokens/s per chip that the model predicts for a side in its best formats, and what with; None for no answer."""
        if not self._predict:
            return None, "not asked"
        isl, osl = (more.pop("isl"), more.pop("osl")) if "isl" in more else self.lengths()
        key = side["accelerator"]
        request = SearchRequest(
            model=self["model"], isl=isl, osl=osl, hardware=(key,), price={key: self.usd_per_chip_hr(side)},
            min_interactivity=interactivity, top=1, basis="calibrated", **more,
        )  # fmt: skip
        try:
            best = run(build_problem(request, self._registry), self._registry).best[0]
        except (InfeasibleError, MissingDataError, SpecError) as error:
            return None, error.message
        layout = best.layout
        words = f"{best.engine} {best.weight_precision} tp{layout.tp} dp{layout.attn_dp} ep{layout.ep}, {best.basis}"
        return best.output_tps_per_chip * (isl + osl) / osl, words


def _is_side(row: Mapping[str, Any], side: Mapping[str, Any]) -> bool:
    if row.get("accelerator") != side["accelerator"]:
        return False
    wanted = side.get("weight_precision")
    is_format = not wanted or str(row.get("weight_precision") or "").replace("mx", "").replace("nv", "") == wanted
    return is_format and side.get("engine") in (None, row.get("engine"))


def _best(points: Sequence[MeasuredPoint], interactivity: float | None) -> tuple[Operation | None, str]:
    best = frontier(points)
    if not best:
        return None, "no measured point"
    if interactivity is None:
        return _single(best[-1]), _name(best[-1])
    fast_enough = [point for point in best if point.tps_per_user >= interactivity]
    if not fast_enough:
        return (
            None,
            f"no measured point reaches {interactivity:g} tokens/s/user, the fastest has {best[0].tps_per_user:.0f}",
        )
    if len(best) > 1:
        place = Interpolation(best).at_interactivity(interactivity)
        if place is not None:
            return place, " and ".join(map(_name, place.between))
    return _single(fast_enough[-1]), f"at least: {_name(fast_enough[-1])} is the slowest point"


def _single(point: MeasuredPoint) -> Operation:
    return Operation(
        (point,), point.output_tps_per_chip, point.tpot_s, point.ttft_s, point.concurrency, point.chips, is_mix=False
    )


def _name(point: MeasuredPoint) -> str:
    row = point.row
    words = (str(row.get("source") or ""), str(row.get("measured_on") or ""), str(row.get("engine") or ""),
             str(row.get("speculative") or "").replace("none", ""), point.layout)  # fmt: skip
    return f"{point.tps_per_user:.0f} tokens/s/user ({', '.join(filter(None, words))})"


def _verdict(value: float | None, claimed: float, tolerance: float, *, less_is_better: bool = False) -> str:
    """Whether what is claimed is reached, in part, or not."""
    if value is None:
        return UNKNOWN
    reached = claimed / value if less_is_better else value / claimed
    return HOLDS if reached >= 1.0 / (1.0 + tolerance) else PART if reached >= _PART else FAILS


def _result(
    claim: _Claim,
    unit: str,
    measured: float | None,
    predicted: float | None,
    verdict: str,
    why: str,
    findings: list[Finding],
) -> ClaimResult:
    context = str(claim.data.get("context", ""))
    return ClaimResult(
        claim["key"], claim["title"], claim["who"], claim["source"], claim["operating_point"], unit, float(claim["claimed"]),
        measured, predicted, verdict, " ".join(filter(None, (why, context))), findings,
    )  # fmt: skip


def _check_cost(claim: _Claim) -> ClaimResult:
    side = claim.sides[0]
    interactivity = next(iter(claim.data.get("interactivities", [])), None)
    place, rests_on = claim.measured(side, interactivity)
    rate = claim.total_tps(place)
    at = interactivity or (1.0 / place.tpot_s if place else None)
    predicted_rate, how = claim.predicted(side, at)
    measured, predicted = claim.usd(side, rate), claim.usd(side, predicted_rate)
    claimed, price = float(claim["claimed"]), claim.usd_per_chip_hr(side)
    needed = price / (claimed * _SECONDS_PER_HOUR / _MILLION)
    verdict = _verdict(measured, claimed, claim["tolerance"], less_is_better=True)
    why = f"${claimed:g} at ${price:g} per chip-hour needs {needed:,.0f} tokens/s per chip" + (
        f"; measured are {rate:,.0f} at {at:.0f} tokens/s/user." if rate and at else "; nothing measured covers it."
    )
    findings = [
        Finding("cost per 1M tokens, in and out", "USD", claimed, measured, predicted, rests_on),
        Finding("tokens/s per chip, in and out", "1/s", needed, rate, predicted_rate, f"model: {how}"),
    ]
    return _result(claim, "USD per 1M tokens", measured, predicted, verdict, why, findings)


def _at(claim: _Claim, interactivity: float) -> tuple[list[float | None], list[float | None], list[str]]:
    """Measured and predicted total tokens/s per chip of both sides at an interactivity."""
    measured, predicted, notes = [], [], []
    for side in claim.sides:
        place, rests_on = claim.measured(side, interactivity)
        measured.append(claim.total_tps(place))
        rate, how = claim.predicted(side, interactivity)
        predicted.append(rate)
        notes.append(f"{side['accelerator']}: {rests_on}; model: {how}")
    return measured, predicted, notes


def _check_ratio(claim: _Claim, *, by_power: bool = False) -> ClaimResult:
    """How much less the first side costs per token than the second, or how much more it gets out of a megawatt."""
    first, second = claim.sides

    def quotient(rates: Sequence[float | None]) -> float | None:
        if rates[0] is None or rates[1] is None:
            return None
        if by_power:
            return rates[0] / claim.kw_per_chip(first) / (rates[1] / claim.kw_per_chip(second))
        ours, theirs = claim.usd(first, rates[0]), claim.usd(second, rates[1])
        return theirs / ours if ours and theirs else None

    findings: list[Finding] = []
    printed = claim.data.get("printed", {})
    if "usd_per_m_tokens" in printed and not by_power:
        dear, cheap = printed["usd_per_m_tokens"]
        findings.append(Finding("quotient of the printed costs", "times", float(claim["claimed"]), dear / cheap, None,
                                "arithmetic on the claim's own figures"))  # fmt: skip
    if "tokens_per_s_per_chip" in printed and not by_power:
        slow, fast = printed["tokens_per_s_per_chip"]
        findings.append(Finding("quotient of the printed rates at the printed prices", "times", float(claim["claimed"]),
                                quotient([fast, slow]), None, "arithmetic on the claim's own figures"))  # fmt: skip
    at_point: list[tuple[float | None, float | None]] = []
    points = [(value, True) for value in claim["interactivities"]] + [
        (value, False) for value in claim.data.get("also", [])
    ]
    told: dict[bool, list[str]] = {True: [], False: []}
    for interactivity, is_point in points:
        measured, predicted, notes = _at(claim, interactivity)
        pair = quotient(measured), quotient(predicted)
        if is_point:
            at_point.append(pair)
        findings.append(
            Finding(f"at {interactivity:g} tokens/s/user", "times", float(claim["claimed"]) if is_point else None, *pair,
                    "; ".join(notes))
        )  # fmt: skip
        for side, rate, expected in zip(claim.sides, measured, predicted, strict=True):
            cost = (None, None) if by_power else (claim.usd(side, rate), claim.usd(side, expected))
            findings.append(Finding(f"  {side['accelerator']} tokens/s per chip", "1/s", None, rate, expected))
            if not by_power:
                findings.append(Finding(f"  {side['accelerator']} per 1M tokens", "USD", None, *cost))
        if pair[0] is not None:
            told[is_point].append(f"{pair[0]:.3g} at {interactivity:g}")
    best = max(
        (pair for pair in at_point if pair[0] is not None), key=lambda pair: pair[0] or 0.0, default=(None, None)
    )
    predictions = [pair[1] for pair in at_point if pair[1] is not None]
    verdict = _verdict(best[0], float(claim["claimed"]), claim["tolerance"])
    why = "The measured points do not cover it."
    if told[True]:
        why = f"Measured at its operating point: {', '.join(told[True])} tokens/s/user."
        if told[False]:
            why += f" Elsewhere: {', '.join(told[False])}."
    return _result(claim, "times", best[0], max(predictions, default=None), verdict, why, findings)


def _check_progress(claim: _Claim) -> ClaimResult:
    """Rate of the last dated sweep over that of the first, on the same machine at the same interactivity."""
    by_day: dict[str, list[MeasuredPoint]] = {}
    for point in claim.points(claim.sides[0]):
        day = str(point.row.get("measured_on") or "")
        if day:
            by_day.setdefault(day, []).append(point)
    findings: list[Finding] = []
    printed = claim.data.get("printed", {}).get("tokens_per_s_per_chip")
    if printed:
        findings.append(Finding("quotient of the printed rates", "times", float(claim["claimed"]), printed[0] / printed[1], None,
                                "arithmetic on the claim's own figures"))  # fmt: skip
    best: float | None = None
    told = []
    for interactivity in [*claim["interactivities"], *claim.data.get("also", [])]:
        rates = []
        for day in sorted(by_day):
            curve = frontier(by_day[day])
            place = Interpolation(curve).at_interactivity(interactivity) if len(curve) > 1 else None
            if place is not None:
                rates.append((day, claim.total_tps(place) or math.nan))
        if len(rates) < 2:
            continue
        (first, slow), (last, fast) = rates[0], rates[-1]
        progress = fast / slow
        best = max(best or 0.0, progress)
        told.append(f"{progress:.2g} at {interactivity:g} tokens/s/user from {first} to {last}")
        findings.append(
            Finding(f"at {interactivity:g} tokens/s/user", "times", None, progress, None,
                    f"{slow:,.0f} tokens/s per chip on {first}, {fast:,.0f} on {last}")
        )  # fmt: skip
    begin, end = claim["window"]
    is_covered = len([day for day in by_day if begin <= day <= end]) > 1
    verdict = _verdict(best, float(claim["claimed"]), claim["tolerance"]) if is_covered else UNKNOWN
    why = f"Measured progress: {'; '.join(told)}." if told else "No two dated sweeps overlap."
    if not is_covered:
        why = f"No two sweeps are dated {begin} to {end}. {why}"
    return _result(claim, "times", best, None, verdict, why, findings)


def _check_revenue(claim: _Claim) -> ClaimResult:
    """Token revenue of an investment: the price per token that the claim implies, and what is left of it as measured."""
    side = claim.sides[0]
    isl, osl = claim.lengths()
    hours = float(claim["years"]) * _HOURS_PER_YEAR
    interactivity = claim["interactivities"][0]

    def tokens_m(rate: float) -> float:
        return float(claim["chips"]) * rate * hours * _SECONDS_PER_HOUR / _MILLION

    claimed_rate = float(claim["tokens_per_s_per_chip"])
    implied_usd_per_m = claim["revenue_usd"] / tokens_m(claimed_rate)
    implied_usd_per_chip_hr = claim["investment_usd"] / (claim["chips"] * hours)
    place, rests_on = claim.measured(side, interactivity)
    measured_rate = claim.total_tps(place)
    predicted_rate, how = claim.predicted(side, interactivity)

    def times(rate: float | None, usd_per_m: float) -> float | None:
        return tokens_m(rate) * usd_per_m / claim["investment_usd"] if rate is not None else None

    listed = claim["list_price"]
    blended = (isl * listed["usd_per_m_input"] + osl * listed["usd_per_m_output"]) / (isl + osl)
    measured, predicted = times(measured_rate, implied_usd_per_m), times(predicted_rate, implied_usd_per_m)
    findings = [
        Finding("revenue over investment at the implied price", "times", float(claim["claimed"]), measured, predicted, rests_on),
        Finding("price that the claim implies, per 1M tokens in and out", "USD", implied_usd_per_m, None, None,
                f"${claim['revenue_usd']:,.0f} over {tokens_m(claimed_rate) / _MILLION:,.1f}T tokens"),
        Finding("revenue over investment at the list price", "times", times(claimed_rate, blended), times(measured_rate, blended),
                times(predicted_rate, blended), f"${blended:.3g} per 1M tokens blended: {listed['source']}"),
        Finding("tokens/s per chip, in and out", "1/s", claimed_rate, measured_rate, predicted_rate, f"model: {how}"),
        Finding("investment per chip-hour", "USD", implied_usd_per_chip_hr, claim.usd_per_chip_hr(side), None,
                "measured: the owner's cost in the price table"),
        Finding("cost per 1M tokens", "USD", implied_usd_per_m / float(claim["claimed"]), claim.usd(side, measured_rate),
                claim.usd(side, predicted_rate), "at the owner's cost in the price table"),
    ]  # fmt: skip
    verdict = _verdict(measured, float(claim["claimed"]), claim["tolerance"])
    at_list = times(measured_rate, blended)
    why = f"It implies ${implied_usd_per_m:.2f} per 1M tokens sold" + (
        f"; at the list price the same measured rate returns {at_list:.1f} times." if at_list else "."
    )
    return _result(claim, "times", measured, predicted, verdict, why, findings)


def _check_day(claim: _Claim) -> ClaimResult:
    """Cost of a production day: the claim's own arithmetic in the core's money, and what the model predicts for its tokens."""
    side = claim.sides[0]
    chips = round(claim["nodes"] * claim["chips_per_node"])
    tokens_in, tokens_out = float(claim["input_tokens"]), float(claim["output_tokens"])
    ratio = tokens_in / tokens_out
    # Mean length of the cache while decoding is the prompt and half of the answer.
    osl = claim["mean_kv_tokens"] / (ratio + 0.5)
    isl = osl * ratio
    rate = tokens_out / (24.0 * _SECONDS_PER_HOUR) / chips
    fleet = claim.priced(side, rate, isl, osl, chips)
    day = fleet["usd_per_hr"] * 24.0
    interactivity = claim["interactivities"][0]
    predicted_rate, how = claim.predicted(
        side, interactivity, isl=isl, osl=osl, prefix_hit=claim["cached_tokens"] / tokens_in
    )
    predicted = None
    if predicted_rate is not None:
        per_m = claim.priced(side, predicted_rate * osl / (isl + osl), isl, osl)["usd_per_m_tokens"]
        predicted = per_m * (tokens_in + tokens_out) / _MILLION
    claimed = float(claim["claimed"])
    is_sum = abs(day / claimed - 1.0) <= 0.005
    verdict = HOLDS if is_sum else _verdict(day, claimed, claim["tolerance"], less_is_better=True)
    why = (
        f"{claim['nodes']:g} nodes at ${claim.usd_per_chip_hr(side):g} per chip-hour are ${day:,.0f} a day, "
        f"${fleet['usd_per_m_tokens']:.3f} per 1M tokens, ${fleet['usd_per_m_output_tokens']:.3f} if output carries it all"
    )
    if predicted is not None:
        why += f"; the model serves the same tokens at full load for ${predicted:,.0f}"
    findings = [
        Finding("cost of the day", "USD", claimed, day, predicted, f"model: {how}"),
        Finding("per 1M tokens, in and out", "USD", None, fleet["usd_per_m_tokens"],
                predicted / (tokens_in + tokens_out) * _MILLION if predicted else None, f"{isl:,.0f} in, {osl:,.0f} out"),
        Finding("per 1M output tokens", "USD", None, fleet["usd_per_m_output_tokens"], None),
        Finding("output tokens/s per chip", "1/s", None, rate, predicted_rate * osl / (isl + osl) if predicted_rate else None),
    ]  # fmt: skip
    return _result(claim, "USD per day", day, predicted, verdict, why + ".", findings)


_CHECKS: dict[str, Callable[[_Claim], ClaimResult]] = {
    "cost": _check_cost, "ratio": _check_ratio, "power": partial(_check_ratio, by_power=True),
    "progress": _check_progress, "revenue": _check_revenue, "day": _check_day,
}  # fmt: skip
