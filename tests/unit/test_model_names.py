"""Names of models and accelerators as people, benchmarks and repositories write them."""

from __future__ import annotations

import pytest

from tokenopt.catalog.model_names import model_key
from tokenopt.catalog.models import bundled_model_keys, count_parameters, load_bundled_model, resolve_model
from tokenopt.catalog.sized import architecture_of, dense_of_size, size_in_name
from tokenopt.errors import SpecError
from tokenopt.measured.names import accelerator_key
from tokenopt.plugins import default_registry


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("llama31-8b", "llama-3.1-8b"),
        ("llama-3p1-70b", "llama-3.1-70b"),
        ("llama3_1-405b", "llama-3.1-405b"),
        ("Llama 3.1 405B", "llama-3.1-405b"),
        ("nvidia/Llama-3.3-70B-Instruct-NVFP4", "llama-3.3-70b"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b"),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8", "llama-4-maverick"),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "deepseek-r1"),
        ("DeepSeek R1 671B", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-v3.1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama-3.3-70b"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "qwen3-235b-a22b"),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", "qwen2.5-72b"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini"),
        ("CohereForAI/c4ai-command-r-plus-08-2024", "command-r-plus"),
        ("Nemotron 3 Nano", "nemotron-3-nano-30b-a3b"),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi-k2"),
    ],
)
def test_a_name_finds_its_model(name: str, key: str) -> None:
    assert model_key(name) == key
    assert resolve_model(name).key == key


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3-16b", "qwen3", "llama", "mixtral", "", "/", "gpt-j-6b"])
def test_a_name_of_another_or_of_several_models_finds_none(name: str) -> None:
    assert model_key(name) == ""


def test_every_key_and_repository_of_the_catalogue_is_a_name_of_its_own() -> None:
    for key in bundled_model_keys():
        assert model_key(key) == key
        repository = load_bundled_model(key).hf_id
        # Two generations of a model may come from one repository's shape; the architecture is then the same.
        found = model_key(repository) if repository else key
        assert found == key or load_bundled_model(found).hf_id == repository


def test_every_accelerator_key_is_a_name_of_its_own() -> None:
    for key in default_registry().accelerators:
        assert accelerator_key(key) == key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("DGX B200", "b200-sxm"), ("GB200 NVL72", "gb200-nvl72"),
        ("A100", "a100-sxm-80"), ("A100-SXM4-40GB", "a100-sxm-40"), ("NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("NVIDIA H20-3e", "h20-3e"), ("AMD Instinct MI355X OAM", "mi355x"), ("Ironwood", "tpu-v7"), ("TPU7x", "tpu-v7"),
        ("Trillium", "tpu-v6e"), ("TPU v5p", "tpu-v5p"), ("Trainium2", "trn2"), ("Intel Gaudi 3", "gaudi3"),
        ("910C", "ascend-910c"), ("Cerebras CS-3", "cerebras-wse-3"), ("Vera Rubin NVL144", "vera-rubin-nvl144"),
        ("rtx4090", "rtx-4090"), ("GeForce RTX 4090", "rtx-4090"), ("RTX 5090", "rtx-5090"), ("2x RTX 4090", "rtx-4090"),
        ("8xH100", "h100-sxm"), ("MI300X x8", "mi300x"), ("H100-SXM5-80GBx8", "h100-sxm"), ("v6e-8", "tpu-v6e"),
        ("Xeon 6980P", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_name_finds_its_accelerator(name: str, key: str) -> None:
    assert accelerator_key(name) == key


@pytest.mark.parametrize("billions", [0.3, 1.1, 5.0, 13.0, 34.0, 70.0, 340.0, 1160.0])
def test_a_dense_stand_in_has_the_size_that_was_asked_for(billions: float) -> None:
    total = count_parameters(dense_of_size("unknown", billions))["total_parameters"]
    assert total == pytest.approx(billions * 1e9, rel=0.05)


def test_a_stand_in_needs_the_size_of_a_dense_model() -> None:
    assert size_in_name("yi-34b") == 34.0
    assert size_in_name("ernie-4.5-300b-a47b") is None
    assert size_in_name("mixtral-9x8b") is None
    assert architecture_of("llama-3.1-8b")[1] == ""
    assert "5 billion" in architecture_of("gpt-3-5b")[1]
    with pytest.raises(SpecError, match="its experts"):
        architecture_of("unknown-moe", 300.0, 47.0)
    with pytest.raises(SpecError, match="not in the catalogue"):
        architecture_of("unknown")
