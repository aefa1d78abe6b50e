"""A plain dense model of a given size, for measurements that print a size where the catalogue lacks the model.

What a dense transformer costs follows from its size more than from its shape; the shape is that of the published model
nearest in size, with as many layers as the size asks for. Mixtures of experts have no such stand-in: what they read and
compute depends on their experts.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from tokenopt.catalog.models import bundled_model_keys, count_parameters, load_bundled_model
from tokenopt.errors import SpecError

_SHAPES = (
    (896, 4864, 14, 2, 24), (2048, 8192, 32, 8, 16), (3072, 8192, 24, 8, 28), (4096, 14336, 32, 8, 32), (5120, 13824, 40, 8, 48),
    (5120, 25600, 64, 8, 64), (8192, 28672, 64, 8, 80), (12288, 28672, 96, 8, 88), (16384, 53248, 128, 8, 126),
)  # fmt: skip
"""Hidden width, FFN width, heads, KV heads and layers of Qwen2.5 0.5B, Llama 3.2 1B and 3B, Llama 3.1 8B, Qwen2.5 14B, Qwen3
32B, Llama 3.1 70B, Mistral Large 2 and Llama 3.1 405B (their published configurations)."""
_VOCABULARY = 128_000
_TIED_UP_TO = 3072
"""Hidden width up to which the named models use one matrix for embedding and head."""
_MAX_CONTEXT = 131_072
_LEAST_B, _MOST_B = 0.1, 5000.0
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])")
_NO_DENSE_MODEL = re.compile(
    r"(?<![a-z])(?:moe|mamba|rwkv|bert|t5|clip|vit|whisper|diffusion|flux)|\d+x\d+b|a\d+(?:\.\d+)?b"
)


def size_in_name(name: str) -> float | None:
    """Billions of parameters that a dense model's name states, None where it states none or is no dense model."""
    lower = name.lower()
    sizes = set(_SIZE.findall(lower))
    if _NO_DENSE_MODEL.search(lower) or len(sizes) != 1:
        return None
    return float(sizes.pop())


def dense_of_size(key: str, billions: float) -> dict[str, Any]:
    """Architecture of a plain dense model with grouped-query attention.

    Args:
        key: Key to give it.
        billions: Parameters, billions.

    Raises:
        SpecError: No dense model has been published at such a size.

    Assumes:
        The shape of the nearest published model, a vocabulary of 128,000, 16-bit weights.
    """
    if not _LEAST_B <= billions <= _MOST_B:
        raise SpecError(
            f"model {key!r} is not in the catalogue, and no dense model has {billions:g} billion parameters"
        )
    wanted = billions * 1e9
    shape = min(_SHAPES, key=lambda candidate: abs(math.log(_total(candidate, candidate[4]) / wanted)))
    layers = shape[4]
    for _ in range(2):
        per_layer = (_total(shape, layers + 1) - _total(shape, layers)) or 1.0
        layers = max(1, layers + round((wanted - _total(shape, layers)) / per_layer))
    return {**_architecture(shape, layers), "key": key}


@cache
def _total(shape: tuple[int, int, int, int, int], layers: int) -> float:
    return count_parameters(_architecture(shape, layers))["total_parameters"]


def _architecture(shape: tuple[int, int, int, int, int], layers: int) -> dict[str, Any]:
    hidden, ffn, heads, kv_heads, _ = shape
    head_dim = hidden // heads if hidden % heads == 0 else 128
    return {
        "key": "sized",
        "hidden": hidden,
        "vocab": _VOCABULARY,
        "tie_embeddings": hidden <= _TIED_UP_TO,
        "max_context": _MAX_CONTEXT,
        "native_formats": dict.fromkeys(("mixer", "dense", "experts", "head"), "bf16"),
        "mtp_layers": 0,
        "layers": [
            {
                "count": layers,
                "mixer": {
                    "kind": "attention", "heads": heads, "kv_heads": kv_heads, "qk_head_dim": head_dim,
                    "v_head_dim": head_dim, "scope": "full",
                },
                "ffn": {"kind": "dense", "dim": ffn, "matrices": 3},
                "small_parameters": 2 * hidden,
            }
        ],
    }  # fmt: skip


def architecture_of(
    name: str, billions: float | None = None, active_billions: float | None = None
) -> tuple[dict[str, Any], str]:
    """Architecture of a model of a measurement: the catalogue's, else that of a dense model of its size.

    Args:
        name: Catalogue key, or the name of a model the catalogue lacks.
        billions: Parameters that the source prints.
        active_billions: Parameters a token meets that the source prints.

    Returns:
        The architecture, and in words what stands for the model; empty where it is its own.

    Raises:
        SpecError: Neither a known model nor the size of a dense one.
    """
    if name in bundled_model_keys():
        return dict(load_bundled_model(name).architecture), ""
    if billions and active_billions and active_billions < 0.9 * billions:
        raise SpecError(f"model {name!r} is not in the catalogue, and nothing can stand for its experts")
    size = billions or size_in_name(name)
    if not size:
        raise SpecError(f"model {name!r} is not in the catalogue")
    return dense_of_size(name, size), f"model not in the catalogue: a plain dense one of {size:g} billion parameters"
