"""Reading published measurements: other vendors, older chips, offline, open-loop and limited-latency runs.

A row becomes an operating point that the core predicts, with the scenario that the source ran. What the source does not
print is inferred by a stated rule (:func:`_replica`, :func:`_lengths`) or the row carries a reason.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.catalog.models import load_bundled_model
from tokenopt.errors import SpecError
from tokenopt.measured.csv_rows import UNUSABLE, read_rows
from tokenopt.measured.published_notes import operating_point
from tokenopt.records import Accelerator

PUBLISHED_COLUMNS = ("id", "model", "gpu", "framework", "scenario", "isl", "osl")
"""Columns that tell this layout from that of concurrency sweeps."""

_WORKLOADS = Path(__file__).parent / "data" / "workloads.toml"

ENGINES = {
    "tensorrt-llm": "trtllm", "nim (tensorrt-llm)": "trtllm", "transformers-neuronx": "neuronx",
    "nxd-inference+vllm": "neuronx",
}  # fmt: skip
"""Catalogue name of engines that sources name otherwise; a front end (`dynamo+vllm`) is dropped before."""

VENDOR_ENGINES = {"nvidia": "trtllm", "amd": "vllm", "google": "vllm-tpu", "aws": "neuronx", "intel": "optimum-habana"}
"""Engine of a row that names none: the one that the vendor's own submissions use."""

TRTLLM_MAX_BATCH = 2048
VLLM_V0_MAX_BATCH = 256
VLLM_MAX_BATCH = 1024
LARGE_MEMORY_BYTES = 70 * 2**30
"""Batch caps that hold unless a source prints its own: TensorRT-LLM's default `max_batch_size`; vLLM's `max_num_seqs` 256,
since its V1 engine 1024 on chips of more than 70 GiB, A100 excepted."""

FIRST_RANKS = (1, 0)
"""First version of TensorRT-LLM that replicates attention over the ranks of an expert model."""

ACCEPTANCE = {"sglang": 0.49, "trtllm": 0.66, "atom": 0.61}
DEFAULT_ACCEPTANCE = 0.58
DRAFT_ACCEPTANCE = 0.8
DEFAULT_DEPTH = 3
"""Chance that a drafted token is accepted, by engine, with the model's own prediction head on random prompts, and with a
draft model on text; depth where none is printed. No source prints either: the values are those at which labelled runs and
the same stacks without speculation agree (1.85, 2.4 and 2.2 tokens a step at depth 3). They are no property of hardware."""

TTFT_TAIL, TPOT_TAIL = 3.0, 1.5
"""99th percentile over mean under MLPerf's limits. Source: measured percentiles of open-loop runs below saturation (2.0 and
1.3 to 1.4 over the median) and the MLPerf server rows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of parallelism of one replica."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    attn_dp: int = 1

    @property
    def chips(self) -> int:
        """Chips of the replica."""
        return self.tp * self.pp * self.attn_dp


@dataclass(frozen=True, slots=True)
class Pools:
    """What stands beside the decode layout of a disaggregated deployment."""

    prefill: Layout
    prefill_workers: float
    decode_workers: float


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One published measurement as an operating point.

    Attributes:
        id, source, date, model, accelerator, version: As in the file.
        engine: Catalogue name of the engine.
        generation: Generation of engine and host that has terms of its own; empty for current ones.
        weight_precision: Catalogue label of the weights.
        is_weight_only: Whether products run in 16 bits whatever the weights are stored in.
        kv_precision: Format of the KV cache.
        isl, osl: Mean lengths, tokens.
        osl_cv2: Squared coefficient of variation of the output lengths.
        scenario: Name of the scenario in the file.
        load: The core's scenario.
        layout: Layout of a replica.
        alternatives: Other layouts of as many chips, where the source prints none; the best one counts.
        replicas: Copies of the layout behind one front.
        concurrency: Requests in flight per replica, or its static batch.
        max_batch: Most requests an attention rank runs; None = memory decides.
        chunk_tokens: Prefill tokens of a step.
        ttft_s, tpot_s: Measured latencies; None where not printed.
        output_tps_per_chip, total_tps_per_chip: Measured rates; total counts input tokens too.
        ttft_is_median: Whether the printed time to first token is a median.
        depth: Tokens that a speculative step drafts; 0 without speculation.
        acceptance: Chance that a drafted token is accepted.
        pools: Prefill workers and number of decode workers of a disaggregated deployment; None where it is none or not
            printed.
        reason: Why the row is not scored; empty when it is.
    """

    id: str
    source: str
    date: str
    model: str
    accelerator: str
    engine: str
    version: str
    generation: str
    weight_precision: str
    is_weight_only: bool
    kv_precision: str
    isl: float
    osl: float
    osl_cv2: float
    scenario: str
    load: Any
    layout: Layout
    alternatives: tuple[Layout, ...]
    replicas: float
    concurrency: float
    max_batch: float | None
    chunk_tokens: float
    ttft_s: float | None
    tpot_s: float | None
    output_tps_per_chip: float | None
    total_tps_per_chip: float | None
    ttft_is_median: bool
    depth: int
    acceptance: float
    pools: Pools | None
    is_disaggregated: bool
    reason: str

    @property
    def is_decode_pool(self) -> bool:
        """Whether the run is that of a pool whose prompts another pool prefills."""
        return self.scenario.split("+")[0].endswith("-decode")

    @property
    def is_speculative(self) -> bool:
        """Whether the run speculates."""
        return self.scenario.endswith(("+mtp", "+spec"))


@dataclass(slots=True)
class PublishedRows:
    """Rows that can be predicted, and the reason of each of the others."""

    rows: list[PublishedRow] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class _Refusal(Exception):
    """Why a row cannot become an operating point."""


def is_published(columns: Sequence[str]) -> bool:
    """Whether a file has the columns of published measurements."""
    return {"scenario", "isl", "osl", "model"} <= set(columns)


def read_published(raw: Sequence[Mapping[str, str]], chips: Mapping[str, Accelerator]) -> PublishedRows:
    """Operating points of a file of published measurements.

    Args:
        raw: Rows as text.
        chips: Accelerators of the catalogue, by key.

    Returns:
        The rows, and reasons.
    """
    found = PublishedRows()
    for entry in raw:
        try:
            found.rows.append(_row(entry, chips))
        except _Refusal as refusal:
            found.refused[entry["id"]] = str(refusal)
    return found


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text.

    Raises:
        SpecError: The file cannot be read or is empty.
    """
    return read_rows(path, PUBLISHED_COLUMNS, "serving_published.csv")


def _row(entry: Mapping[str, str], chips: Mapping[str, Accelerator]) -> PublishedRow:
    point = {**entry, **operating_point(entry)}
    scenario = entry["scenario"]
    base = scenario.split("+")[0]
    chip = chips.get(entry["gpu"])
    if entry.get(UNUSABLE):
        raise _Refusal(entry[UNUSABLE])
    if not entry["gpu"]:
        raise _Refusal("accelerator not printed")
    if chip is None:
        raise _Refusal(f"accelerator {entry['gpu']} is not in the catalogue")
    if base.startswith(("iso-", "min-latency")) and not _number(point, "concurrency"):
        raise _Refusal("operating point not printed")
    if base == "production-24h":
        raise _Refusal("a day of production, not an operating point")
    engine = engine_name(entry.get("framework", ""), chip)
    is_mlperf = base in ("server", "interactive") or (
        base == "offline-max" and entry.get("source", "").startswith("MLPerf")
    )
    isl, osl, cv2 = _lengths(point, base, is_mlperf)
    label, is_weight_only = _precision(entry, chip, engine, is_mlperf)
    layout, alternatives, replicas = _replica(point, chip, base, is_mlperf, isl, osl)
    concurrency = _number(point, "concurrency")
    pools = _pools(point, layout)
    if pools is not None and base == "fixed-concurrency":
        # The clients of a disaggregated deployment meet all of its workers.
        replicas = 1.0
    load = _load(point, base, is_mlperf, replicas, osl, concurrency)
    max_batch = _number(point, "max_batch") or _default_max_batch(engine, entry.get("framework_version", ""), chip)
    if base == "offline-max" and isinstance(load, str) and concurrency:
        max_batch = max(1.0, concurrency / replicas / layout.attn_dp)
    return PublishedRow(
        id=entry["id"], source=entry.get("source", ""), date=entry.get("date", ""), model=entry["model"],
        accelerator=entry["gpu"], engine=engine, version=entry.get("framework_version", ""),
        generation=generation_of(engine, _engine_version(entry), is_server=_is_server(base, point)),
        weight_precision=label, is_weight_only=is_weight_only,
        kv_precision=_kv_precision(entry, label, engine, is_mlperf), isl=isl, osl=osl, osl_cv2=cv2, scenario=scenario,
        load=load, layout=layout, alternatives=alternatives, replicas=replicas,
        concurrency=max(1.0, (concurrency or 1.0) / replicas), max_batch=max_batch,
        chunk_tokens=_number(point, "chunk_tokens") or 8192.0,
        ttft_s=_seconds(entry, "ttft_ms"), tpot_s=_measured_tpot(entry),
        output_tps_per_chip=_number(entry, "output_tps_per_gpu"),
        total_tps_per_chip=_number(entry, "total_tps_per_gpu"),
        ttft_is_median=not point["is_mean_ttft"],
        depth=int(_number(point, "speculated_tokens") or DEFAULT_DEPTH) if "+" in scenario else 0,
        acceptance=_acceptance(scenario, engine), pools=pools,
        is_disaggregated=point.get("disagg") == "1",
        reason=_unscored(point, entry, base, chip, engine, isl, osl),
    )  # fmt: skip


def _acceptance(scenario: str, engine: str) -> float:
    return DRAFT_ACCEPTANCE if scenario.endswith("+spec") else ACCEPTANCE.get(engine, DEFAULT_ACCEPTANCE)


def engine_name(framework: str, chip: Accelerator) -> str:
    """Catalogue name of an engine as a source prints it.

    `dynamo+tensorrt-llm` and `mori+sglang` are the engine behind a router; vLLM on TPU and Ascend are ports of their own.
    """
    name = framework.strip().lower()
    if not name:
        return VENDOR_ENGINES.get(chip.vendor, "vllm")
    if name not in ENGINES:
        name = name.split("+")[-1]
    if name == "vllm" and chip.vendor == "google":
        return "vllm-tpu"
    return ENGINES.get(name, name)


def _engine_version(entry: Mapping[str, str]) -> str:
    """Version of the engine itself: behind a router (`dynamo+tensorrt-llm`) the printed one is the router's image."""
    return "" if "+" in entry.get("framework", "") else entry.get("framework_version", "")


def version_of(text: str) -> tuple[int, int] | None:
    """Major and minor version in a text such as `v0.11.0`, `0.7.3 (ROCm 6.3.1)` or an image name; None without one."""
    match = re.search(r"(?:^|[^\d.])v?(\d+)\.(\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def generation_of(engine: str, version: str, *, is_server: bool) -> str:
    """Generation of an engine whose host code costs a term of its own.

    vLLM before 0.8 schedules, samples and streams in one Python process: each step and each streamed request costs
    milliseconds of it; called offline, without streaming, much less.
    """
    known = version_of(version)
    if engine == "vllm" and known is not None and known < (0, 8):
        return "vllm-v0 server" if is_server else "vllm-v0 offline"
    if engine == "trtllm" and known is not None and known < (1, 0) and is_server:
        return "trtllm-v0 server"
    if engine == "trtllm" and not is_server and (version.startswith("docs") or (known and (1, 0) <= known < (9, 0))):
        return "trtllm-pytorch offline"
    return ""


def _is_server(base: str, point: Mapping[str, str]) -> bool:
    return base in ("fixed-concurrency", "fixed-qps") or bool(point.get("is_all_at_once"))


def _lengths(point: Mapping[str, str], base: str, is_mlperf: bool) -> tuple[float, float, float]:
    """Mean lengths and squared variation of the output length: printed, or those of the data set that was named."""
    isl, osl = _number(point, "isl"), _number(point, "osl")
    known = _workloads()
    data: Mapping[str, Any] = {}
    if is_mlperf:
        data = known["mlperf"].get(point["model"], {})
    elif point["dataset"]:
        data = known["dataset"].get(point["dataset"], {})
    isl = isl or data.get("isl")
    osl = osl or data.get("osl")
    if base.endswith("-prefill"):
        osl = 1.0
    elif base.endswith("-decode"):
        osl = osl or 1024.0
    if not isl or not osl:
        raise _Refusal("lengths not printed")
    share = 0.9 if point.get("source", "").startswith("InferenceX") else 1.0
    return isl * share, osl if osl == 1.0 else osl * share, float(data.get("cv2", 0.0))


@cache
def _workloads() -> dict[str, Any]:
    return tomllib.loads(_WORKLOADS.read_text(encoding="utf-8"))


def _precision(entry: Mapping[str, str], chip: Accelerator, engine: str, is_mlperf: bool) -> tuple[str, bool]:
    """Weight label, and whether products run in 16 bits.

    Not printed: MLPerf submissions use eight bits where the chip has them; elsewhere sixteen.
    """
    label = entry.get("weight_precision", "").lower()
    if not label:
        return ("fp8" if "fp8" in chip.peak_flops else "bf16") if is_mlperf else "bf16", False
    if label == "fp16":
        return "bf16", False
    if label in ("w8a8", "int8"):
        return "int8", engine == "neuronx"
    if label == "w8a16":
        return "int8", True
    if label == "w4a16":
        return "int4", True
    if label == "fp4" and chip.vendor != "nvidia":
        return "mxfp4", False
    return label, False


def _kv_precision(entry: Mapping[str, str], label: str, engine: str, is_mlperf: bool) -> str:
    printed = entry.get("kv_precision", "").lower()
    if printed in ("bf16", "fp16", "fp8"):
        return "fp8" if printed == "fp8" else "bf16"
    if printed == "auto" and label == "mxfp4":
        # Such checkpoints hold no scales for the cache.
        return "bf16"
    is_quantised = label not in ("bf16", "int8", "int4")
    uses_eight_bits = entry.get("source", "").startswith("InferenceX") or engine in ("trtllm", "optimum-habana")
    return "fp8" if is_quantised and (uses_eight_bits or is_mlperf) else "bf16"


def _replica(
    point: Mapping[str, str], chip: Accelerator, base: str, is_mlperf: bool, isl: float, osl: float
) -> tuple[Layout, tuple[Layout, ...], float]:
    """Layout of a replica, the alternatives where none is printed, and how many replicas share the load.

    Printed tensor parallelism above the chip count counts cores: the chips stand for it. `attn_dp` is a flag: attention is
    then data-parallel over all of `tp`. A pool's layout stands for a disaggregated row. Without a printed layout every
    power of two up to the scale-up domain is tried; without a printed chip count, Little's law gives it where latencies
    and rate are printed.
    """
    tp, pp, ep = (int(_number(point, name) or 0) for name in ("tp", "pp", "ep"))
    pp = pp or 1
    is_pool = point.get("disagg") == "1"
    chips = _number(point, "decode_gpus") if is_pool else _number(point, "n_gpus")
    has_attention_ranks = point.get("attn_dp") not in (None, "", "0")
    if not chips and tp:
        chips = float(tp * pp)
    width = _worker_chips(chips, _number(point, "decode_workers")) if is_pool else None
    if width and width > (tp or ep or width) * pp:
        # A worker of a pool fills its chips: degrees below that leave out the ranks of attention and of experts.
        return _worker_layout(width, pp, ep, has_attention_ranks), (), 1.0
    if not chips:
        chips = _chips_by_littles_law(point, isl, osl)
    is_span_free = not chips and not ep and not tp and base.endswith(("-prefill", "-decode"))
    if not chips and base.endswith(("-prefill", "-decode")):
        chips = float(ep or chip.chips_per_node)
    if not chips:
        raise _Refusal("number of chips not printed")
    if not tp and (is_mlperf or not is_pool):
        widths = [1 << power for power in range(12) if (1 << power) <= min(chips, chip.scale_up_domain_chips, 16)]
        if not is_mlperf:
            # A deployment of so many chips is one replica.
            widths = [min(int(chips), 1 << 10)]
        options = [Layout(tp=width) for width in widths]
        if has_attention_ranks or is_mlperf:
            options += [Layout(attn_dp=width, ep=width) for width in widths if width > 1]
        first, *others = options
        return first, tuple(others), max(1.0, chips / first.chips)
    if not tp:
        tp = ep if ep > 1 else int(chips)
    data_parallel = int(_number(point, "data_parallel") or 1)
    if tp * pp > chips and not is_pool:
        tp = max(1, int(chips) // pp)
    if data_parallel > 1 and tp == 1:
        return Layout(attn_dp=int(chips), ep=max(ep, 1)), (), 1.0
    ranks = Layout(tp=1, pp=pp, attn_dp=tp, ep=_divisor(ep or tp, tp))
    if has_attention_ranks and tp > 1:
        wider = [tp << power for power in range(1, 8) if is_span_free and tp << power <= chip.scale_up_domain_chips]
        return ranks, tuple(Layout(attn_dp=width, ep=width) for width in wider), max(1.0, chips / ranks.chips)
    layout = Layout(tp=tp, pp=pp, ep=_divisor(ep or 1, tp))
    is_table = base == "offline-max" and not _number(point, "requests")
    may_have_ranks = point.get("attn_dp") in (None, "") and tp > 1 and (is_pool or is_table)
    if engine_name(point.get("framework", ""), chip) == "trtllm":
        may_have_ranks &= (version_of(_engine_version(point)) or FIRST_RANKS) >= FIRST_RANKS
    alternatives = (ranks,) if may_have_ranks and _has_experts(point["model"]) else ()
    return layout, alternatives, max(1.0, chips / layout.chips)


@cache
def _has_experts(model: str) -> bool:
    """Whether a bundled model routes tokens to experts; what is not bundled is refused later."""
    try:
        layers = load_bundled_model(model).architecture["layers"]
    except SpecError:
        return False
    return any(group.get("ffn", {}).get("kind") == "moe" for group in layers)


def _worker_chips(chips: float | None, workers: float | None) -> int | None:
    """Chips of one worker of a pool, None where that is not printed or no whole number."""
    if not chips or not workers or chips % workers:
        return None
    return int(chips // workers)


def _worker_layout(width: int, pp: int, ep: int, has_attention_ranks: bool) -> Layout:
    """Layout of a worker whose printed degrees make up fewer chips than it has."""
    ranks = max(1, width // pp)
    if has_attention_ranks:
        return Layout(pp=pp, attn_dp=ranks, ep=_divisor(ep, ranks) if ep > 1 else ranks)
    return Layout(tp=ranks, pp=pp, ep=_divisor(ep or 1, ranks))


def _divisor(ep: int, chips: int) -> int:
    return math.gcd(ep, chips) if ep else 1


def _chips_by_littles_law(point: Mapping[str, str], isl: float, osl: float) -> float | None:
    """Chips of a run whose rate is printed per chip: requests in flight over request time and rate, to a power of two."""
    per_chip, concurrency = _number(point, "total_tps_per_gpu"), _number(point, "concurrency")
    tpot_s, ttft_s = _measured_tpot(point), _seconds(point, "ttft_ms")
    if not per_chip or not concurrency or not tpot_s:
        return None
    chips = concurrency * (isl + osl) / ((ttft_s or 0.0) + tpot_s * osl) / per_chip
    return float(2 ** max(0, round(math.log2(chips))))


def _load(
    point: Mapping[str, str], base: str, is_mlperf: bool, replicas: float, osl: float, concurrency: float | None
) -> Any:
    requests = _number(point, "requests")
    if base in ("server", "interactive"):
        limits = _workloads()["mlperf"].get(point["model"], {}).get("limits", {}).get(base)
        printed = _number(point, "ttft_limit_s"), _number(point, "tpot_limit_s")
        ttft_s, tpot_s = printed if all(printed) else limits or (None, None)
        if not ttft_s or not tpot_s:
            raise _Refusal("latency limits not known")
        return {"limited": {"ttft_s": ttft_s, "tpot_s": tpot_s, "ttft_tail": TTFT_TAIL, "tpot_tail": TPOT_TAIL}}
    if base == "static-batch":
        return "static"
    if base == "offline-burst":
        longest = _number(point, "longest_osl") or osl
        return {"burst": {"requests": (concurrency or requests or 1.0) / replicas, "longest_osl": max(longest, osl)}}
    if base == "fixed-qps":
        rate = _number(point, "requests_per_s")
        if not rate:
            raise _Refusal("request rate not printed")
        run = {"requests": requests / replicas} if requests else {}
        return {"open": {"per_s": rate / replicas, **run}}
    if base.startswith("offline-max"):
        if requests and not is_mlperf:
            return {"burst": {"requests": requests / replicas, "longest_osl": osl}}
        return "endless"
    return "closed"


def _default_max_batch(engine: str, version: str, chip: Accelerator) -> float | None:
    """Batch cap that an engine has unless told otherwise."""
    known = version_of(version)
    if engine == "trtllm":
        return TRTLLM_MAX_BATCH
    if engine.startswith("vllm"):
        is_old = known is not None and known < (0, 8)
        is_large = chip.hbm_bytes >= LARGE_MEMORY_BYTES and not chip.key.startswith(("a100", "a800"))
        return VLLM_MAX_BATCH if is_large and not is_old else VLLM_V0_MAX_BATCH
    return None


def _pools(point: Mapping[str, str], decode: Layout) -> Pools | None:
    """Workers of a disaggregated deployment: as printed, else as many of the printed layouts as its chips hold.

    A prefill pool whose layout is not printed is one worker with tensor parallelism within a node.
    """
    prefill_chips, decode_chips = _number(point, "prefill_gpus"), _number(point, "decode_gpus")
    if point.get("disagg") != "1" or not prefill_chips or not decode_chips:
        return None
    tp = int(_number(point, "prefill_tp") or min(prefill_chips, 8))
    ep = _divisor(int(_number(point, "prefill_ep") or 1), tp)
    has_ranks = point["prefill_attn_dp"] == "1"
    layout = Layout(tp=1, attn_dp=tp, ep=ep) if has_ranks else Layout(tp=tp, ep=ep)
    width = _worker_chips(prefill_chips, _number(point, "prefill_workers"))
    if width and width > layout.chips:
        layout = _worker_layout(width, 1, ep, has_ranks)
    return Pools(
        prefill=layout,
        prefill_workers=_number(point, "prefill_workers") or max(1.0, prefill_chips / layout.chips),
        decode_workers=_number(point, "decode_workers") or max(1.0, decode_chips / decode.chips),
    )


def _unscored(
    point: Mapping[str, str],
    entry: Mapping[str, str],
    base: str,
    chip: Accelerator,
    engine: str,
    isl: float,
    osl: float,
) -> str:
    """Why a row is predicted but not scored; empty when it is."""
    if point["is_queue_limited"]:
        return "queue in front of the server"
    if point["has_failed_accuracy"]:
        return "failed its own accuracy check"
    if osl < 16 and not base.endswith("-prefill"):
        return "answers shorter than 16 tokens"
    known = version_of(entry.get("framework_version", ""))
    if engine == "vllm" and known is not None and known < (0, 8) and isl > 8192 and base != "offline-burst":
        return "no captured graph beyond 8,192 tokens"
    if point["is_all_at_once"] and isl + osl < 600 and "fp8" in chip.peak_flops:
        return "client-bound: short requests sent at once to a fast chip"
    return ""


def _measured_tpot(entry: Mapping[str, str]) -> float | None:
    printed = _seconds(entry, "tpot_ms")
    if printed:
        return printed
    per_user = _number(entry, "tps_per_user")
    return 1.0 / per_user if per_user and entry.get("scenario", "").startswith("fixed-concurrency") else None


def _seconds(entry: Mapping[str, str], name: str) -> float | None:
    value = _number(entry, name)
    return value / 1e3 if value else None


def _number(entry: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(entry.get(name) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
