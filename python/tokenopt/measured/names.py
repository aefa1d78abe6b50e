"""What benchmark files call accelerators and engines, and what the catalogue calls them."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.prices.names import chip_by_name, chip_of_slice, variant_keys

_ACCELERATOR_NAMES = Path(__file__).parent / "data" / "accelerator_names.csv"
_PRECISIONS = (
    ("nvfp4", "fp4"), ("mxfp4", "mxfp4"), ("fp4", "fp4"), ("fp8", "fp8"), ("bfloat16", "bf16"), ("bf16", "bf16"),
    ("float16", "fp16"), ("fp16", "fp16"), ("w4a16", "int4"), ("awq", "int4"), ("gptq", "int4"), ("uint4", "int4"),
    ("int4", "int4"), ("w8a8", "int8"), ("int8", "int8"), ("fp32", "fp32"),
)  # fmt: skip
_ENGINES = (
    ("dynamo-trt", "dynamo-trtllm"), ("dynamo-sglang", "dynamo-sglang"), ("dynamo-vllm", "dynamo-vllm"),
    ("mori-sglang", "mori-sglang"), ("dynamo+tensorrt-llm", "dynamo-trtllm"), ("dynamo+sglang", "dynamo-sglang"),
    ("dynamo+vllm", "dynamo-vllm"), ("mori+sglang", "mori-sglang"), ("trt", "trtllm"), ("tensorrt-llm", "trtllm"),
    ("tensorrtllm", "trtllm"), ("trtllm", "trtllm"), ("tensorrt", "trtllm"), ("vllm", "vllm"), ("sglang", "sglang"),
    ("sgl", "sglang"),
    ("atom", "atom"), ("deepspeed", "deepspeed"), ("llama.cpp", "llama.cpp"), ("tgi", "tgi"),
    ("text-generation-inference", "tgi"), ("nemo", "nemo"),
    ("megatron", "megatron"), ("neuronx", "neuronx"), ("habana", "optimum-habana"), ("openvino", "openvino"),
    ("maxtext", "maxtext"), ("sambaflow", "sambaflow"),
)  # fmt: skip
"""Part of a name, and what it is called here; the first that fits."""

_FAMILY_OF_SHORT = {
    "gb200": "gb200-nvl72", "gb300": "gb300-nvl72", "b200": "b200-sxm", "b300": "b300-sxm", "h100": "h100-sxm",
    "h200": "h200-sxm", "h20": "h20",
}  # fmt: skip
_COUNT = re.compile(
    r"^\d{1,4} ?[x×*] ?(?=\D)|(?<=\w)(?<!rt)(?<!gt)[ -]?[x×*] ?\d{1,3}$| ?[(\[][x×]?\d{1,4}[x×]?[)\]]$", re.IGNORECASE
)
"""How many there are, before or behind a name: 8xH100, MI300X x8."""
_CLOUD_CHIP = re.compile(r"\b(tpu[ _-]?v\d+[ep]?|trn[123](?!\d)|inf[12](?!\d))\b", re.IGNORECASE)
_IN_PATH = re.compile(
    r"(?<![a-z0-9.])(?:(\d{1,3})x[-_ ]?)?(gb300|gb200|b300|b200|h200|h100|a100|l40s|mi3(?:00x|25x|50x|55x)|gaudi[23]|"
    r"rtx[-_ ]?pro[-_ ]?6000|5090|4090)(?:[-_ ]?x(\d{1,3})(?![a-z0-9]))?(?:[-_ ]?tp(\d{1,2}))?(?![a-z0-9])",
    re.IGNORECASE,
)


@cache
def _accelerator_names() -> dict[str, str]:
    """Keys by name without case and punctuation: what no provider's price table calls an accelerator."""
    with _ACCELERATOR_NAMES.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["key"] for row in csv.DictReader(file)}


def precision_in(text: str) -> str:
    """Weight format named in a text (a repository name, a field), empty where none is."""
    lower = text.lower().replace("-", "").replace("_", "")
    return next((label for word, label in _PRECISIONS if word in lower), "")


@cache
def engine_name(text: str) -> str:
    """Engine name for a framework as a file writes it; its first word, in lower case, where no rule knows it."""
    lower = text.strip().lower()
    return next((name for part, name in _ENGINES if part in lower), re.split(r"[ ,;]", lower)[0])


@cache
def accelerator_key(name: str) -> str:
    """Catalogue key of an accelerator as a file writes it, empty where no table knows it."""
    text = _COUNT.sub("", name.strip())
    if not text:
        return ""
    if text.lower() in {*variant_keys(), *_accelerator_names().values()}:
        return text.lower()
    short = re.sub(r"[^a-z0-9]|^(nvidia|amd|intel|google|cloud|huawei|aws)", "", re.sub(r"[^a-z0-9]", "", text.lower()))
    if short in _FAMILY_OF_SHORT:
        return _FAMILY_OF_SHORT[short]
    if short in _accelerator_names():
        return _accelerator_names()[short]
    if (plain_cloud := _CLOUD_CHIP.search(text)) is not None:
        return re.sub(r"[ _-]+", "-", plain_cloud.group(0).lower())
    if (ascend := re.search(r"ascend[ -]?(910[a-z]\d?)", text, re.IGNORECASE)) is not None:
        return f"ascend-{ascend.group(1).lower()}"
    slice_ = chip_of_slice(text)
    if slice_ is not None:
        return slice_[0]
    plain = re.sub(r"\bblackwell gpu\b|\bhopper gpu\b|\bgpu\b|\bblackwell\b", " ", text, flags=re.IGNORECASE)
    known = chip_by_name(text) or chip_by_name(plain) or chip_by_name(re.sub(r"[^A-Za-z0-9 ]", " ", plain).strip())
    if known is None:
        inside = re.search(r"\(([A-Za-z]{1,3}\d{3}[A-Za-z]?)\)|(gaudi[ -]?[23])", text, re.IGNORECASE)
        return accelerator_key(next(filter(None, inside.groups()))) if inside and inside.group(0) != text else ""
    return known.key


def hardware_in_path(path: str) -> tuple[str, int | None]:
    """Accelerator and chips that a file or folder name states (`8xH100-...`, `h200_tp8_...`), for files that say nothing.

    Returns:
        Name and chips; an empty name where none is found, None chips where they are not stated.
    """
    for part in reversed(re.split(r"[/\\]", path)):
        found = [(name, before or after or tp) for before, name, after, tp in _IN_PATH.findall(part)]
        if found:
            # A name may stand twice, once with its count.
            name, count = next((entry for entry in found if entry[1]), found[0])
            return name, int(count) if count else None
    return "", None


def number(value: Any) -> float | None:
    """A number of a file that may be text with thousands separators; None for what is missing.

    NaN and infinity pass: the checks of a point name them.
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        text = value.strip().replace(",", "")
        if not text or text.lower() in ("n/a", "na", "none", "null", "-", "--"):
            return None
        try:
            return float(text)
        except ValueError:
            return None
    return None
