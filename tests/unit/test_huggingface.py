"""Hugging Face configurations are counted right or refused with the reason."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenopt.catalog.huggingface import load_huggingface_config, model_from_config
from tokenopt.catalog.models import count_parameters
from tokenopt.errors import SpecError, TokenoptError

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip

CASES: dict[str, tuple[dict[str, Any], float]] = {
    "dense": (LLAMA, 8.03e9),
    "no key/value heads means as many as heads": ({**LLAMA, "num_key_value_heads": None}, 8.84e9),
    "multi-query with GPT-2 keys": (
        {"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_layer": 40, "n_positions": 8192,
         "multi_query": True, "vocab_size": 49153}, 15.52e9,
    ),
    "fused FFN width of Qwen-1": (
        {"model_type": "qwen", "hidden_size": 8192, "intermediate_size": 49152, "num_attention_heads": 64, "kv_channels": 128,
         "num_hidden_layers": 80, "vocab_size": 152064, "seq_length": 32768, "tie_word_embeddings": False}, 72.3e9,
    ),
    "mixture of experts": (
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
         "num_key_value_heads": 8, "num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2,
         "vocab_size": 32000, "max_position_embeddings": 32768, "tie_word_embeddings": False}, 46.7e9,
    ),
    "latent attention with shared experts": (
        {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
         "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1,
         "num_experts_per_tok": 8, "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
         "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "moe_layer_freq": 1,
         "topk_method": "noaux_tc", "tie_word_embeddings": False, "max_position_embeddings": 163840}, 671.0e9,
    ),
    "linear attention every layer but the fourth": (
        {"model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
         "shared_expert_intermediate_size": 512, "num_hidden_layers": 48, "num_experts": 512, "num_experts_per_tok": 10,
         "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
         "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
         "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "decoder_sparse_step": 1, "vocab_size": 151936,
         "tie_word_embeddings": False, "max_position_embeddings": 262144}, 79.7e9,
    ),
    "attention and Mamba-2 side by side": (
        {"model_type": "falcon_h1", "hidden_size": 5120, "intermediate_size": 21504, "num_attention_heads": 20,
         "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 72, "mamba_d_conv": 4, "mamba_d_head": 128,
         "mamba_d_ssm": 4096, "mamba_d_state": 256, "mamba_n_groups": 2, "mamba_n_heads": 32, "vocab_size": 261120,
         "tie_word_embeddings": False, "max_position_embeddings": 262144}, 33.6e9,
    ),
    "two attentions a layer and experts that compute nothing": (
        {"model_type": "longcat_flash", "hidden_size": 6144, "num_layers": 28, "num_attention_heads": 64,
         "ffn_hidden_size": 12288, "expert_ffn_hidden_size": 2048, "n_routed_experts": 512, "zero_expert_num": 256,
         "moe_topk": 12, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
         "v_head_dim": 128, "vocab_size": 131072, "tie_word_embeddings": False, "max_position_embeddings": 131072}, 562e9,
    ),
    "letters for local and global layers": (
        {**LLAMA, "model_type": "exaone4", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40,
         "head_dim": 128, "intermediate_size": 27392, "vocab_size": 102400, "sliding_window": 4096,
         "sliding_window_pattern": "LLLG"}, 32.0e9,
    ),
    "a nested text section": ({"model_type": "some_vl", "text_config": LLAMA, "vision_config": {}}, 8.03e9),
    "one letter a block": (
        {"model_type": "nemotron_h", "hidden_size": 8192, "intermediate_size": 32768, "num_attention_heads": 64,
         "num_key_value_heads": 8, "head_dim": 128, "mamba_num_heads": 256, "mamba_head_dim": 64, "ssm_state_size": 256,
         "n_groups": 8, "conv_kernel": 4, "vocab_size": 131072, "tie_word_embeddings": False,
         "hybrid_override_pattern": "M-M-M-M*-" * 10 + "M-" * 14, "max_position_embeddings": 8192}, 56.3e9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_counts(name: str) -> None:
    config, total = CASES[name]
    model = model_from_config(config, key="m")
    assert count_parameters(model.architecture)["total_parameters"] == pytest.approx(total, rel=0.02)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"model_type": "bert", "hidden_size": 768}, "encoder"),
    "draft": ({**LLAMA, "architectures": ["LlamaForCausalLMEagle3"]}, "draft"),
    "cross-attention": ({"model_type": "mllama", "text_config": LLAMA}, "vision tower"),
    "segmentation": ({**LLAMA, "architectures": ["FooForSegmentation"]}, "causal"),
    "foreign keys": ({"dim": 7168, "n_layers": 61}, "other keys"),
    "quantisation file": ({"producer": {}, "quantization": {}}, "ModelOpt"),
    "no layers": ({key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}, "num_hidden_layers"),
    "text for a number": ({**LLAMA, "hidden_size": "4096"}, "hidden_size is '4096'"),
    "zero": ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads is 0"),
    "negative": ({**LLAMA, "intermediate_size": -1}, "intermediate_size is -1"),
    "unknown layer type": ({**LLAMA, "layer_types": ["magic"] * 32}, "magic"),
    "unknown quantisation": ({**LLAMA, "quantization_config": {"quant_method": "magic"}}, "magic"),
    "short pattern": ({**LLAMA, "layer_types": ["full_attention"]}, "1 entries"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_reason(name: str) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(SpecError, match=reason):
        model_from_config(config, key="m")


@pytest.mark.parametrize(
    ("quantisation", "formats"),
    [
        ({"quant_method": "fp8"}, ("fp8", "fp8")),
        ({"quant_method": "awq", "bits": 4}, ("int4", "int4")),
        ({"quant_method": "mxfp4"}, ("mxfp4", "mxfp4")),
        (
            {"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*"],
             "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float", "group_size": 32}}}},
            ("bf16", "mxfp4"),
        ),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
            ("mxfp4", "mxfp4"),
        ),
    ],
)  # fmt: skip
def test_formats_of_quantised_checkpoints(quantisation: dict[str, Any], formats: tuple[str, str]) -> None:
    native = model_from_config({**LLAMA, "quantization_config": quantisation}, key="m").architecture["native_formats"]
    assert (native["mixer"], native["dense"]) == formats


def test_the_quantisation_file_beside_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps(
            {"producer": {}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*self_attn*"]}}
        )
    )
    formats = load_huggingface_config(tmp_path).architecture["native_formats"]
    assert formats == {"mixer": "bf16", "dense": "nvfp4", "experts": "nvfp4", "head": "bf16"}


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"x"', "\x00", "{}"])
def test_what_is_not_a_model_is_one_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(SpecError):
        load_huggingface_config(file)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip
_FIELDS = sorted({field for config, _ in CASES.values() for field in config} | {"rope_scaling", "quantization_config"})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(base=st.sampled_from(sorted(CASES)), changes=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=4))
def test_nothing_but_a_clear_refusal_is_ever_raised(base: str, changes: dict[str, Any]) -> None:
    with contextlib.suppress(TokenoptError):
        model_from_config({**CASES[base][0], **changes}, key="m")
