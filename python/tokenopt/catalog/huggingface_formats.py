"""Weight formats of a Hugging Face checkpoint from its quantisation configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tokenopt.catalog.huggingface_section import Section
from tokenopt.errors import SpecError

_WHOLE_BITS = ("gptq", "awq", "bitsandbytes", "auto-round", "autoround", "intel/auto-round", "auto_round", "hqq", "exl2", "exl3",
               "marlin", "mlx", "gptqmodel")  # fmt: skip
"""Methods that state one number of bits for all weights."""
_TORCHAO = {
    "float8weight": "fp8", "float8dynamic": "fp8", "int4weight": "int4", "int8weight": "int8",
    "int8dynamic": "int8",
}  # fmt: skip
"""Weight formats by words in a torchao scheme, the first match wins."""


def native_formats(
    merged: Mapping[str, Any], config: Mapping[str, Any], quantisation: Mapping[str, Any] | None, section: Section
) -> dict[str, str]:
    """Formats of each class of weights as the checkpoint stores them.

    Args:
        merged: Fields of the language model with what it inherits.
        config: The whole file.
        quantisation: Content of ``hf_quant_config.json``, where there is one.
        section: The fields, for messages.

    Returns:
        Formats of `mixer`, `dense`, `experts` and `head`.

    Raises:
        SpecError: A quantisation whose bytes are not known.
    """
    inner = merged.get("quantization_config") or config.get("quantization_config") or merged.get("compression_config")
    if not inner and isinstance(config.get("quantization"), Mapping):
        # MLX writes its own key: {"group_size": 64, "bits": 4}.
        inner = {"quant_method": "mlx", **config["quantization"]}
    label = "bf16"
    excluded: list[str] = []
    by_class: dict[str, str] = {}
    if isinstance(inner, Mapping):
        nested = inner.get("quantization")
        if "quant_method" not in inner and isinstance(nested, Mapping):
            inner = {"quant_method": "modelopt", **nested}
        label = _format_of_config(inner, section)
        by_class = _formats_of_mixed_groups(inner, section)
        excluded = _texts(inner, "modules_to_not_convert", "ignore", "exclude", "ignored_layers", "exclude_modules")
    elif quantisation is not None:
        body = quantisation.get("quantization")
        body = body if isinstance(body, Mapping) else {}
        label = _format_of_algorithm(body, section)
        excluded = _texts(body, "exclude_modules")
    formats = {**dict.fromkeys(("mixer", "dense", "experts"), label), **by_class}
    depth = section.integer("num_hidden_layers", "n_layer", "num_layers", "n_layers", default=1)
    if _excludes(excluded, depth, "attn", "attention"):
        formats["mixer"] = "bf16"
    if _excludes(excluded, depth, "shared_expert"):
        formats["dense"] = "bf16"
    if label == "mxfp4" and section.model_type == "gpt_oss":
        formats.update(mixer="bf16", dense="bf16")
    if section.fields.get("expert_dtype") == "fp4":
        formats["experts"] = "mxfp4"
    return {**formats, "head": "bf16"}


_NO_PROJECTION = re.compile(
    r"norm|conv1d|in_proj_[ab]|indexer|rotary|sinks?$|_gate$|visual|vision|audio|multi_modal|image|\.router"
)
"""Exclusions of small or of other parts: they say nothing about the projections of the language model."""
_LAYER = re.compile(r"(?:layers|h|blocks)\.(\d+)\.")


def _excludes(patterns: Sequence[str], depth: int, *parts: str) -> bool:
    """Whether exclusions name projections of a class of modules in half of the layers or more."""
    named = [
        pattern for pattern in patterns if not _NO_PROJECTION.search(pattern) and any(part in pattern for part in parts)
    ]
    layers = {int(found.group(1)) for pattern in named if (found := _LAYER.search(pattern))}
    return any(not _LAYER.search(pattern) for pattern in named) or 2 * len(layers) > depth


def _texts(mapping: Mapping[str, Any], *names: str) -> list[str]:
    for name in names:
        value = mapping.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [str(item) for item in value]
    return []


def _format_of_config(inner: Mapping[str, Any], section: Section) -> str:
    method = str(inner.get("quant_method", "")).lower()
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if not method and ("load_in_4bit" in inner or "load_in_8bit" in inner):
        method = "bitsandbytes"
    if method in ("eetq", "quanto") and str(inner.get("weights")) in ("int8", "int4", "float8"):
        return str(inner["weights"]).replace("float8", "fp8")
    if method in _WHOLE_BITS:
        nested = inner.get("quant_config")
        nested = nested.get("weight_quant_params") if isinstance(nested, Mapping) else None
        stated = nested.get("nbits") if isinstance(nested, Mapping) else None
        bits = inner.get("bits", inner.get("w_bit", stated or (8 if inner.get("load_in_8bit") else 4)))
        label = {4.0: "int4", 8.0: "int8"}.get(bits) if isinstance(bits, (int, float)) else None
        return label or _unknown_quantisation(section, f"{method} with {bits} bits")
    if method in ("modelopt", "modelopt_fp4"):
        return _format_of_algorithm(inner, section)
    if method == "torchao":
        return _format_of_torchao(inner, section)
    if method in ("compressed-tensors", "compressed_tensors", "quark"):
        return _format_of_groups(inner, section, method)
    return _unknown_quantisation(section, method or "without quant_method")


def _format_of_torchao(inner: Mapping[str, Any], section: Section) -> str:
    """Torchao names a scheme, or holds an object whose type does."""
    kind = inner.get("quant_type")
    inside = kind.get("default") if isinstance(kind, Mapping) else kind
    name = str(inside.get("_type") if isinstance(inside, Mapping) else inside).lower().replace("_", "")
    for word, label in _TORCHAO.items():
        if word in name:
            return label
    return _unknown_quantisation(section, f"torchao {name[:60]}")


def _formats_of_mixed_groups(inner: Mapping[str, Any], section: Section) -> dict[str, str]:
    """Formats by class of weights where groups of modules are quantised differently; empty where all are alike."""
    groups = inner.get("config_groups")
    found: dict[str, str] = {}
    if not isinstance(groups, Mapping) or len(groups) < 2:
        return found
    for group in groups.values():
        targets = " ".join(_texts(group, "targets")).lower() if isinstance(group, Mapping) else ""
        classes = [
            name
            for name, words in (("mixer", ("attn", "attention")), ("experts", ("expert", "mlp")), ("dense", ("mlp",)))
            if any(word in targets for word in words)
        ]
        if classes:
            label = _format_of_groups({**inner, "config_groups": {"group": group}}, section, "mixed groups")
            found.update({name: label for name in classes if name not in found})
    return found


def _format_of_algorithm(body: Mapping[str, Any], section: Section) -> str:
    algorithm = str(body.get("quant_algo") or "").upper()
    if algorithm == "MIXED_PRECISION":
        layers = body.get("quantized_layers")
        found = [
            str(layer.get("quant_algo", "")).upper()
            for layer in (layers.values() if isinstance(layers, Mapping) else ())
        ]
        algorithm = max(sorted(set(found)), key=found.count) if found else ""
    for prefix, label in (("NVFP4", "nvfp4"), ("W4A8_NVFP4", "nvfp4"), ("W4A16_NVFP4", "nvfp4"), ("MXFP4", "mxfp4"),
                          ("W4A8_MXFP4", "mxfp4"), ("FP8", "fp8"), ("MXFP8", "fp8"), ("INT4", "int4"), ("W4A16", "int4"),
                          ("W4A8", "int4"), ("INT8", "int8"), ("W8A", "int8")):  # fmt: skip
        if algorithm.startswith(prefix):
            return label
    if not algorithm:
        return _format_of_groups(body, section, "modelopt")
    return _unknown_quantisation(section, algorithm)


def _format_of_groups(inner: Mapping[str, Any], section: Section, method: str) -> str:
    groups = inner.get("config_groups")
    weights: Any = None
    if isinstance(groups, Mapping) and groups:
        first = next(iter(groups.values()))
        weights = first.get("weights") if isinstance(first, Mapping) else None
    if weights is None:
        whole = inner.get("global_quant_config")
        weights = whole.get("weight") if isinstance(whole, Mapping) else None
    if isinstance(weights, Sequence) and not isinstance(weights, str) and weights:
        weights = weights[0]
    if not isinstance(weights, Mapping):
        return _unknown_quantisation(section, f"{method} without a weight description")
    dtype = str(weights.get("dtype", "")).lower()
    named = re.search(r"(?:fp|float|int|uint)(\d+)", dtype)
    bits = weights.get("num_bits") or (int(named.group(1)) if named else None)
    kind = str(weights.get("type", "")) or ("float" if "fp" in dtype or "float" in dtype else "int")
    text = f"{inner.get('format', '')} {json.dumps(weights, default=str)}".lower()
    group_size = weights.get("group_size")
    if bits == 8:
        return "fp8" if kind == "float" else "int8"
    if bits == 4 and kind == "float":
        return "nvfp4" if "nvfp4" in text or group_size == 16 else "mxfp4"
    if bits == 4:
        return "int4"
    return _unknown_quantisation(section, f"{method} with {bits} bits")


def _unknown_quantisation(section: Section, what: str) -> NoReturn:
    raise SpecError(f"{section.where}: quantisation {what} is not known, so its bytes cannot be counted")
