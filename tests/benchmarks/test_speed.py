"""Start-up and whole searches, as a person meets them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.bench


def _process(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import tokenopt"),
        ("-m", "tokenopt", "--help"),
        ("-m", "tokenopt", "search", "--slo-ms", "50", "--target-tps", "1e6"),
        ("-m", "tokenopt", "search", "--slo-ms", "50", "--target-tps", "1e6", "--hardware", "b200-sxm", "--exhaustive"),
    ],
    ids=["import", "help", "main job", "one chip exhaustive"],
)
def test_process(benchmark: Any, arguments: tuple[str, ...]) -> None:
    benchmark.pedantic(_process, args=arguments, rounds=5, warmup_rounds=1)
