"""What a ``config.json`` leaves out, and fields that older or other files name otherwise.

A nested text section is written as its differences from the defaults of its class; a file of its own states its sizes, so
that a missing one is refused there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
}  # fmt: skip
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "mixtral": {**_MISTRAL, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": {**_LLAMA, "vocab_size": 151936, "intermediate_size": 22016},
    "phi3": {**_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192},
    "gemma": {"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
              "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
               "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
                    "max_position_embeddings": 131072},
    "opt": {"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}  # fmt: skip
"""Defaults of the configuration classes of the transformers library, 4.30 to 4.56, that decide the count."""

_SSM_STATE = {"mamba": 16, "mamba2": 128}


def defaults_of(model_type: str, present: Collection[str]) -> dict[str, Any]:
    """Fields that a nested section of a type leaves to the defaults of its class.

    Args:
        model_type: Type of the section.
        present: Fields that it states.
    """
    known = _DEFAULTS.get(model_type, {})
    return {name: value for name, value in known.items() if name not in present}


def modern_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a configuration under the names of today's classes; the configuration itself where it has them."""
    if "ssm_cfg" in config and "d_model" in config:
        return _state_space(config)
    kind = config.get("model_type")
    if kind in ("RefinedWeb", "RefinedWebModel"):
        # Falcon before the library knew it.
        has_groups = config.get("n_head_kv") is not None
        renamed = {"num_kv_heads": config.get("n_head_kv"), "new_decoder_architecture": has_groups}
        return {**config, "model_type": "falcon", **renamed}
    return config


def _state_space(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of the authors of Mamba: their own names, and a vocabulary padded to a multiple."""
    inner = config["ssm_cfg"] if isinstance(config["ssm_cfg"], Mapping) else {}
    kind = "mamba2" if inner.get("layer") == "Mamba2" else "mamba"
    multiple, vocabulary, width = config.get("pad_vocab_size_multiple", 8), config.get("vocab_size"), config["d_model"]
    if isinstance(multiple, int) and isinstance(vocabulary, int) and 0 < multiple <= 1024:
        vocabulary = -(-vocabulary // multiple) * multiple
    changed = {
        "model_type": kind, "hidden_size": width, "num_hidden_layers": config.get("n_layer"), "vocab_size": vocabulary,
        "state_size": inner.get("d_state", _SSM_STATE[kind]), "tie_word_embeddings": config.get("tie_embeddings", True),
    }  # fmt: skip
    if kind == "mamba2":
        head_dim = inner.get("headdim", 64)
        is_whole = isinstance(width, int) and isinstance(head_dim, int) and head_dim > 0
        changed |= {"head_dim": head_dim, "num_heads": 2 * width // head_dim if is_whole else None, "n_groups": 1}
    return {**config, **changed}
