"""A model from a Hugging Face ``config.json``.

The architecture is read from its fields, not from its name; the model type only settles what the fields leave open
(defaults of the transformers library, biases). What would change the count and is not understood is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenopt.catalog.huggingface_defaults import defaults_of, modern_names
from tokenopt.catalog.huggingface_formats import native_formats
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
_RECURRENT = ("rwkv", "xlstm", "recurrent_gemma", "retnet", "mega", "zamba", "hyena", "stripedhyena")
"""Beginnings of the types whose layers are recurrent in a way, or shared between depths, that is not modelled."""
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
    config = modern_names(config)
    _refuse_other_kinds(config, where)
    notes: list[str] = []
    text = _text_section(config, notes)
    nested = {} if text is config else defaults_of(model_type_of(text), set(text))
    if nested:
        notes.append(f"not in the file, by the defaults of its class: {', '.join(nested)}")
    merged = modern_names({**nested, **_inherited(config, text), **text})
    section = Section(merged, where)
    _refuse_other_kinds(merged, where)
    layers = build_layers(section, notes)
    hidden = section.integer("hidden_size", "n_embd", "n_embed", "d_model", "dim_model")
    architecture: dict[str, Any] = {
        "key": key,
        "hidden": hidden,
        "vocab": section.integer("padded_vocab_size", "vocab_size"),
        "tie_embeddings": _ties_embeddings(section, config),
        "learned_positions": _learned_positions(section),
        "max_context": _max_context(section),
        "native_formats": native_formats(merged, config, quantisation, section),
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
        data = json.loads(file.read_text(encoding="utf-8-sig"))
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
    if "eagle" in joined or "medusa" in joined or {"draft_vocab_size", "medusa_num_heads"} & set(config):
        raise SpecError(f"{where} is a draft model for speculative decoding, which serves nothing alone")
    if kind in _CROSS_ATTENTION or "cross_attention_layers" in config:
        raise SpecError(f"{where}: {kind} attends to a vision tower from inside its layers, which is not modelled")
    if config.get("is_encoder_decoder") is True or kind in _ENCODERS:
        raise SpecError(f"{where}: {kind or 'this'} is an encoder or an encoder-decoder, not a causal language model")
    if kind.startswith(_RECURRENT):
        raise SpecError(f"{where}: the recurrent or shared blocks of {kind} are not modelled")
    if kind.startswith("lfm2"):
        raise SpecError(f"{where}: the convolution layers of {kind} are not modelled")
    if "peft_type" in config:
        base = config.get("base_model_name_or_path") or "its base model"
        raise SpecError(f"{where} is an adapter, give the config.json of {str(base)[:100]}")
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
            "starcoder2", "minicpm", "granite", "ctrl", "codegen2", "phi3small", "mamba")  # fmt: skip
    if kind == "gpt_neo":
        return True
    if kind == "mamba2" or (kind == "falcon" and section.fields.get("new_decoder_architecture")):
        return False
    return kind.startswith(tied) and not kind.startswith("granitemoe")


def _learned_positions(section: Section) -> int:
    kind = section.model_type
    if kind == "gpt_neo":
        return section.integer("max_position_embeddings", default=2048)
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


def _check_countable(architecture: Mapping[str, Any], where: str) -> None:
    from tokenopt.catalog.models import count_parameters

    try:
        counts = count_parameters(architecture)
    except SpecError as error:
        raise SpecError(f"{where} cannot be counted: {error.message}") from error
    total = counts["total_parameters"]
    if not math.isfinite(total) or not 1e6 <= total <= 1e14:
        raise SpecError(f"{where} counts to {total:.3g} parameters, expected 1e6 to 1e14")
