"""A model from a Hugging Face ``config.json``.

The architecture is read from its fields, not from its name; the model type only settles what the fields leave open
(defaults of the transformers library, biases). What would change the count and is not understood is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenopt.catalog.huggingface_layers import build_layers
from tokenopt.catalog.huggingface_section import Section, model_type_of
from tokenopt.errors import SpecError
from tokenopt.records import Model, Source

_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "language_model_config", "thinker_config")
_ENCODERS = (
    "bert", "roberta", "deberta", "electra", "distilbert", "albert", "xlm-roberta", "t5", "mt5", "umt5", "bart", "mbart",
    "pegasus", "whisper", "clip", "siglip", "vit", "wav2vec2", "hubert", "dinov2", "sam", "marian", "led", "longformer",
    "modernbert", "nomic_bert", "speech_to_text", "blip", "swin", "detr",
)  # fmt: skip
_CROSS_ATTENTION = ("mllama", "mllama_text_model", "idefics")
_RECURRENT = ("rwkv", "xlstm", "recurrent_gemma", "retnet", "mega")
_MAX_FILE_BYTES = 16 * 2**20


def load_huggingface_config(path: Path) -> Model:
    """Reads a model from a ``config.json`` or the folder that holds one.

    Args:
        path: File or folder; a ``hf_quant_config.json`` beside the file is read too.

    Returns:
        A model whose architecture the core can count; what was left out is in `notes`.

    Raises:
        SpecError: Not a model, a field is missing or absurd, or the architecture is not one that can be counted.
    """
    file = path / "config.json" if path.is_dir() else path
    config = _read_object(file)
    quantisation = _quantisation_beside(file)
    key = file.stem if file.stem != "config" else file.resolve().parent.name
    return model_from_config(
        config, key=key.removesuffix("_config").lower(), quantisation=quantisation, where=file.name
    )


def model_from_config(
    config: Mapping[str, Any], *, key: str, quantisation: Mapping[str, Any] | None = None, where: str = "config.json"
) -> Model:
    """A model from the content of a ``config.json``.

    Args:
        config: The parsed file.
        key: Key to give the model.
        quantisation: Content of ``hf_quant_config.json``, where there is one.
        where: Name for messages.

    Returns:
        The model.

    Raises:
        SpecError: As :func:`load_huggingface_config`.
    """
    _refuse_other_kinds(config, where)
    notes: list[str] = []
    text = _text_section(config, notes)
    merged = {**_inherited(config, text), **text}
    section = Section(merged, where)
    _refuse_other_kinds(merged, where)
    layers = build_layers(section, notes)
    hidden = section.integer("hidden_size", "n_embd", "d_model", "dim_model")
    architecture: dict[str, Any] = {
        "key": key,
        "hidden": hidden,
        "vocab": section.integer("padded_vocab_size", "vocab_size"),
        "tie_embeddings": _ties_embeddings(section, config),
        "learned_positions": _learned_positions(section),
        "max_context": _max_context(section),
        "native_formats": _native_formats(merged, config, quantisation, section),
        "layers": layers,
        "mtp_layers": _mtp_layers(section),
    }
    _check_countable(architecture, where)
    name = str(config.get("_name_or_path") or key)
    return Model(
        key=key,
        hf_id=name,
        architecture=architecture,
        published_parameters=None,
        source=Source(where, "third-party"),
        notes="; ".join(notes),
    )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise SpecError(f"{file} is larger than {_MAX_FILE_BYTES // 2**20} MiB, expected a config.json")
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{file} does not exist, expected a Hugging Face config.json") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SpecError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{file} holds a JSON {type(data).__name__}, expected the object of a config.json")
    return data


def _quantisation_beside(file: Path) -> dict[str, Any] | None:
    stem = file.name.removesuffix("config.json")
    beside = file.parent / f"{stem}hf_quant_config.json"
    return _read_object(beside) if beside.exists() and beside != file else None


def _refuse_other_kinds(config: Mapping[str, Any], where: str) -> None:
    if "producer" in config and "quantization" in config:
        raise SpecError(f"{where} is a ModelOpt quantisation file, give the config.json beside it")
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    kind = model_type_of(config)
    joined = " ".join(names).lower()
    if "eagle" in joined or "medusa" in joined or "draft_vocab_size" in config:
        raise SpecError(f"{where} is a draft model for speculative decoding, which serves nothing alone")
    if kind in _CROSS_ATTENTION or "cross_attention_layers" in config:
        raise SpecError(f"{where}: {kind} attends to a vision tower from inside its layers, which is not modelled")
    if config.get("is_encoder_decoder") is True or kind in _ENCODERS:
        raise SpecError(f"{where}: {kind or 'this'} is an encoder or an encoder-decoder, not a causal language model")
    if kind in _RECURRENT:
        raise SpecError(f"{where}: the recurrent blocks of {kind} are not modelled")
    wrong = ("Segmentation", "Classification", "QuestionAnswering", "ImageToImage", "SpeechSeq2Seq", "DepthEstimation")
    if names and any(part in name for name in names for part in wrong):
        raise SpecError(f"{where}: {names[0]} is not a causal language model")
    is_foreign = not names and not kind and {"n_layers", "dim"} <= set(config)
    if is_foreign:
        raise SpecError(
            f"{where} has other keys than a Hugging Face config.json (dim, n_layers), give the original file"
        )


def _text_section(config: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    for name in _TEXT_SECTIONS:
        section = config.get(name)
        if isinstance(section, Mapping):
            notes.append("the language part only: towers for other inputs are left out")
            return _text_section(section, []) if any(inner in section for inner in _TEXT_SECTIONS) else section
    if "vision_config" in config or "visual" in config:
        notes.append("the language part only: towers for other inputs are left out")
    return config


def _inherited(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a nested text section takes from the outside."""
    if text is config:
        return {}
    names = ("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype", "vocab_size")
    return {name: config[name] for name in names if name in config}


def _ties_embeddings(section: Section, config: Mapping[str, Any]) -> bool:
    kind = section.model_type
    if "tie_word_embeddings" in section.fields:
        return bool(section.fields["tie_word_embeddings"])
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    # Defaults of the transformers library where the field is absent: tied unless the model's own class says otherwise.
    tied = ("gemma", "gpt2", "gpt_bigcode", "bloom", "opt", "mpt", "falcon", "cohere", "command", "phi4flash",
            "starcoder2", "minicpm", "granite", "ctrl", "codegen2", "lfm2")  # fmt: skip
    if kind == "falcon" and section.fields.get("new_decoder_architecture"):
        return False
    return kind.startswith(tied) and not kind.startswith("granitemoe")


def _learned_positions(section: Section) -> int:
    kind = section.model_type
    if kind in ("gpt2", "gpt_bigcode"):
        return section.integer("n_positions", "n_ctx", "max_position_embeddings", default=1024)
    if kind == "opt":
        return section.integer("max_position_embeddings", default=2048) + 2
    if kind == "mpt":
        attention = section.fields.get("attn_config")
        has_alibi = isinstance(attention, Mapping) and attention.get("alibi", False)
        return 0 if has_alibi else section.integer("max_seq_len", default=2048)
    return 0


def _max_context(section: Section) -> int:
    base = section.integer(
        "max_position_embeddings", "seq_length", "n_positions", "max_seq_len", "max_sequence_length", "model_max_length",
        "n_ctx", default=0,
    )  # fmt: skip
    if base == 0:
        # Rotary and state-space models without the field: the library's default.
        return 2048 if section.model_type in ("bloom", "falcon", "mpt") else 131_072
    scaling = section.fields.get("rope_scaling")
    if isinstance(scaling, Mapping):
        original = scaling.get("original_max_position_embeddings")
        factor: Any = scaling.get("factor")
        kind = scaling.get("rope_type", scaling.get("type"))
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and math.isfinite(factor)
        if is_number and factor > 0:
            longest = 1e9
            if kind in ("dynamic", "yarn", "llama3") and isinstance(original, int):
                return max(base, int(min(original * factor, longest)))
            if kind in ("linear", "dynamic") and original is None:
                return max(base, int(min(base * factor, longest)))
    return base


def _mtp_layers(section: Section) -> int:
    for name in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"):
        value = section.fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 100:
            return value
    return 0


def _native_formats(
    merged: Mapping[str, Any], config: Mapping[str, Any], quantisation: Mapping[str, Any] | None, section: Section
) -> dict[str, str]:
    """Formats of each class of weights as the checkpoint stores them."""
    inner = merged.get("quantization_config") or config.get("quantization_config") or merged.get("compression_config")
    label = "bf16"
    excluded: list[str] = []
    if isinstance(inner, Mapping):
        label = _format_of_config(inner, section)
        excluded = _texts(inner, "modules_to_not_convert", "ignore", "exclude", "ignored_layers", "exclude_modules")
    elif quantisation is not None:
        body = quantisation.get("quantization")
        body = body if isinstance(body, Mapping) else {}
        label = _format_of_algorithm(body, section)
        excluded = _texts(body, "exclude_modules")
    formats = dict.fromkeys(("mixer", "dense", "experts"), label)
    if any(_excludes(pattern, "attn", "attention") for pattern in excluded):
        formats["mixer"] = "bf16"
    if any(_excludes(pattern, "shared_expert") for pattern in excluded):
        formats["dense"] = "bf16"
    if label == "mxfp4" and section.model_type == "gpt_oss":
        formats.update(mixer="bf16", dense="bf16")
    if section.fields.get("expert_dtype") == "fp4":
        formats["experts"] = "mxfp4"
    return {**formats, "head": "bf16"}


def _excludes(pattern: str, *parts: str) -> bool:
    """Whether an exclusion names projections of a class of modules; norms are never quantised anyway."""
    return "norm" not in pattern and any(part in pattern for part in parts)


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
    if method in ("gptq", "awq", "bitsandbytes", "auto-round", "autoround", "aqlm", "hqq", "exl2"):
        bits = inner.get("bits", inner.get("w_bit", 8 if inner.get("load_in_8bit") else 4))
        label = {4: "int4", 8: "int8"}.get(bits)
        return label or _unknown_quantisation(section, f"{method} with {bits} bits")
    if method in ("modelopt", "modelopt_fp4"):
        return _format_of_algorithm(inner, section)
    if method in ("compressed-tensors", "compressed_tensors", "quark", "torchao"):
        return _format_of_groups(inner, section, method)
    return _unknown_quantisation(section, method or "without quant_method")


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
    bits = weights.get("num_bits") or next((n for n in (4, 8) if str(n) in dtype), None)
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


def _unknown_quantisation(section: Section, what: str) -> str:
    raise SpecError(f"{section.where}: quantisation {what} is not known, so its bytes cannot be counted")


def _check_countable(architecture: Mapping[str, Any], where: str) -> None:
    from tokenopt.catalog.models import count_parameters

    try:
        counts = count_parameters(architecture)
    except SpecError as error:
        raise SpecError(f"{where} cannot be counted: {error.message}") from error
    total = counts["total_parameters"]
    if not math.isfinite(total) or not 1e6 <= total <= 1e14:
        raise SpecError(f"{where} counts to {total:.3g} parameters, expected 1e6 to 1e14")
