"""`tokenopt prices update` killed at any moment: the store holds the old prices whole, or the new ones whole."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.prices.fake_api import Answer, FakeApi, Request
from tokenopt.prices.store import FILE_NAME, last_snapshots, price_history, read_offers

ROWS = 3000
HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"
)


def catalogue(version: int) -> bytes:
    """A file whose every price depends on the version, so that a mixture of two shows."""
    rows = (f"p5.48xlarge,H100,8.0,192.0,2048.0,,{version + 1}.0,,region-{i},zone-{i}\n" for i in range(ROWS))
    return (HEADER + "".join(rows)).encode()


@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_nothing(kills: int, price_api: FakeApi, tmp_path: Path) -> None:
    store = tmp_path / FILE_NAME
    served = 0

    def route(request: Request) -> Answer:
        return Answer(catalogue(served))

    price_api.route = route
    environment = {
        **os.environ, "TOKENOPT_DATA_DIR": str(tmp_path), "TOKENOPT_SKYPILOT_URL": price_api.url,
        "TOKENOPT_SKYPILOT_CLOUDS": "aws", "TOKENOPT_LOAD_PLUGINS": "prices-skypilot",
    }  # fmt: skip
    command = [sys.executable, "-m", "tokenopt", "prices", "update", "--source", "skypilot"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    began = time.monotonic()
    first = start()
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors.decode()
    whole_s = time.monotonic() - began
    assert prices(store) == {1 / 8}

    chance = random.Random(20261125)
    killed = cut_off = 0
    stored = 0
    while killed < kills:
        served += 1
        process = start()
        # The later part of a run is where it writes.
        time.sleep(whole_s * chance.uniform(0.2, 1.05))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:
            assert process.returncode == 0, errors.decode()
            whole_s = max(0.1, whole_s * 0.95)
        (price,) = prices(store)
        assert price in ((stored + 1) / 8, (served + 1) / 8), "neither the prices before nor the new ones"
        cut_off += price == (stored + 1) / 8
        stored = round(price * 8) - 1
    assert cut_off, "no run was cut off before it had stored its prices"

    final = start()
    _, errors = final.communicate(timeout=120)
    assert final.returncode == 0, errors.decode()
    assert prices(store) == {(served + 1) / 8}
    assert not list(tmp_path.glob("*.damaged-*"))
    history = price_history("h100-sxm", store)
    assert len(history) % ROWS == 0, "each price that was ever stored is there for every region"


def prices(store: Path) -> set[float]:
    """The distinct prices of a store that must be whole."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    offers = read_offers(path=store)
    assert len(offers) == ROWS
    assert last_snapshots(store)["skypilot"].offers == ROWS
    return {offer.usd_per_chip_hr for offer in offers}
