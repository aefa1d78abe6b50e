"""Configurations of many model families, in the shapes they are published in, count to their published sizes or are refused.

`data/huggingface_families.json` holds the fields that decide the count, and the published total in billions of parameters
(of the language model where there are towers); null where the architecture is one that must be refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenopt.catalog.huggingface import load_huggingface_config, model_from_config
from tokenopt.catalog.models import count_parameters
from tokenopt.errors import SpecError

FAMILIES: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "huggingface_families.json").read_text())
COUNTED = [name for name, case in FAMILIES.items() if case["published_parameters_b"]]
DENSE: dict[str, Any] = FAMILIES["yi-34b"]["config"]


@pytest.mark.parametrize("name", COUNTED)
def test_a_family_counts_to_its_published_size(name: str) -> None:
    model = model_from_config(FAMILIES[name]["config"], key="x")
    total = count_parameters(model.architecture)["total_parameters"]
    assert total == pytest.approx(FAMILIES[name]["published_parameters_b"] * 1e9, rel=0.02)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(COUNTED)))
def test_what_is_not_modelled_is_refused_in_one_short_sentence(name: str) -> None:
    with pytest.raises(SpecError) as refusal:
        model_from_config(FAMILIES[name]["config"], key="x")
    assert len(refusal.value.message) < 200
    assert "\n" not in refusal.value.message


def test_a_mamba_of_its_authors_counts() -> None:
    config = {
        "d_model": 2560,
        "n_layer": 64,
        "vocab_size": 50277,
        "ssm_cfg": {},
        "rms_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    total = count_parameters(model_from_config(config, key="x").architecture)["total_parameters"]
    assert total == pytest.approx(2.77e9, rel=0.02)


def test_an_adapter_names_its_base() -> None:
    with pytest.raises(SpecError, match=r"adapter, give the config\.json of meta-llama/Llama-2-7b-hf"):
        model_from_config(FAMILIES["lora adapter"]["config"], key="x")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DENSE), encoding="utf-8-sig")
    assert load_huggingface_config(file).architecture["hidden"] == DENSE["hidden_size"]


@pytest.mark.parametrize(
    ("quantisation", "mixer", "ffn"),
    [
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, "fp8", "fp8"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 8}}}, "int8", "int8"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}, "int4", "int4"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "int4", "int4"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}, "fp8", "fp8"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["*self_attn*"]}},
         "bf16", "nvfp4"),
        # One layer of sixty left as it was is no format of the model, nor are parts of it or another tower's attention.
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.self_attn*"]}, "nvfp4", "nvfp4"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["visual.blocks.0.attn.qkv", "model.layers.0.linear_attn.conv1d"]},
         "fp8", "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8, "type": "float"}},
            "group_1": {"targets": ["re:.*mlp.*"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}},
         "fp8", "nvfp4"),
    ],
)  # fmt: skip
def test_formats_in_many_words(quantisation: dict[str, Any], mixer: str, ffn: str) -> None:
    formats = model_from_config({**DENSE, "quantization_config": quantisation}, key="x").architecture["native_formats"]
    assert (formats["mixer"], formats["dense"]) == (mixer, ffn)


@pytest.mark.parametrize("method", ["aqlm", "vptq", "bitnet", "gguf"])
def test_a_quantisation_of_unknown_size_is_refused(method: str) -> None:
    with pytest.raises(SpecError, match=f"quantisation {method}"):
        model_from_config({**DENSE, "quantization_config": {"quant_method": method}}, key="x")
