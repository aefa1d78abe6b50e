"""Measures what the README says about speed and memory, and prints the table (`--write` puts it into README.md).

Whole processes are timed as a user meets them. This script must stay small: on Linux the peak memory that the system
reports for a child is at least that of the process that started it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks import ROOT, replace_block, write_atomically

MAIN_JOB = ("search", "--slo-ms", "50", "--target-tps", "1e6")
ONE_ACCELERATOR = ("--hardware", "b200-sxm")
TOKENOPT = str(Path(sys.executable).with_name("tokenopt"))
MB = 1e6
NOTICEABLE_LOAD = 0.3
"""Busy cores from which other work shows in the figures."""


@dataclass(frozen=True)
class Run:
    """One finished process."""

    wall_s: float
    peak_bytes: float
    output: str

    @property
    def answer(self) -> dict[str, Any]:
        """Its output as JSON."""
        parsed: dict[str, Any] = json.loads(self.output)
        return parsed


def run(command: Sequence[str]) -> Run:
    """Runs a command to its end.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
        output.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        return Run(wall_s, usage.ru_maxrss * unit, output.read())


def median_wall_s(command: Sequence[str], repeats: int) -> float:
    """Median wall time of a command, after one run that warms the file cache, s."""
    run(command)
    return statistics.median(run(command).wall_s for _ in range(repeats))


def rows(repeats: int, is_brief: bool, with_core: bool) -> list[tuple[str, str, str]]:
    """What is measured: name, value, goal."""
    search = (TOKENOPT, *MAIN_JOB, "--format", "json")
    scope = (*ONE_ACCELERATOR, "--top", "1") if is_brief else ("--top", "1")
    cores = os.cpu_count() or 1
    table: list[tuple[str, str, str]] = []
    exhaustive: dict[int, Run] = {}
    for threads in sorted({1, cores}):
        exhaustive[threads] = run((*search, *scope, "--exhaustive", "--threads", str(threads)))
        answer = exhaustive[threads].answer
        rate_per_s = answer["evaluated"] / answer["elapsed_s"]
        table.append((
            f"exhaustive search, {answer['evaluated'] / 1e6:,.0f} M configurations, {_threads(threads)}",
            f"{rate_per_s / 1e6:.1f} M configurations/s ({1e9 * threads / rate_per_s:.1f} ns each per thread)",
            "≥ 20 M/s" if threads == cores else "",
        ))  # fmt: skip
    default = run(search)
    answer = default.answer
    table += [
        ("default search, all accelerators, whole process", f"{median_wall_s(search, repeats):.2f} s", "≤ 1.0 s"),
        ("of it in the core", f"{answer['elapsed_s']:.2f} s for {answer['evaluated'] / 1e6:,.1f} M configurations "
         f"evaluated, {answer['pruned'] / 1e6:,.0f} M ruled out", ""),
        ("`tokenopt --help`", f"{median_wall_s((TOKENOPT, '--help'), repeats):.3f} s", "≤ 0.25 s"),
        ("`import tokenopt`, with the interpreter",
         f"{median_wall_s((sys.executable, '-c', 'import tokenopt; tokenopt.search'), repeats):.3f} s", ""),
        ("peak memory, search of one accelerator", megabytes(run((*search, *ONE_ACCELERATOR))), "≤ 250 MB"),
        ("peak memory, default search", megabytes(default), "≤ 250 MB"),
        ("peak memory, exhaustive search", megabytes(exhaustive[cores]), "≤ 250 MB"),
    ]  # fmt: skip
    return table + (criterion_rows() if with_core else [])


def criterion_rows() -> list[tuple[str, str, str]]:
    """Results of the last `cargo bench` of the core, where there are any."""
    table = []
    for estimates in sorted(ROOT.glob("target/criterion/**/new/estimates.json")):
        if estimates.parent.parent.name == "report":
            continue
        benchmark = json.loads(estimates.with_name("benchmark.json").read_text(encoding="utf-8"))
        seconds = json.loads(estimates.read_text(encoding="utf-8"))["median"]["point_estimate"] / 1e9
        elements = (benchmark.get("throughput") or {}).get("Elements")
        value = f"{seconds:.3g} s"
        if elements:
            value = f"{elements / seconds / 1e6:.1f} M configurations/s ({elements:,} in {seconds:.3g} s)"
        table.append((f"core alone, {benchmark['full_id']}", value, ""))
    return table


def megabytes(process: Run) -> str:
    """Peak memory of a process."""
    return f"{process.peak_bytes / MB:,.0f} MB"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _running_elsewhere() -> float:
    """Cores that other processes keep busy now, over half a second; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in stat.read_text().splitlines()[0].split()[1:]]
        return sum(fields), fields[3] + fields[4]

    all_before, idle_before = ticks()
    time.sleep(0.5)
    all_after, idle_after = ticks()
    busy_share = 1 - (idle_after - idle_before) / max(all_after - all_before, 1)
    return busy_share * (os.cpu_count() or 1)


def machine(load: float) -> str:
    """Processor, cores, commit and what else ran: a time without them says nothing.

    Args:
        load: Cores that other processes kept busy before the measurement.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    commit = _git("rev-parse", "--short", "HEAD").stdout.strip()
    if commit and _git("diff", "--quiet", "HEAD", "--", "rust", "python", "plugins", "Cargo.lock").returncode != 0:
        commit += " with changes"
    others = f", while other work used {load:.1f} cores (alone it is faster)" if load >= NOTICEABLE_LOAD else ""
    python = platform.python_version()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {python}, commit {commit or '-'}{others}"


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--brief", action="store_true", help="exhaustive search of one accelerator only")
    parser.add_argument("--core", action="store_true", help="add the results of the last `cargo bench` of the core")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs behind each median")
    flags = parser.parse_args(arguments)
    load = _running_elsewhere()
    lines = ["| what | measured | goal |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value} | {goal} |" for name, value, goal in rows(flags.repeats, flags.brief, flags.core)]
    text = "\n".join([*lines, "", f"Measured by `make bench` on {machine(load)}; medians of {flags.repeats} runs."])
    print(text)
    if flags.write:
        readme = ROOT / "README.md"
        write_atomically(readme, replace_block(readme.read_text(encoding="utf-8"), "speed", text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
