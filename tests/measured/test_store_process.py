"""The measured store as a user meets it: commands, a killed import, a damaged file."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {"TOKENOPT_DATA_DIR": str(tmp_path / "data")}


def test_import_list_show_export_remove(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    done = tokenopt("measured", "import", str(FIXTURES / "sweep.csv"), str(FIXTURES / "vllm_run.json"), env=here)
    assert done.returncode == 0, done.stderr
    assert "3 points read, 3 new, 0 of 2 files refused" in done.stdout
    listed = json.loads(tokenopt("measured", "list", "--output", "json", env=here).stdout)["stacks"]
    assert sum(line["points"] for line in listed) == 3
    shown = tokenopt("measured", "show", "--hardware", "h100*", "--output", "json", env=here)
    assert {point["engine"] for point in json.loads(shown.stdout)["points"]} == {"vllm"}
    exported = tokenopt("measured", "export", env=here)
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert len(rows) == 3
    file = tmp_path / "points.csv"
    file.write_text(exported.stdout)
    again = tokenopt("measured", "import", str(file), "--format", "csv", env=here)
    assert "3 points read, 0 new" in again.stdout, again.stderr
    gone = tokenopt("measured", "remove", "--model", "llama-3.1-8b", env=here)
    assert gone.stdout == "3 points taken out\n"


def test_a_named_file_that_is_refused_ends_with_1(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"a": ')
    done = tokenopt("measured", "import", str(bad), env=here)
    assert done.returncode == 1
    assert done.stderr.startswith("refused: bad.json is not whole JSON")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "measured.sqlite").exists()


def test_remove_without_a_word_of_what_is_a_usage_error(tokenopt: Run, here: dict[str, str]) -> None:
    done = tokenopt("measured", "remove", env=here)
    assert (done.returncode, "say what to remove" in done.stderr) == (2, True)
    done = tokenopt("measured", "remove", "--import", "-1", env=here)
    assert (done.returncode, "--import is -1, but the store has no such import" in done.stderr) == (2, True)


def test_a_killed_import_leaves_the_store_as_it_was(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    assert tokenopt("measured", "import", str(FIXTURES / "sweep.csv"), env=here).returncode == 0
    header, row = (FIXTURES / "sweep.csv").read_text().splitlines()[:2]
    large = tmp_path / "large.csv"
    large.write_text(
        header + "\n" + "\n".join(row.replace(",140", f",{100 + i / 1000}") for i in range(200_000)) + "\n"
    )
    store = tmp_path / "data" / "measured.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenopt", "measured", "import", str(large)], env={**os.environ, **here},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = store.with_name(store.name + "-wal")
    # Killed while it writes: the log grows with what is not committed.
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.stat().st_size > 500_000:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the import ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT count(*) FROM points").fetchone() == (2,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    done = tokenopt("measured", "import", str(FIXTURES / "vllm_run.json"), env=here)
    assert done.returncode == 0, done.stderr


def test_a_damaged_store_is_set_aside(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "data" / "measured.sqlite"
    store.parent.mkdir()
    store.write_bytes(b"this is no database" * 100)
    done = tokenopt("measured", "list", env=here)
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert list(store.parent.glob("measured.sqlite.damaged-*"))
    other = sqlite3.connect(store)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    done = tokenopt("measured", "list", env=here)
    assert "is not a measured store of tokenopt" in done.stderr
    assert store.exists()


@pytest.mark.bench
def test_a_million_rows_in_twenty_seconds(tokenopt: Run, here: dict[str, str], tmp_path: Path) -> None:
    header, first, second = (FIXTURES / "sweep.csv").read_text().splitlines()[:3]
    large = tmp_path / "million.csv"
    with large.open("w") as file:
        file.write(header + "\n")
        for i in range(500_000):
            file.write(
                first.replace(",140", f",{100 + i / 1000}") + "\n" + second.replace(",4200", f",{4000 + i}") + "\n"
            )
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "tokenopt", "measured", "import", str(large)], env={**os.environ, **here},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "1,000,000 points read, 1,000,000 new" in process.stdout
    assert time.monotonic() - started <= 20.0
