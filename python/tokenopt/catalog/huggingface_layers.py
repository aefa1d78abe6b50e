"""Layers of a language model from the fields of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenopt.catalog.huggingface_section import Section
from tokenopt.errors import SpecError

Block = dict[str, Any]
NONE: Block = {"kind": "none"}

_NO_SCOPE_LIMIT = "full"
_QKV_BIAS = ("qwen", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "chatglm", "starcoder2")
_FULL_BIAS = ("gpt2", "gpt_bigcode", "opt", "bloom", "gpt_neox", "phi", "starcoder2", "codegen", "gptj")
_TWO_MATRICES = ("gpt2", "gpt_bigcode", "opt", "bloom", "mpt", "falcon", "gpt_neox", "phi", "starcoder2", "nemotron",
                 "codegen", "gptj", "apertus", "arcee", "dbrx_ffn")  # fmt: skip
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "glm4")
_ONE_NORM = ("phi", "cohere", "cohere2", "command-r")


def build_layers(section: Section, notes: list[str]) -> list[dict[str, Any]]:
    """Layer groups in the core's shape.

    Args:
        section: Fields of the language model.
        notes: Remarks for the reader; appended to.

    Returns:
        Groups of equal layers with their counts.

    Raises:
        SpecError: A field is missing, or a pattern is not understood.
    """
    if section.has("block_configs"):
        return _grouped(_pruned_blocks(section, notes))
    pattern = section.fields.get("hybrid_override_pattern") or section.fields.get("layers_block_type")
    if section.has("hybrid_override_pattern") or (section.model_type == "nemotron_h" and pattern):
        return _grouped(_block_string(section))
    if section.integer("word_embed_proj_dim", default=_width(section)) != _width(section):
        raise SpecError(f"{section.where}: embeddings of another width than the layers are not modelled")
    depth = section.integer("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    _check_depth(section, depth)
    if section.model_type == "falcon_h1":
        return _grouped(_parallel_blocks(section, depth, notes))
    if section.has("zero_expert_num"):
        return _grouped(_shortcut_blocks(section, depth, notes))
    kinds = _mixer_kinds(section, depth)
    layers = []
    for index, kind in enumerate(kinds):
        mixer = _mixer(section, kind, index)
        ffn = _ffn(section, index, depth)
        layers.append((mixer, ffn, _small_parameters(section, mixer, ffn)))
    return _grouped(layers)


def _grouped(layers: list[tuple[Block, Block, int]]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for mixer, ffn, small in layers:
        twin = next(
            (
                group
                for group in groups
                if (group["mixer"], group["ffn"], group["small_parameters"]) == (mixer, ffn, small)
            ),
            None,
        )
        if twin:
            twin["count"] += 1
        else:
            groups.append({"count": 1, "mixer": mixer, "ffn": ffn, "small_parameters": small})
    return groups


def _check_depth(section: Section, depth: int) -> None:
    if depth > 10_000:
        raise SpecError(f"{section.where}: num_hidden_layers is {depth}, expected at most 10000")


def _width(section: Section) -> int:
    return section.integer("hidden_size", "n_embd", "n_embed", "d_model")


def _heads(section: Section) -> int:
    return section.integer("num_attention_heads", "n_head", "n_heads", "num_heads")


def _kv_heads(section: Section, heads: int) -> int:
    if section.model_type in ("gpt_bigcode",):
        return 1 if section.flag("multi_query", True) else heads
    if section.model_type == "falcon":
        if section.flag("new_decoder_architecture"):
            return section.integer("num_kv_heads", default=heads)
        return 1 if section.flag("multi_query", True) else heads
    if section.has("multi_query_group_num"):
        return section.integer("multi_query_group_num") if section.flag("multi_query_attention") else heads
    nested = section.child("attn_config")
    if nested is not None and nested.has("kv_n_heads"):
        return nested.integer("kv_n_heads")
    return section.integer(
        "num_key_value_heads", "num_kv_heads", "n_head_kv", "num_query_groups", "num_attention_groups", default=heads
    )


def _head_dim(section: Section, heads: int) -> int:
    if section.has("head_dim") or section.has("attention_head_dim") or section.has("kv_channels"):
        return section.integer("head_dim", "attention_head_dim", "kv_channels")
    width = _width(section)
    if width % heads:
        raise SpecError(
            f"{section.where}: hidden_size {width} is not a multiple of {heads} heads and head_dim is absent"
        )
    return width // heads


def _mixer_kinds(section: Section, depth: int) -> list[str]:
    """What each layer mixes tokens with: full, sliding, chunked, linear, mamba, or a compression ratio."""
    named = {
        "full_attention": "full", "attention": "full", "full": "full", "global": "full", "global_attention": "full",
        "sliding_attention": "sliding", "sliding_window_attention": "sliding", "swa": "sliding", "local": "sliding",
        "local_attention": "sliding", "chunked_attention": "chunked", "linear_attention": "linear", "mamba": "mamba",
        "conv": "conv",
    }  # fmt: skip
    if section.model_type == "gpt_neo":
        scopes = section.pattern("attention_layers", depth) or ["global", "local"] * depth
        return ["sliding" if scope == "local" else "full" for scope in scopes[:depth]]
    types = section.pattern("layer_types", depth) or (
        section.pattern("layers_block_type", depth) if section.model_type != "nemotron_h" else None
    )
    if types is not None:
        unknown = [kind for kind in types if kind not in named]
        if unknown:
            raise SpecError(f"{section.where}: layer type {unknown[0]!r} is not known, so it cannot be counted")
        kinds = [named[kind] for kind in types]
        if "conv" in kinds:
            raise SpecError(f"{section.where}: convolution layers are not modelled")
        return kinds
    ratios = section.pattern("compress_ratios", depth)
    if ratios is not None:
        return [f"compressed {int(ratio)}" for ratio in ratios]
    hybrid = section.pattern("hybrid_layer_pattern", depth)
    if hybrid is not None:
        return ["sliding" if entry else "full" for entry in hybrid]
    linear = section.child("linear_attn_config")
    if linear is not None:
        full = set(linear.fields.get("full_attn_layers") or ())
        return ["full" if index + 1 in full else "linear" for index in range(depth)]
    types_by_code = section.pattern("attn_type_list", depth)
    if types_by_code is not None:
        return ["full" if entry else "lightning" for entry in types_by_code]
    kind = section.model_type
    if section.has("linear_num_value_heads"):
        interval = section.integer("full_attention_interval", default=4)
        return ["full" if (index + 1) % interval == 0 else "linear" for index in range(depth)]
    if kind == "jamba" or section.has("attn_layer_period"):
        period = section.integer("attn_layer_period", default=8)
        offset = section.integer("attn_layer_offset", default=0) if section.has("attn_layer_offset") else 4
        return ["full" if index % period == offset % period else "mamba" for index in range(depth)]
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        return ["mamba"] * depth
    if kind == "llama4_text" or (section.has("attention_chunk_size") and not section.has("sliding_window")):
        return ["full" if (index + 1) % 4 == 0 else "chunked" for index in range(depth)]
    if kind == "gpt_oss" or kind == "gemma2":
        return ["sliding" if index % 2 == 0 else "full" for index in range(depth)]
    letters = section.fields.get("sliding_window_pattern")
    if isinstance(letters, str) and letters and section.has("sliding_window"):
        # EXAONE 4: L(ocal) and G(lobal), repeated over the depth.
        if set(letters) - set("LG"):
            raise SpecError(f"{section.where}: sliding_window_pattern is {letters!r}, expected letters L and G")
        return ["full" if letters[index % len(letters)] == "G" else "sliding" for index in range(depth)]
    if kind in ("gemma3_text", "gemma3", "cohere2") or section.has("sliding_window_pattern"):
        period = section.integer("sliding_window_pattern", default=4 if kind == "cohere2" else 6)
        if section.has("sliding_window"):
            return ["full" if (index + 1) % period == 0 else "sliding" for index in range(depth)]
    if section.has("sliding_window") and section.flag("use_sliding_window", True):
        if section.has("max_window_layers"):
            last_full = section.integer("max_window_layers", default=0)
            return ["full" if index < last_full else "sliding" for index in range(depth)]
        if kind in ("mistral", "mixtral", "starcoder2", "phi3", "phimoe", "minimax", "qwen2", "qwen3", "ministral"):
            return ["sliding"] * depth
    return ["full"] * depth


def _mixer(section: Section, kind: str, index: int) -> Block:
    if kind == "mamba":
        return _mamba(section)
    if kind == "lightning":
        return _lightning(section)
    if kind.startswith("compressed"):
        return _compressed(section, int(kind.split()[1]))
    if kind == "linear":
        return _linear(section)
    if section.has("kv_lora_rank"):
        return _latent(section)
    heads = _heads(section)
    kv_heads = _kv_heads(section, heads)
    width = _head_dim(section, heads)
    value_width = section.integer("v_head_dim", default=width)
    scope: Any = _NO_SCOPE_LIMIT
    shared_kv = False
    if kind == "sliding":
        window = section.integer("sliding_window", "sliding_window_size", "window_size")
        scope = {"sliding": window}
        heads = section.integer("swa_num_attention_heads", default=heads)
        kv_heads = section.integer("swa_num_key_value_heads", default=kv_heads)
        width = section.integer("swa_head_dim", default=width)
        value_width = section.integer("swa_v_head_dim", default=value_width)
        if section.model_type == "step3p7" or section.model_type.startswith("step3p"):
            # Sliding layers have 96 query heads in the published weights; the configuration does not say so.
            heads = section.integer("sliding_num_attention_heads", default=heads * 3 // 2)
    elif kind == "chunked":
        scope = {"chunked": section.integer("attention_chunk_size", default=8192)}
    elif section.has("global_head_dim"):
        width = section.integer("global_head_dim")
        value_width = width
        kv_heads = section.integer("num_global_key_value_heads", default=kv_heads)
        shared_kv = section.flag("attention_k_eq_v")
    if kv_heads > heads or heads % kv_heads:
        raise SpecError(f"{section.where}: {kv_heads} key/value heads do not divide {heads} heads (layer {index})")
    block: Block = {
        "kind": "attention", "heads": heads, "kv_heads": kv_heads, "qk_head_dim": width, "v_head_dim": value_width,
        "scope": scope,
    }  # fmt: skip
    if shared_kv:
        block["shared_kv"] = True
    gate = _gate(section)
    if gate:
        block["gate"] = gate
    return block


def _gate(section: Section) -> str:
    kind = section.model_type
    if section.flag("attn_output_gate") or section.flag("attention_output_gate") or kind in ("qwen3_next", "afmoe"):
        return "per_channel"
    if kind.startswith("step3p") or section.flag("use_head_wise_attn_gate"):
        return "per_head"
    return ""


def _latent(section: Section) -> Block:
    """Multi-head latent attention."""
    nope = section.integer("qk_nope_head_dim")
    rope = section.integer("qk_rope_head_dim")
    block: Block = {
        "kind": "mla",
        "heads": _heads(section),
        "q_lora_rank": section.integer("q_lora_rank", default=0),
        "kv_lora_rank": section.integer("kv_lora_rank"),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": section.integer("v_head_dim", default=_width(section) // _heads(section)),
    }
    if section.flag("mla_use_output_gate"):
        block["gate"] = "per_channel"
    if section.has("index_topk"):
        block["indexer"] = _indexer(section)
    return block


def _indexer(section: Section) -> Block:
    return {
        "heads": section.integer("index_n_heads"),
        "head_dim": section.integer("index_head_dim"),
        "top_k": section.integer("index_topk"),
    }


def _compressed(section: Section, ratio: int) -> Block:
    """Compressed sparse attention of DeepSeek-V4; ratio 0 is the short window alone."""
    window_only = 1 << 20
    block: Block = {
        "kind": "compressed_attention",
        "heads": _heads(section),
        "head_dim": section.integer("head_dim"),
        "q_lora_rank": section.integer("q_lora_rank"),
        "o_lora_rank": section.integer("o_lora_rank"),
        "o_groups": section.integer("o_groups"),
        "compression": ratio or window_only,
        "window": section.integer("sliding_window"),
    }
    if ratio == 4:
        block["indexer"] = _indexer(section)
    return block


def _linear(section: Section) -> Block:
    nested = section.child("linear_attn_config")
    if nested is not None:
        return {
            "kind": "kimi_delta_attention",
            "heads": nested.integer("num_heads"),
            "head_dim": nested.integer("head_dim"),
            "conv_kernel": nested.integer("short_conv_kernel_size"),
        }
    return {
        "kind": "gated_delta_net",
        "key_heads": section.integer("linear_num_key_heads"),
        "value_heads": section.integer("linear_num_value_heads"),
        "key_head_dim": section.integer("linear_key_head_dim"),
        "value_head_dim": section.integer("linear_value_head_dim"),
        "conv_kernel": section.integer("linear_conv_kernel_dim"),
    }


def _lightning(section: Section) -> Block:
    raise SpecError(f"{section.where}: lightning attention layers are not modelled")


def _mamba(section: Section) -> Block:
    if section.has("mamba_num_heads") or section.has("mamba_n_heads") or section.model_type == "mamba2":
        return {
            "kind": "mamba2",
            "heads": section.integer("mamba_num_heads", "mamba_n_heads", "num_heads"),
            "head_dim": section.integer("mamba_head_dim", "mamba_d_head", "head_dim"),
            "state": section.integer("ssm_state_size", "mamba_d_state", "state_size"),
            "groups": section.integer("n_groups", "mamba_n_groups", default=1),
            "conv_kernel": section.integer("conv_kernel", "mamba_d_conv", default=4),
        }
    width = _width(section)
    expand = section.integer("mamba_expand", "expand", default=2)
    rank = section.fields.get("mamba_dt_rank", section.fields.get("time_step_rank"))
    return {
        "kind": "mamba1",
        "inner": section.integer("intermediate_size", default=expand * width)
        if section.model_type in ("mamba", "falcon_mamba")
        else expand * width,
        "state": section.integer("mamba_d_state", "state_size", default=16),
        "dt_rank": rank if isinstance(rank, int) else -(-width // 16),
        "conv_kernel": section.integer("mamba_d_conv", "conv_kernel", default=4),
    }


def _ffn(section: Section, index: int, depth: int) -> Block:
    if section.model_type in ("mamba", "mamba2", "falcon_mamba"):
        return NONE
    return _experts(section, index) if _routes(section, index, depth) else _dense(section)


def _expert_count(section: Section) -> int:
    nested = section.child("ffn_config")
    if nested is not None and nested.has("moe_num_experts"):
        return nested.integer("moe_num_experts")
    return section.integer(
        "n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_moe_experts", default=0
    )


def _routes(section: Section, index: int, depth: int) -> bool:
    """Whether layer `index` has routed experts."""
    if _expert_count(section) <= 1 or section.fields.get("enable_moe_block") is False:
        return False
    frequency = section.fields.get("moe_layer_freq")
    if isinstance(frequency, list):
        pattern = section.pattern("moe_layer_freq", depth)
        return bool(pattern and pattern[index])
    first_dense = section.integer(
        "first_k_dense_replace", "moe_layer_start_index", "first_dense_layers", "num_dense_layers", default=0
    )
    if index < first_dense:
        return False
    listed = section.fields.get("moe_layers_enum")
    if isinstance(listed, str) and listed:
        return str(index) in listed.replace(" ", "").split(",")
    if index in (section.fields.get("mlp_only_layers") or ()):
        return False
    chosen = section.fields.get("moe_layers")
    if isinstance(chosen, list):
        return index in chosen
    if section.has("interleave_moe_layer_step"):
        step = section.integer("interleave_moe_layer_step", default=1)
        return step > 0 and (index + 1) % step == 0
    if section.has("expert_layer_period"):
        period = section.integer("expert_layer_period")
        return index % period == section.integer("expert_layer_offset", default=0) % period
    if section.has("decoder_sparse_step"):
        step = section.integer("decoder_sparse_step")
        return (index + 1) % step == 0
    if isinstance(frequency, int) and not isinstance(frequency, bool) and frequency > 1:
        return index % frequency == 0
    return True


def _experts(section: Section, index: int) -> Block:
    experts = _expert_count(section)
    nested = section.child("ffn_config") or section
    top_k_field = next(
        (name for name in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")
         if nested.has(name) or section.has(name)), "num_experts_per_tok",
    )  # fmt: skip
    source = nested if nested.has(top_k_field) else section
    chosen = source.fields.get(top_k_field)
    top_k = chosen[min(index, len(chosen) - 1)] if isinstance(chosen, list) and chosen else source.integer(top_k_field)
    width = section.fields.get("moe_intermediate_size")
    if isinstance(width, list) and width:
        expert_dim = int(width[min(index, len(width) - 1)])
    else:
        expert_dim = nested.integer(
            "moe_intermediate_size", "ffn_hidden_size", "expert_ffn_hidden_size", "intermediate_size"
        )
    block: Block = {
        "kind": "moe", "experts": experts, "top_k": top_k, "expert_dim": expert_dim,
        "matrices": 2 if section.model_type == "nemotron_h" else 3,
        "shared_dim": _shared_width(section, expert_dim),
    }  # fmt: skip
    if section.has("moe_latent_size"):
        block["latent_dim"] = section.integer("moe_latent_size")
    elif section.flag("latent_moe_use_norm"):
        # Kimi K3: routed experts work in half the width; the configuration only tells that there is a latent norm.
        block["latent_dim"] = section.integer("moe_latent_size", "latent_size", default=_width(section) // 2)
    if (
        section.flag("use_routing_bias")
        or section.flag("use_moe_router_bias")
        or section.fields.get("topk_method") == "noaux_tc"
        or section.model_type == "gpt_oss"
    ):
        block["router_bias"] = True
    return block


def _shared_width(section: Section, expert_dim: int) -> int:
    """Whole inner width of what every token meets beside the routed experts."""
    for name in ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim",
                 "shared_intermediate_size"):  # fmt: skip
        if section.has(name):
            return section.integer(name, default=0)
    shared = section.integer(
        "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert", default=0
    ) if not isinstance(section.fields.get("num_shared_expert"), list) else 1  # fmt: skip
    if shared:
        return shared * expert_dim
    if section.model_type == "llama4_text":
        return expert_dim
    if section.flag("residual_moe"):
        # Grok-2 runs a dense FFN beside the experts.
        return section.integer("intermediate_size")
    if section.flag("enable_moe_block"):
        # Gemma 4 runs a dense FFN beside the experts in every layer.
        return section.integer("intermediate_size")
    return 0


def _dense(section: Section) -> Block:
    kind = section.model_type
    width = _width(section)
    if kind == "qwen" and section.has("intermediate_size"):
        # Qwen-1 prints the width of the fused gate and up projection.
        return {"kind": "dense", "dim": section.integer("intermediate_size") // 2, "matrices": 3}
    if kind in ("gpt2", "gpt_bigcode", "bloom", "mpt", "codegen", "gptj", "gpt_neo"):
        ratio = section.integer("expansion_ratio", default=4)
        return {
            "kind": "dense",
            "dim": section.integer("n_inner", "intermediate_size", default=ratio * width),
            "matrices": 2,
        }
    if kind == "falcon":
        return {"kind": "dense", "dim": section.integer("ffn_hidden_size", default=4 * width), "matrices": 2}
    if kind == "llama4_text":
        return {"kind": "dense", "dim": section.integer("intermediate_size_mlp", "intermediate_size"), "matrices": 3}
    dim = section.integer("dense_intermediate_size", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
    return {"kind": "dense", "dim": dim, "matrices": 2 if kind in _TWO_MATRICES else 3}


def _small_parameters(section: Section, mixer: Block, ffn: Block) -> int:
    """Norms, biases and sinks of one layer."""
    width = _width(section)
    kind = section.model_type
    blocks = (mixer != NONE) + (ffn != NONE)
    norms = 1 if kind in _ONE_NORM else 4 if kind in _FOUR_NORMS else blocks
    small = norms * width
    if kind in _FULL_BIAS:
        small += norms * width
    if mixer["kind"] == "attention":
        qkv = (mixer["heads"] + 2 * mixer["kv_heads"]) * mixer["qk_head_dim"]
        has_bias = (
            section.flag("attention_bias")
            or kind in _QKV_BIAS
            or section.flag("add_qkv_bias")
            or section.flag("qkv_bias")
        )
        if has_bias or kind in _FULL_BIAS:
            small += qkv
        if kind in _FULL_BIAS or kind == "gpt_oss":
            small += width
        if kind == "gpt_oss":
            small += mixer["heads"]
        if kind.startswith("qwen3") or section.flag("use_qk_norm"):
            small += 2 * mixer["qk_head_dim"]
    if mixer["kind"] == "mla":
        small += mixer["q_lora_rank"] + mixer["kv_lora_rank"]
    if mixer["kind"] == "mamba2":
        inner = mixer["heads"] * mixer["head_dim"]
        small += 3 * mixer["heads"] + inner + inner + 2 * mixer["groups"] * mixer["state"]
    if mixer["kind"] == "gated_delta_net":
        small += 2 * mixer["value_heads"] + mixer["value_head_dim"]
    if ffn["kind"] == "dense" and kind in _FULL_BIAS:
        small += ffn["dim"] + width
    return int(small)


def _block_string(section: Section) -> list[tuple[Block, Block, int]]:
    """Nemotron-H: one letter a block, M Mamba-2, * attention, - dense FFN, E experts."""
    pattern = section.fields.get("hybrid_override_pattern")
    if not isinstance(pattern, str):
        listed = section.fields.get("layers_block_type")
        letters = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
        if not isinstance(listed, list) or any(entry not in letters for entry in listed):
            raise SpecError(f"{section.where}: layers_block_type is not understood, so it cannot be counted")
        pattern = "".join(letters[entry] for entry in listed)
    layers = []
    for letter in pattern.replace("|", ""):
        if letter not in "M*-E":
            raise SpecError(f"{section.where}: block {letter!r} of hybrid_override_pattern is not known")
        mixer: Block = NONE
        ffn: Block = NONE
        if letter == "M":
            mixer = _mamba(section)
        elif letter == "*":
            mixer = _mixer(section, "full", 0)
        elif letter == "-":
            ffn = {"kind": "dense", "dim": section.integer("intermediate_size"), "matrices": 2}
        else:
            ffn = _experts(section, 0)
        layers.append((mixer, ffn, _small_parameters(section, mixer, ffn)))
    return layers


def _parallel_blocks(section: Section, depth: int, notes: list[str]) -> list[tuple[Block, Block, int]]:
    """Falcon-H1: attention and a Mamba-2 block side by side in every layer, then one FFN."""
    attention = _mixer(section, "full", 0)
    mamba = _mamba(section)
    dense = _dense(section)
    notes.append("attention and Mamba-2 work side by side in each layer; they are counted one after the other")
    layer = [
        (attention, NONE, _small_parameters(section, attention, NONE)),
        # Both mixers share one norm: the second one adds none.
        (mamba, dense, _small_parameters(section, mamba, dense) - _width(section)),
    ]
    return layer * depth


def _shortcut_blocks(section: Section, depth: int, notes: list[str]) -> list[tuple[Block, Block, int]]:
    """LongCat-Flash: a layer is two attentions and two dense FFNs, with routed experts beside the first FFN.

    Some of the chosen experts compute nothing: on average a token meets `top_k * experts / (experts + zero experts)`.
    """
    latent = _latent(section)
    real = _expert_count(section)
    idle = section.integer("zero_expert_num")
    width = section.integer("ffn_hidden_size")
    chosen = section.integer("moe_topk", "num_experts_per_tok")
    experts: Block = {
        "kind": "moe",
        "experts": real,
        "top_k": max(1, round(chosen * real / (real + idle))),
        "expert_dim": section.integer("expert_ffn_hidden_size"),
        "matrices": 3,
        "shared_dim": width,
        "router_bias": True,
    }
    dense: Block = {"kind": "dense", "dim": width, "matrices": 3}
    notes.append(f"{chosen} of {real + idle} experts per token, {idle} of which compute nothing")
    layer = [(latent, ffn, _small_parameters(section, latent, ffn)) for ffn in (experts, dense)]
    return layer * depth


def _pruned_blocks(section: Section, notes: list[str]) -> list[tuple[Block, Block, int]]:
    """DeciLM: each block says how many query heads share a KV head and how wide its FFN is, or that it is gone."""
    blocks = section.fields["block_configs"]
    heads = _heads(section)
    width = _width(section)
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise SpecError(f"{section.where}: block_configs is not a list of objects")
    layers = []
    for index, block in enumerate(blocks):
        where = f"{section.where} block {index}"
        attention = Section(block.get("attention") or {}, where)
        feed_forward = Section(block.get("ffn") or {}, where)
        mixer: Block = NONE
        ffn: Block = NONE
        if attention.flag("replace_with_linear") or feed_forward.flag("replace_with_linear"):
            raise SpecError(f"{where}: a block replaced by a linear layer is not modelled")
        if not attention.flag("no_op"):
            group = attention.integer("n_heads_in_group")
            head_dim = _head_dim(section, heads)
            mixer = {
                "kind": "attention", "heads": heads, "kv_heads": max(1, heads // group), "qk_head_dim": head_dim,
                "v_head_dim": head_dim, "scope": _NO_SCOPE_LIMIT,
            }  # fmt: skip
        if not feed_forward.flag("no_op"):
            ffn = {"kind": "dense", "dim": _pruned_width(feed_forward, width), "matrices": 3}
        if mixer != NONE or ffn != NONE:
            layers.append((mixer, ffn, ((mixer != NONE) + (ffn != NONE)) * width))
    notes.append(f"{len(blocks)} blocks, some without attention or with a narrower FFN")
    return layers


def _pruned_width(feed_forward: Section, width: int) -> int:
    """FFN width of a pruned block: a multiple of two thirds of four hidden widths, rounded up to 256."""
    if feed_forward.has("intermediate_size"):
        return feed_forward.integer("intermediate_size")
    multiplier = feed_forward.fields.get("ffn_mult")
    if not isinstance(multiplier, (int, float)) or isinstance(multiplier, bool) or not 0 < multiplier < 100:
        raise SpecError(f"{feed_forward.where}: ffn_mult is {multiplier!r}, expected a number above 0")
    exact = int(2 * multiplier * width / 3)
    return -(-exact // 256) * 256
