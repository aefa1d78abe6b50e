"""Measures what the README says about speed, and prints its table."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from statistics import median

RUNS = 5
SEARCH = ("search", "--slo-ms", "50", "--target-tps", "1e6")


def process_s(*arguments: str) -> tuple[float, str]:
    """Median wall time of a whole process, and what it printed."""
    times = []
    output = ""
    for _ in range(RUNS):
        start = time.perf_counter()
        output = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "120"},
        ).stdout
        times.append(time.perf_counter() - start)
    return median(times), output


def exhaustive(threads: int) -> tuple[float, int]:
    """Configurations per second, and how many, of an exhaustive search over one accelerator."""
    arguments = ("-m", "tokenopt", *SEARCH, "--hardware", "gb200-nvl72", "--exhaustive", "--format", "json")
    _, output = process_s(*arguments, "--threads", str(threads))
    answer = json.loads(output)
    return answer["evaluated"] / answer["elapsed_s"], answer["evaluated"]


def main() -> None:
    """Prints the table."""
    help_s, _ = process_s("-m", "tokenopt", "--help")
    import_s, _ = process_s("-c", "import tokenopt")
    search_s, output = process_s("-m", "tokenopt", *SEARCH, "--format", "json")
    answer = json.loads(output)
    one, count = exhaustive(1)
    two, _ = exhaustive(2)
    everything_s, output = process_s("-m", "tokenopt", *SEARCH, "--exhaustive", "--format", "json")
    everything = json.loads(output)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    print("| what | measured |")
    print("| --- | --- |")
    print(f"| exhaustive serving configurations/s, 1 thread ({count:,} on one accelerator) | {one / 1e6:.0f} million |")
    print(f"| the same, 2 threads | {two / 1e6:.0f} million |")
    print(
        f"| the main job as a whole process ({answer['evaluated'] + answer['pruned']:,} configurations, "
        f"{answer['evaluated']:,} evaluated) | {search_s:.2f} s |"
    )
    print(f"| the main job, exhaustive ({everything['evaluated']:,} evaluated) | {everything_s:.1f} s |")
    print(f"| `tokenopt --help` | {help_s:.2f} s |")
    print(f"| `import tokenopt` (interpreter start included) | {import_s:.2f} s |")
    print(f"| peak memory of all of these | {peak_mb:.0f} MB |")


if __name__ == "__main__":
    main()
