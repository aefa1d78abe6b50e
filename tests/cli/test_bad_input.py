"""Bad input: one clear sentence, the right exit code, never a traceback, nothing half-written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

USAGE = {
    "unknown model": (("--model", "gpt-os-120b"), "gpt-oss-120b"),
    "unknown accelerator": (("--hardware", "b20-sxm"), "b200-sxm"),
    "unknown vendor": (("--vendor", "nvidea"), "nvidia"),
    "unknown engine": (("--engine", "vlm"), "vllm"),
    "unknown provider": (("--provider", "amazn"), "matches nothing"),
    "unknown term": (("--term", "forever"), "on-demand"),
    "unknown precision": (("--precision", "fp3"), "expected native"),
    "unknown objective": (("--objective", "joy"), "cost"),
    "zero limit": (("--slo-ms", "0"), "slo_ms is 0"),
    "negative limit": (("--ttft-ms", "-5"), "ttft_ms is -5"),
    "limit not a number": (("--slo-ms", "nan"), "slo_ms is nan"),
    "infinite limit": (("--e2e-ms", "inf"), "e2e_ms is inf"),
    "infinite target": (("--target-tps", "inf"), "target_tps is inf"),
    "absurd target": (("--target-tps", "1e30"), "target_tps"),
    "zero tokens": (("--isl", "0"), "isl is 0"),
    "half a token": (("--osl", "0.5"), "osl is 0.5"),
    "beyond the context": (("--isl", "200000"), "131,072"),
    "prefix beyond one": (("--prefix-hit", "1.5"), "prefix_hit is 1.5"),
    "utilization beyond one": (("--utilization", "1.2"), "utilization is 1.2"),
    "no chips": (("--max-chips", "0"), "max_chips is 0"),
    "pue below one": (("--pue", "0.5"), "pue is 0.5"),
    "two limits": (("--slo-ms", "50", "--tpot-ms", "40"), "both name the same limit"),
    "two targets": (("--target-tps", "1e6", "--target-rps", "1"), "give one of them"),
    "a quote without a number": (("--price", "b200-sxm"), "KEY=USD"),
    "a quote of zero": (("--price", "b200-sxm=0"), "price is 0"),
    "a quote for nothing": (("--price", "b2000=2"), "unknown accelerator"),
    "an engine date": (("--engine", "vllm@soon"), "YYYY"),
    "text for a number": (("--isl", "many"), "many"),
    "an unknown flag": (("--slo", "50"), "--slo"),
    "parquet to the terminal": (("--format", "parquet"), "--out"),
    "a directory for a file": (("--out", "."), "directory"),
    "a folder that is not there": (("--out", "no/such/folder/x.json"), "does not exist"),
}


def _sentence(process: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, process.stderr
    return process.stderr


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, tokenopt: Run) -> None:
    flags, expected = USAGE[name]
    process = tokenopt("search", *flags)
    assert process.returncode == 2, process.stderr
    assert expected in _sentence(process)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--slo-ms", "0.001"), ("limit on time per output token of 0.001 ms", "relax --slo-ms to")),
        (("--ttft-ms", "0.1"), ("time to first token", "relax --ttft-ms to")),
        (("--min-interactivity", "100000"), ("tokens/s/user", "relax --min-interactivity to")),
        (("--slo-ms", "50", "--target-tps", "1e7", "--max-chips", "4"), ("at most 4 chips", "relax --max-chips to")),
        (("--model", "kimi-k3", "--hardware", "t4", "--price", "t4=0.5"), ("fits on no layout", "GB per chip")),
    ],
)
def test_infeasible_names_the_limit_to_relax(flags: tuple[str, ...], expected: tuple[str, str], tokenopt: Run) -> None:
    process = tokenopt("search", *flags)
    assert process.returncode == 3, process.stderr
    text = _sentence(process)
    assert all(part in text for part in expected), text


def test_the_limit_that_was_named_is_enough(tokenopt: Run) -> None:
    process = tokenopt("search", "--slo-ms", "0.001", "--hardware", "h100-sxm")
    relaxed = process.stderr.split("relax --slo-ms to ")[1].split()[0]
    assert tokenopt("search", "--slo-ms", relaxed, "--hardware", "h100-sxm").returncode == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}', '{"hidden_size": 4096}'])
def test_a_config_that_is_not_a_model(content: str, tokenopt: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    process = tokenopt("search", "--model", "config.json")
    assert process.returncode == 2
    assert "config.json" in _sentence(process)


def test_an_unwritable_file_is_noticed_before_the_search(tokenopt: Run) -> None:
    process = tokenopt("search", "--out", "/proc/tokenopt.json", "--format", "json")
    assert process.returncode == 2
    assert "/proc/tokenopt.json" in _sentence(process)


def test_a_failed_search_leaves_the_old_file(tokenopt: Run, tmp_path: Path) -> None:
    old = tmp_path / "answer.json"
    old.write_text(json.dumps({"old": True}))
    assert tokenopt("search", "--slo-ms", "0.001", "--format", "json", "--out", str(old)).returncode == 3
    assert json.loads(old.read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]


def test_a_broken_plugin_is_a_warning_and_strict_makes_it_fatal(
    tokenopt: Run, fake_package: Callable[..., None], tmp_path: Path
) -> None:
    fake_package("hostile-plugin", "raise RuntimeError('boom')")
    environment = {"PYTHONPATH": str(tmp_path)}
    process = tokenopt("search", "--slo-ms", "50", env=environment)
    assert process.returncode == 0
    assert "warning: plugin hostile-plugin" in process.stderr
    process = tokenopt("search", "--slo-ms", "50", "--strict", env=environment)
    assert process.returncode == 1
    assert "boom" in _sentence(process)


def test_no_plugin_at_all(tokenopt: Run) -> None:
    process = tokenopt("search", env={"TOKENOPT_LOAD_PLUGINS": ""})
    assert process.returncode == 1
    assert "no accelerator is known" in _sentence(process)
