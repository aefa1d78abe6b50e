"""The bundled model catalogue, and how a name or a path becomes a model.

One small TOML file a model, so that a search parses only the one it needs.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenopt.errors import SpecError
from tokenopt.records import WEIGHT_FORMATS, Model, Source

_DATA = Path(__file__).parent / "data" / "models"

NATIVE = "native"
"""Label of the weights as published."""


@cache
def bundled_model_keys() -> list[str]:
    """Keys of the bundled catalogue, sorted."""
    return sorted(path.stem for path in _DATA.glob("*.toml"))


@cache
def load_bundled_model(key: str) -> Model:
    """Reads one bundled model.

    Raises:
        SpecError: No such key; near names are hinted at.
    """
    path = _DATA / f"{key}.toml"
    if key not in bundled_model_keys():
        raise _unknown(key, bundled_model_keys())
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return Model(
        key=key,
        hf_id=data["hf_id"],
        architecture={"key": key, **data["architecture"]},
        published_parameters=data.get("published_parameters"),
        source=Source(data["source"], "third-party"),
        notes=data.get("notes", ""),
    )


def resolve_model(name_or_path: str, extra: Mapping[str, Model] | None = None) -> Model:
    """Finds a model by catalogue key, Hugging Face id, or path of a ``config.json`` or its folder.

    Args:
        name_or_path: What the user typed.
        extra: Models that plugins add.

    Returns:
        The model.

    Raises:
        SpecError: Nothing matches (near names are hinted at) or the file is not a model that can be counted.
    """
    extra = extra or {}
    text = name_or_path.strip()
    key = text.lower()
    if key in extra:
        return extra[key]
    if key in bundled_model_keys():
        return load_bundled_model(key)
    path = Path(text).expanduser()
    if text.endswith(".json") or path.exists():
        from tokenopt.catalog.huggingface import load_huggingface_config

        return load_huggingface_config(path)
    by_hf_id = {model.hf_id.lower(): model for model in extra.values()}
    if key in by_hf_id:
        return by_hf_id[key]
    from tokenopt.catalog.model_names import model_key

    if (alias := model_key(text)) != "":
        return load_bundled_model(alias)
    raise _unknown(text, [*bundled_model_keys(), *extra])


def _unknown(name: str, known: list[str]) -> SpecError:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    return SpecError(
        f"model {name!r} is not in the catalogue and not a file", [*hints, "`tokenopt models` lists what is known"]
    )


def is_mixture_of_experts(architecture: Mapping[str, Any]) -> bool:
    """Whether any layer routes tokens to experts."""
    return any(layer["ffn"]["kind"] == "moe" for layer in architecture["layers"])


def native_precision(architecture: Mapping[str, Any]) -> str:
    """Label of the published weights: the format of what dominates them (experts, else dense layers)."""
    formats = architecture["native_formats"]
    return str(formats["experts"] if is_mixture_of_experts(architecture) else formats["dense"])


def offered_weight_precisions(architecture: Mapping[str, Any]) -> list[str]:
    """Weight precisions worth searching: the published one, then the post-training quantisations in common use.

    Quantising below the published format changes the model's answers; the caller says so.
    """
    native = native_precision(architecture)
    below = {"bf16": ["fp8", "nvfp4"], "fp8": ["nvfp4"]}
    return [native, *below.get(native, [])]


_BITS = {"bf16": 16, "fp8": 8, "int8": 8, "mxfp4": 4, "nvfp4": 4, "int4": 4}
_WIDER = {"mxfp4": ("fp8", "bf16"), "nvfp4": ("fp8", "bf16"), "int4": ("bf16",), "fp8": ("bf16",), "int8": ("bf16",)}


def dequantised_formats(architecture: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """How weights can be kept where an engine cannot store them as published: expanded when they are loaded.

    Args:
        architecture: Model specification.

    Returns:
        By label of the wider format: formats of each class of weights, those that are wide enough as published.
    """
    native = dict(architecture["native_formats"])
    return {
        label: {name: label if _BITS[known] < _BITS[label] else known for name, known in native.items()}
        for label in _WIDER.get(native_precision(architecture), ())
    }


def precision_label(architecture: Mapping[str, Any], precision: str) -> str:
    """The weight format that a precision label stands for."""
    native = native_precision(architecture)
    label = precision.lower()
    if label == "native":
        return native
    if label == "fp4":
        return "mxfp4" if native == "mxfp4" else "nvfp4"
    return label


def weight_formats(architecture: Mapping[str, Any], precision: str) -> dict[str, str]:
    """Formats of each class of weights at a precision label.

    Args:
        architecture: Model specification.
        precision: `native`, a weight format, or `fp4` for the four-bit float that fits the model.

    Returns:
        Formats for `mixer`, `dense`, `experts` and `head`. The head stays in its native format; a mixed checkpoint at
        its own precision stays mixed; published NVFP4 checkpoints of mixtures of experts leave attention as it was.

    Raises:
        SpecError: Unknown label.
    """
    native = dict(architecture["native_formats"])
    label = precision_label(architecture, precision)
    if label == native_precision(architecture):
        return native
    if label not in WEIGHT_FORMATS:
        raise SpecError(
            f"precision is {precision!r}, expected native, fp4 or one of {', '.join(WEIGHT_FORMATS)}",
        )
    is_mixed = label == "nvfp4" and is_mixture_of_experts(architecture)
    return {"mixer": native["mixer"] if is_mixed else label, "dense": label, "experts": label, "head": native["head"]}


def count_parameters(architecture: Mapping[str, Any]) -> dict[str, float]:
    """Parameter and byte counts, computed by the core.

    Args:
        architecture: Model specification.

    Returns:
        Counts by name; see `ModelCounts` in the core.

    Raises:
        SpecError: The core cannot count it.
    """
    import json

    from tokenopt import _core

    counts: dict[str, float] = json.loads(_core.count_model(json.dumps(dict(architecture))))
    return counts
