"""Published claims: verdicts follow from inputs, and the known ones come out as their sources say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenopt.decide.claims import BUNDLED, FAILS, HOLDS, PART, UNKNOWN, ClaimResult, check_claims
from tokenopt.errors import SpecError
from tokenopt.plugins import PluginRegistry

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENOPT_DATA_DIR", str(tmp_path / "data"))


def _check(registry: PluginRegistry, key: str, path: Path | None = None, *, predict: bool = False) -> ClaimResult:
    (result,) = check_claims(registry, path=path, only=[key], predict=predict)
    return result


def _changed(tmp_path: Path, old: str, new: str) -> Path:
    text = BUNDLED.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "claims.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file


def _finding(result: ClaimResult, what: str) -> Any:
    return next(finding for finding in result.findings if finding.what == what)


def test_two_cents_within_ten_percent(registry: PluginRegistry) -> None:
    result = _check(registry, "b200-two-cents", predict=True)
    assert result.measured == pytest.approx(0.02, rel=0.10)
    assert result.verdict == HOLDS
    rate = _finding(result, "tokens/s per chip, in and out")
    # 1.95 USD/h over two cents a million is 27,083 tokens/s.
    assert rate.claimed == pytest.approx(27083, rel=1e-4)
    assert result.measured == pytest.approx(1.95 / (rate.measured * 3600 / 1e6))
    assert result.predicted is not None
    assert result.predicted > 0


def test_thirty_five_times_only_near_the_ceiling_of_hopper(registry: PluginRegistry) -> None:
    result = _check(registry, "gb300-35x")
    assert _finding(result, "quotient of the printed costs").measured == pytest.approx(35.0)
    near, far = _finding(result, "at 124 tokens/s/user"), _finding(result, "at 40 tokens/s/user")
    assert 28 < near.measured < 40
    assert 8 < far.measured < 12
    assert result.measured == near.measured


def test_fifteen_times_and_the_price_it_implies(registry: PluginRegistry) -> None:
    result = _check(registry, "gb200-15x-revenue")
    implied = _finding(result, "price that the claim implies, per 1M tokens in and out")
    # 72 chips x 10,000 tokens/s x 3 years = 68.1e12 tokens; 75e6 USD over them.
    assert implied.claimed == pytest.approx(75e6 / (72 * 10_000 * 3 * 8760 * 3600 / 1e6))
    assert implied.claimed == pytest.approx(1.10, abs=0.005)
    assert result.measured == pytest.approx(15, rel=0.10)
    at_list = _finding(result, "revenue over investment at the list price")
    assert at_list.claimed == pytest.approx(15 * 0.7322 / 1.1008, rel=1e-3)


def test_a_day_of_deepseek_is_its_nodes_at_its_price(registry: PluginRegistry) -> None:
    result = _check(registry, "deepseek-87072")
    assert result.measured == pytest.approx(87_072, rel=1e-6)
    assert _finding(result, "per 1M tokens, in and out").measured == pytest.approx(0.1122, rel=1e-3)
    assert _finding(result, "per 1M output tokens").measured == pytest.approx(0.5183, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "old", "new", "verdict"),
    [
        ("b200-two-cents", "claimed = 0.02", "claimed = 0.012", PART),
        ("b200-two-cents", "claimed = 0.02", "claimed = 0.002", FAILS),
        ("b200-two-cents", "b200-sxm = 1.95", "b200-sxm = 3.00", PART),
        ("b200-two-cents", "isl = 1024", "isl = 300", UNKNOWN),
        ("gb300-35x", "gb300-nvl72 = 2.652", "gb300-nvl72 = 10.608", FAILS),
        ("gb300-35x", "h200-sxm = 1.41", "h200-sxm = 1.00", PART),
        ("gb300-35x", "interactivities = [116, 124]", "interactivities = [40]", FAILS),
        ("gb200-15x-revenue", "tokens_per_s_per_chip = 10000", "tokens_per_s_per_chip = 40000", FAILS),
        ("trtllm-5x-in-two-months", '"2025-08-01", "2025-10-31"', '"2025-11-01", "2026-02-28"', FAILS),
        ("gb200-10x-per-mw", "gb200-nvl72 = 2.10", "gb200-nvl72 = 3.10", PART),
        ("deepseek-87072", "nodes = 226.75", "nodes = 300", PART),
    ],
)
def test_a_changed_input_changes_the_verdict(
    registry: PluginRegistry, tmp_path: Path, key: str, old: str, new: str, verdict: str
) -> None:
    before = _check(registry, key)
    after = _check(registry, key, _changed(tmp_path, old, new))
    assert (after.verdict, after.verdict != before.verdict) == (verdict, True), after.why


def test_the_users_own_points_count(registry: PluginRegistry, tmp_path: Path) -> None:
    before = _check(registry, "mi355x-b200-129")
    point = (
        '[[claim.points]]\naccelerator = "mi355x"\ntps_per_user = 129\ntotal_tps_per_chip = 2378\nweight_precision = "fp4"\n'
        'source = "AMD"\n'
    )
    file = tmp_path / "claims.toml"
    file.write_text(BUNDLED.read_text(encoding="utf-8") + point, encoding="utf-8")
    after = _check(registry, "mi355x-b200-129", file)
    assert before.verdict != HOLDS
    # 1.48 USD/h over 2,378 tokens/s is $0.173 per million, as the claim says.
    assert _finding(after, "  mi355x per 1M tokens").measured == pytest.approx(0.173, abs=0.0005)
    assert after.verdict == HOLDS


def test_a_file_that_cannot_be_used_is_named(registry: PluginRegistry, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[[claim")
    with pytest.raises(SpecError, match="cannot be read"):
        check_claims(registry, path=broken)
    with pytest.raises(SpecError, match="has no claimed"):
        check_claims(registry, path=_changed(tmp_path, "claimed = 0.02\n", ""))
    with pytest.raises(SpecError, match="expected cost, ratio"):
        check_claims(registry, path=_changed(tmp_path, 'kind = "cost"', 'kind = "guess"'))
    with pytest.raises(SpecError, match="gives no price of b200-sxm"):
        _check(registry, "b200-two-cents", _changed(tmp_path, "b200-sxm = 1.95, ", ""))
    with pytest.raises(SpecError, match="no claim 'x'"):
        check_claims(registry, only=["x"])


def test_the_command_prints_table_json_and_markdown(tokenopt: Run, tmp_path: Path) -> None:
    flags = ("claims", "b200-two-cents", "gb300-35x", "--basis", "measured")
    table = tokenopt(*flags, width=120)
    assert table.returncode == 0, table.stderr
    assert "b200-two-cents: holds. $0.02 at $1.95 per chip-hour" in table.stdout
    answer = json.loads(tokenopt(*flags, "--format", "json").stdout)
    assert [claim["key"] for claim in answer["claims"]] == ["b200-two-cents", "gb300-35x"]
    assert all(claim["source"] and claim["operating_point"] and claim["why"] for claim in answer["claims"])
    out = tmp_path / "claims.md"
    assert tokenopt(*flags, "--format", "markdown", "--out", str(out)).returncode == 0
    assert "## gb300-35x" in out.read_text()
