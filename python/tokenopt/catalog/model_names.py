"""Names of models as people, benchmarks and repositories write them, and what the catalogue calls them.

A fine-tune or a distillation of another model has its architecture, so it stands for it: `data/model_names.csv` lists what
a rule cannot tell. Formats, tuning, dates and context lengths in a name do not change the architecture and are left aside.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenopt.catalog.models import bundled_model_keys, load_bundled_model

_NAMES = Path(__file__).parent / "data" / "model_names.csv"
_TUNING = re.compile(
    r"[-.](?:(?:nv)?fp[48]-v\d+|instruct|it|chat|hf|base|fp8|fp4|nvfp4|mxfp4|mxfp8|bf16|fp16|int4|int8|w4a16|w8a8|w8a16|awq|gptq|gguf|bnb|4bit|"
    r"8bit|dynamic|static|kv|quark|preview|turbo|thinking|reasoning|v\d+\.\d+|\d\d-\d{4}|\d{4}|\d{6,8}|\d+k|amd|meta|mlperf|"
    r"pruned\d*|finetuned|block|channel|tensor|ptpc|marlin|mtp|eagle3?|hermes|lora|sft|dpo|text|pt|pre-training)(?=$|[-.])"
)
"""Words between dashes that say how weights were tuned, stored or measured."""
_PACKERS = ("meta-", "nvidia-", "amd-", "ai21-", "c4ai-", "google-", "openai-", "mistralai-", "qwen-", "microsoft-")
_SIZE_AT_END = re.compile(r"-(\d+(?:\.\d+)?)([bt])(?:-a\d+(?:\.\d+)?b)?$")
_SIZE_TOLERANCE = 0.1
_MIN_PREFIX = 8
"""Characters below which the beginning of a key is no name for it."""
_MIN_IN_TEXT = 6
"""Characters below which a name inside a text is a chance."""


@cache
def model_key(name: str) -> str:
    """Catalogue key of a model as a benchmark or a repository writes it; empty where the catalogue lacks it.

    Args:
        name: For instance `nvidia/Llama-3.3-70B-Instruct-FP4`, `llama3_1-405b`, `DeepSeek R1`.
    """
    parts = [part for part in re.split(r"[/\\]", name.strip().lower()) if part]
    if not parts:
        return ""
    for candidate in _candidates(_dashed(parts[-1])):
        key = _known(candidate) or _known_without_size(candidate)
        if key:
            return key
    return _by_beginning(_untuned(_dashed(parts[-1])))


@cache
def model_in_text(text: str) -> str:
    """Catalogue key whose name stands inside a text such as a file name; the longest where several do."""
    plain = _compact(_dashed(text.lower()))
    inside = [name for name in _by_compact_name() if len(name) >= _MIN_IN_TEXT and name in plain]
    return _by_compact_name()[max(inside, key=len)] if inside else ""


def _dashed(name: str) -> str:
    """A name with one dash between words: underscores and blanks are dashes, `3p1` and `3_1` are 3.1."""
    dotted = re.sub(r"(?<=\d)p(?=\d)", ".", name)
    dotted = re.sub(r"(?<=[a-z]\d)_(?=\d[-_])", ".", dotted)
    return re.sub(r"[\s_+]+|--+", "-", dotted.removesuffix(" pre-training")).strip("-")


def _untuned(name: str) -> str:
    while (shorter := _TUNING.sub("", name)) != name:
        name = shorter
    return name


def _candidates(name: str) -> Iterator[str]:
    """The name as it is, then ever less of it."""
    shorter = name
    seen = [name]
    while (once := _TUNING.sub("", shorter, count=1)) != shorter:
        shorter = once
        seen.append(shorter)
    seen.append(_untuned(name))
    for candidate in list(dict.fromkeys(seen)):
        yield candidate
        plain = candidate
        for packer in _PACKERS:
            plain = plain.removeprefix(packer)
        yield plain
        yield re.sub(r"^(llama|qwen|gemma|phi|glm)-?v?(?=\d)", r"\1-", plain)


def _known(name: str) -> str:
    return _listed().get(_compact(name)) or _by_compact_name().get(_compact(name)) or ""


def _known_without_size(name: str) -> str:
    """Key of a name that is whole without the size behind it (deepseek-r1-671b), where that is its size."""
    size = _SIZE_AT_END.search(name)
    key = _known(name[: size.start()]) if size else ""
    if not size or not key:
        return ""
    stated = float(size.group(1)) * (1e12 if size.group(2) == "t" else 1e9)
    published = load_bundled_model(key).published_parameters or 0.0
    return key if abs(stated - published) <= _SIZE_TOLERANCE * published else ""


@cache
def _listed() -> dict[str, str]:
    with _NAMES.open(encoding="utf-8", newline="") as file:
        return {_compact(row["name"]): row["key"] for row in csv.DictReader(file)}


@cache
def _by_compact_name() -> dict[str, str]:
    keys = {_compact(key): key for key in bundled_model_keys()}
    for key in bundled_model_keys():
        keys.setdefault(_compact(load_bundled_model(key).hf_id.lower().rsplit("/", 1)[-1]), key)
    # Versions without their dot (llama31-8b), where that is no other model.
    undotted: dict[str, list[str]] = {}
    for key in bundled_model_keys():
        undotted.setdefault(_compact(key).replace(".", ""), []).append(key)
    for name, owners in undotted.items():
        if len(owners) == 1:
            keys.setdefault(name, owners[0])
    keys.pop("", None)
    return keys


def _by_beginning(name: str) -> str:
    """The one key that begins with the whole words of a name; empty where none or several do."""
    beginning = _compact(name)
    if len(beginning) < _MIN_PREFIX:
        return ""
    found = {key for key in bundled_model_keys() if _compact(key) == beginning or _dashed_begins(key, beginning)}
    return found.pop() if len(found) == 1 else ""


def _dashed_begins(key: str, beginning: str) -> bool:
    words = key.split("-")
    return any(_compact("".join(words[:count])) == beginning for count in range(1, len(words)))


def _compact(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name)
