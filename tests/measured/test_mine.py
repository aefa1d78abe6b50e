"""The user's own benchmark moves the model, shrunken, and a search picks it up."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
HEADER = "kind,source,model,model_name,accelerator,accelerator_name,engine,scenario,chips,tp,isl,osl,concurrency,ttft_ms,tpot_ms"
STACK = "serving,own,llama-3.1-8b,llama-3.1-8b,h100-sxm,h100-sxm,vllm,concurrency"
FLAGS = ("search", "--model", "llama-3.1-8b", "--hardware", "h100-sxm", "--engine", "vllm", "--precision", "bf16",
         "--slo-ms", "30",
         "--price", "h100-sxm=2", "--basis", "calibrated", "--format", "json")  # fmt: skip


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {"TOKENOPT_DATA_DIR": str(tmp_path / "data")}


def _import(tokenopt: Run, here: dict[str, str], tmp_path: Path, scale: float) -> None:
    """A sweep that is `scale` times as slow as a plain one."""
    rows = [
        f"{STACK},1,1,1024,1024,{concurrency},{40 + concurrency},{tpot * scale}"
        for concurrency, tpot in ((1, 7.0), (4, 7.3), (16, 8.5), (32, 10.2), (64, 13.5), (128, 20.0))
    ]
    file = tmp_path / "own.csv"
    file.write_text("\n".join([HEADER, *rows]) + "\n")
    done = tokenopt("measured", "import", str(file), env=here)
    assert "6 points read, 6 new" in done.stdout, done.stderr


def _usd(tokenopt: Run, here: dict[str, str], *more: str) -> float:
    process = tokenopt(*FLAGS, *more, env=here)
    assert process.returncode == 0, process.stderr
    value: float = json.loads(process.stdout)["best"][0]["usd_per_m_tokens"]
    return value


def test_a_slow_server_raises_the_predicted_cost(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    before = _usd(tokenopt, here)
    _import(tokenopt, here, tmp_path, 1.6)
    done = tokenopt("calibrate", "serving", "--mine", env=here)
    assert done.returncode == 0, done.stderr
    assert "vllm hopper" in done.stdout
    own = tomllib.loads((tmp_path / "data" / "calibration.toml").read_text())
    (factors,) = own["stack"].values()
    # Shrunken: no factor runs off to the end of its range.
    assert all(0.4 < factor < 2.5 for factor in factors.values())
    after = _usd(tokenopt, here)
    assert after > before * 1.1
    assert _usd(tokenopt, here, "--calibration", "shipped") == before
    assert _usd(tokenopt, here, "--calibration", str(tmp_path / "data" / "calibration.toml")) == after
    answer = json.loads(tokenopt(*FLAGS, env=here).stdout)
    assert "own measurements, 6 points" in answer["best"][0]["calibration"]


def test_the_error_of_what_was_measured_falls(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    _import(tokenopt, here, tmp_path, 1.6)
    out = tmp_path / "mine.toml"
    done = tokenopt("calibrate", "serving", "--mine", "--out", str(out), env=here)
    line = next(line for line in done.stdout.splitlines() if "vllm hopper" in line)
    before, after, left_out = (float(cell.rstrip("%")) for cell in line.split()[-3:])
    assert after < before
    assert left_out < before
    assert not (tmp_path / "data" / "calibration.toml").exists()


def test_without_usable_points_it_says_why(tokenopt: Run, here: dict[str, str]) -> None:
    done = tokenopt("calibrate", "serving", "--mine", env=here)
    assert (done.returncode, "it is empty" in done.stderr) == (1, True)
    fixture = Path(__file__).parent / "fixtures" / "vllm_run.json"
    tokenopt("measured", "import", str(fixture), env=here)
    done = tokenopt("calibrate", "serving", "--mine", env=here)
    assert "model or accelerator not stated" in done.stderr


def test_a_file_that_is_no_calibration_is_named(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[nothing]\n")
    done = tokenopt(*FLAGS, "--calibration", str(file), env=here)
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)
